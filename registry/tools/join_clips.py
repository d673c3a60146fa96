r"""Join the instruments' clips to recordings of a minute, and write rows that ask about them.

Run once by hand; its output is committed. No sound is written: a recording is a table of clips and
the seconds at which they begin, which is read as one sound.

    python registry/tools/join_clips.py registry/safe_framework_registry/data/joined
"""

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

SECONDS, PART = 60, 10
"""Of a recording, and of the stretch that one instrument plays."""

NOTES = 4  # that are played in a stretch
RECORDINGS = {"train": 144, "test": 16}
TIMES = {"train": 2, "test": 1}
"""Seconds of each stretch that are asked about."""

SALT = "safe-framework joined"
CLIPS = "../../instruments/"


def clips_of(path: Path) -> dict[str, list[str]]:
    """The clips of each instrument."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["answer"], []).append(row["audio"])
    return dict(sorted(found.items()))


def recording(clips: dict[str, list[str]], random: Random) -> tuple[list[str], dict[str, Any]]:
    """The instruments in their order, no two alike, and the table of their clips."""
    names = random.sample(list(clips), SECONDS // PART)
    joined = [
        [CLIPS + random.choice(clips[name]), round(PART * place + 2.4 * note + random.random(), 2)]
        for place, name in enumerate(names)
        for note in range(NOTES)
    ]
    return names, {"joined": joined, "seconds": SECONDS}


def questions(names: list[str], split: str, random: Random) -> Iterator[dict[str, str]]:
    """What is asked about a recording."""
    for place, name in enumerate(names):
        for second in random.sample(range(2, PART - 1), TIMES[split]):
            yield {"kind": "at", "time": f"{PART * place + second} seconds", "answer": name}
    pairs = list(pairwise(names))
    for before, name in pairs if split == "train" else random.sample(pairs, 2):
        yield {"kind": "after", "other": before, "answer": name}
    for name in names if split == "train" else random.sample(names, 2):
        at = PART * names.index(name)
        yield {"kind": "when", "other": name, "answer": f"{at} seconds"}


def single(clips: dict[str, list[str]], name: str, random: Random) -> dict[str, Any]:
    """A row about five seconds of one instrument, as a window of a recording has it."""
    notes = [[CLIPS.removeprefix("../") + random.choice(clips[name]), at] for at in (0.4, 2.8)]
    audio = {"joined": notes, "seconds": 5}
    return {"audio": audio, "question": "What do you hear?", "answer": name}


def main() -> None:
    """Write the tables and the rows of both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    for split, count in RECORDINGS.items():
        random = Random(f"{SALT} {split}")
        clips = clips_of(output.parent / "instruments" / f"{split}.jsonl")
        rows: list[dict[str, Any]] = []
        (output / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            names, table = recording(clips, random)
            file = f"{split}/{number:03}.json"
            (output / file).write_text(json.dumps(table) + "\n", encoding="utf-8")
            asked = questions(names, split, random)
            rows += [{"audio": file, "align": [], **one} for one in asked]
        if split == "train":
            rows += [single(clips, name, random) for name in clips for _ in range(16)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (output / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
