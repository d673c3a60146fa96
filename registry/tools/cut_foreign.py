r"""Cut the clips of sounds that are no task's from Sonic Pi's samples: one second each, OGG Vorbis.

Run once by hand; its output is committed. The same samples give the same bytes.

    apt-get download sonic-pi-samples && dpkg-deb -x sonic-pi-samples_*.deb unpacked
    python registry/tools/cut_foreign.py unpacked/usr/share/sonic-pi/samples \
        registry/safe_framework_registry/data/foreign
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr
from cut_instruments import fix_serial

RATE = 16_000
FADE_SECONDS = 0.01
TEST_SHARE = 0.5
SALT = "safe-framework foreign"

# By family, since members sound alike: a whole family is train or test. Left out are sounds that
# the instruments' questions could be asked about (bass, guitar, piano, choir), and those that the
# package's copyright file does not list one by one.
FAMILIES = {
    "drone": ("ambi_dark_woosh", "ambi_drone", "ambi_haunted_hum", "ambi_lunar_land"),
    "swoosh": ("ambi_soft_buzz", "ambi_swoosh"),
    "kick": ("bd_808", "bd_boom", "bd_fat", "drum_heavy_kick"),
    "cymbal": ("drum_cymbal_hard", "drum_cymbal_open", "drum_splash_soft", "elec_cymbal"),
    "tom": ("drum_tom_hi_hard", "drum_tom_lo_soft", "drum_tom_mid_hard"),
    "snare": ("drum_snare_hard", "drum_roll", "sn_dolf", "elec_hi_snare"),
    "cowbell": ("drum_cowbell", "elec_wood", "perc_till"),
    "blip": ("elec_beep", "elec_blip", "elec_blup", "elec_twip"),
    "beat": ("loop_breakbeat", "loop_compus", "loop_industrial"),
    "creature": ("misc_burp", "misc_crow", "misc_cineboom"),
    "snap": ("perc_snap", "perc_swash"),
    "tabla": ("tabla_dhec", "tabla_ghe2", "tabla_na", "tabla_tas2", "tabla_tun1"),
    "vinyl": ("vinyl_backspin", "vinyl_hiss", "vinyl_rewind", "vinyl_scratch"),
    "place": ("loop_safari", "loop_garzul", "loop_mika"),
}


def split() -> tuple[list[str], list[str]]:
    """Names of the train and of the test samples.

    Families are ordered by a hash and the first ones are test.

    Example:
        >>> train, test = split()
        >>> len(train) + len(test), set(train) & set(test)
        (48, set())
    """
    ordered = sorted(FAMILIES, key=_hash)
    count = round(TEST_SHARE * len(ordered))
    test = {name for family in ordered[:count] for name in FAMILIES[family]}
    every = sorted(name for family in FAMILIES.values() for name in family)
    return [name for name in every if name not in test], [name for name in every if name in test]


def _hash(family: str) -> str:
    return hashlib.sha256(f"{SALT}:{family}".encode()).hexdigest()


def one_second(path: Path) -> np.ndarray:
    """The second that begins 0.1 s before the loudest moment's, mono at 16 kHz with peak 0.9."""
    channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = soxr.resample(channels.mean(axis=1), rate, RATE, quality="HQ")
    start = max(0, min(int(np.abs(wave).argmax()) - RATE // 10, len(wave) - RATE))
    wave = wave[start : start + RATE].copy()
    fade = min(round(FADE_SECONDS * RATE), len(wave))
    wave[-fade:] *= np.linspace(1, 0, fade, dtype="float32")
    wave = np.pad(wave, (0, RATE - len(wave)))
    return wave * (0.9 / max(float(np.abs(wave).max()), 1e-9))


def write(names: list[str], samples: Path, manifest: Path) -> None:
    """Write the clips beside the manifest, and one row a clip."""
    rows = []
    for name in names:
        file = f"clips/{name.replace('_', '-')}.ogg"
        target = manifest.parent / file
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            target, one_second(samples / f"{name}.flac"), RATE,
            format="OGG", subtype="VORBIS", compression_level=0.6,
        )  # fmt: skip
        fix_serial(target)
        rows.append({"audio": file})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Read the command line, cut, split and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("samples", type=Path, help="folder of Sonic Pi's .flac files")
    parser.add_argument("output", type=Path, help="folder for train.jsonl, test.jsonl and clips/")
    arguments = parser.parse_args()
    for part, names in zip(("train", "test"), split(), strict=True):
        write(names, arguments.samples, arguments.output / f"{part}.jsonl")
        print(f"{len(names)} {part} clips")


if __name__ == "__main__":
    main()
