r"""Cut the quickstart's clips from the FluidR3_GM soundfont: one second of one note, as OGG Vorbis.

Run once by hand; its output is committed. The same soundfont gives the same bytes.

    apt-get download fluid-soundfont-gm && dpkg-deb -x fluid-soundfont-gm_*.deb unpacked
    python registry/tools/cut_instruments.py unpacked/usr/share/sounds/sf2/FluidR3_GM.sf2 \
        registry/safe_framework_registry/data/instruments
"""

import argparse
import hashlib
import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import soundfile
import soxr

RATE = 16_000
TEST_SHARE = 0.28
SALT = "safe-framework quickstart"
QUIETEST_PEAK = 0.01
SHORTEST_SECONDS = 0.04
FADE_SECONDS = 0.01
DECAY_PER_SECOND = 0.05
QUESTIONS = ("What is playing?", "Which instrument do you hear?", "What makes this sound?")

Wave = Annotated[np.ndarray, "time"]


class Source(NamedTuple):
    """The samples of the soundfont whose name starts with `prefix` play `instrument`.

    `decays` says that a held note dies away; `kind` tells several sources of one instrument apart
    in file names.
    """

    prefix: str
    instrument: str
    decays: bool
    kind: str = ""


SOURCES = (
    Source("P200 Piano ", "piano", True),
    Source("Church Organ ", "organ", False, "church"),
    Source("B3 ", "organ", False, "drawbar"),
    Source("Violin ", "violin", False),
    Source("Harp ", "harp", True),
    Source("Nylon ", "guitar", True, "nylon"),
    Source("Steel ", "guitar", True, "steel"),
    Source("Finger Bass ", "bass", True, "finger"),
    Source("Picked Bass ", "bass", True, "picked"),
    Source("Slap Bass ", "bass", True, "slap"),
    Source("Flute ", "flute", False),
    Source("Clarinet ", "clarinet", False),
    Source("E's Bassoon ", "bassoon", False),
    Source("Alto ", "saxophone", False, "alto"),
    Source("Tenor ", "saxophone", False, "tenor"),
    Source("trombone", "trombone", False),
    Source("Xylophone ", "xylophone", True),
    Source("Glocken ", "glockenspiel", True),
    Source("Ahh Choir ", "choir", False, "aah"),
    Source("Ohh Voices ", "choir", False, "ooh"),
)


class Sample(NamedTuple):
    """One sample of a soundfont; `loop` is where its sustained part starts and ends."""

    name: str
    wave: Wave
    rate: int
    loop: tuple[int, int]
    right: bool


class Note(NamedTuple):
    """One clip to write. `pitch` is the note in the soundfont's own octave numbering."""

    instrument: str
    pitch: str
    kind: str
    wave: Wave

    @property
    def file(self) -> str:
        """Path relative to the manifest.

        Example:
            >>> Note("harp", "F#4", "", np.zeros(1)).file
            'clips/harp-fs4.ogg'
        """
        words = "-".join(word for word in (self.instrument, self.kind, self.pitch) if word)
        return f"clips/{words.lower().replace(' ', '-').replace('#', 's')}.ogg"


def samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a SoundFont 2 file, in its order (section 7.10 of its specification)."""
    data = path.read_bytes()
    headers, size = _chunk(data, b"shdr")
    start, _ = _chunk(data, b"smpl")
    for at in range(headers, headers + size - 46, 46):
        name = data[at : at + 20].split(b"\0")[0].decode("latin1")
        fields = struct.unpack("<IIIIIBbHH", data[at + 20 : at + 46])
        first, last, loop, end, rate, _, _, _, kind = fields
        wave = np.frombuffer(data, "<i2", last - first, start + 2 * first).astype("float32") / 32768
        yield Sample(name, wave, rate, (loop - first, end - first), kind == 2)


def _chunk(data: bytes, tag: bytes) -> tuple[int, int]:
    at = data.find(tag)
    return at + 8, struct.unpack("<I", data[at + 4 : at + 8])[0]


def source_of(sample: Sample) -> tuple[Source, str] | None:
    """Which source a sample belongs to and its pitch, or None.

    Right halves of stereo pairs belong to none: the same note would land in train and in test.
    """
    if sample.right:
        return None
    for source in SOURCES:
        rest = sample.name.removeprefix(source.prefix)
        pitch = re.fullmatch(r"([A-G][#b]?) ?(\d{1,2})(?:\(L\))?", rest)
        if rest != sample.name and pitch:
            return source, pitch[1] + pitch[2]
    return None


def one_second(sample: Sample, decays: bool) -> Wave:
    """The first second of a note at 16 kHz with peak 0.9.

    A sample shorter than that is held by repeating its loop, as a synthesiser does; a struck or
    plucked note dies away while it is held. A sample without a loop is followed by silence.
    """
    wave = _hold(sample, decays)[: sample.rate + sample.rate // 10]
    wave = soxr.resample(wave, sample.rate, RATE, quality="HQ")[:RATE].copy()
    fade = min(round(FADE_SECONDS * RATE), len(wave))
    wave[-fade:] *= np.linspace(1, 0, fade, dtype="float32")
    wave = np.pad(wave, (0, RATE - len(wave)))
    return wave * (0.9 / max(float(np.abs(wave).max()), 1e-9))


def _hold(sample: Sample, decays: bool) -> Wave:
    start, end = sample.loop
    wanted = sample.rate + sample.rate // 10
    if len(sample.wave) >= wanted or not 0 < start < end <= len(sample.wave):
        return sample.wave
    repeats = -(-(wanted - end) // (end - start))
    held = np.concatenate([sample.wave[:end], np.tile(sample.wave[start:end], max(repeats, 0))])
    if decays:
        seconds = np.maximum(np.arange(len(held)) - start, 0) / sample.rate
        held = held * (DECAY_PER_SECOND**seconds).astype("float32")
    return held


def notes(path: Path) -> Iterator[Note]:
    """Yield every note once that is not silent, not too short and not a copy of another."""
    seen: set[str] = set()
    for sample in samples(path):
        found = source_of(sample)
        if found is None or len(sample.wave) < SHORTEST_SECONDS * sample.rate:
            continue
        if np.abs(sample.wave).max() < QUIETEST_PEAK:
            continue
        source, pitch = found
        note = Note(source.instrument, pitch, source.kind, one_second(sample, source.decays))
        keys = {note.file, hashlib.sha256(sample.wave.tobytes()).hexdigest()}
        if not seen & keys:
            seen |= keys
            yield note


def split(found: Iterable[Note]) -> tuple[list[Note], list[Note]]:
    """Divide notes into train and test by a hash of instrument and pitch.

    An instrument's pitches are ordered by the hash and the first ones are test, so that each
    instrument has both and a test note is a pitch that training never heard from that instrument.
    """
    pitches: dict[str, set[str]] = defaultdict(set)
    kept = list(found)
    for note in kept:
        pitches[note.instrument].add(note.pitch)
    test = set()
    for instrument, heard in pitches.items():
        ordered = sorted((hashed(instrument, pitch), pitch) for pitch in heard)
        test |= {(instrument, pitch) for _, pitch in ordered[: round(TEST_SHARE * len(heard))]}
    return (
        [note for note in kept if (note.instrument, note.pitch) not in test],
        [note for note in kept if (note.instrument, note.pitch) in test],
    )


def hashed(*words: str) -> str:
    """SHA-256 of some words after the salt, by which clips are divided and asked about."""
    return hashlib.sha256(":".join((SALT, *words)).encode()).hexdigest()


def write(part: list[Note], manifest: Path) -> None:
    """Write the clips beside the manifest, and one row a clip ordered by file name."""
    rows = []
    for note in sorted(part, key=lambda note: note.file):
        target = manifest.parent / note.file
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            target, note.wave, RATE, format="OGG", subtype="VORBIS", compression_level=0.6
        )
        fix_serial(target)
        question = QUESTIONS[int(hashed("question", note.file), 16) % len(QUESTIONS)]
        rows.append({"audio": note.file, "question": question, "answer": note.instrument})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fix_serial(path: Path) -> None:
    """Replace the random stream number that libsndfile gives to an Ogg file by 0.

    So equal audio is equal bytes. Every page carries the number and a checksum over itself (RFC
    3533, section 6).
    """
    data = bytearray(path.read_bytes())
    at = 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        data[at + 14 : at + 18] = bytes(4)
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = _checksum(data[at:end]).to_bytes(4, "little")
        at = end
    path.write_bytes(data)


def _checksum(page: bytes | bytearray) -> int:
    total = 0
    for byte in page:
        total = (total << 8 & 0xFFFFFFFF) ^ _CHECKSUMS[total >> 24 ^ byte]
    return total


def _checksum_of(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


_CHECKSUMS = tuple(_checksum_of(byte) for byte in range(256))


def main() -> None:
    """Read the command line, cut, split and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("soundfont", type=Path, help="FluidR3_GM.sf2")
    parser.add_argument("output", type=Path, help="folder for train.jsonl, test.jsonl and clips/")
    arguments = parser.parse_args()
    train, test = split(notes(arguments.soundfont))
    write(train, arguments.output / "train.jsonl")
    write(test, arguments.output / "test.jsonl")
    instruments = {note.instrument for note in train}
    print(f"{len(train)} train and {len(test)} test notes of {len(instruments)} instruments")


if __name__ == "__main__":
    main()
