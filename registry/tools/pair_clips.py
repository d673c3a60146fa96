r"""Put the instruments' clips into pairs, and write rows that ask about them.

Run once by hand; its output is committed. A pair is two clips of the instruments' folder, one after
another; no sound is copied.

    python registry/tools/pair_clips.py registry/safe_framework_registry/data/pairs
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

PAIRS = {"train": 1200, "test": 32}
"""Of each kind."""

KINDS = ("first", "second", "same")
SALT = "safe-framework pairs"
CLIPS = "../instruments/"


def clips_of(path: Path) -> dict[str, list[str]]:
    """The clips of each instrument."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["answer"], []).append(CLIPS + row["audio"])
    return dict(sorted(found.items()))


def rows_of(clips: dict[str, list[str]], count: int, random: Random) -> Iterator[dict[str, Any]]:
    """As many rows of each kind: two instruments, or twice the same one for half of `same`."""
    for number in range(count):
        for kind in KINDS:
            if kind == "same" and number % 2:
                names = [random.choice([name for name in clips if len(clips[name]) > 1])] * 2
                audio = random.sample(clips[names[0]], 2)
            else:
                names = random.sample(list(clips), 2)
                audio = [random.choice(clips[name]) for name in names]
            right = {"first": names[0], "second": names[1], "same": ("no", "yes")[number % 2]}
            yield {"audio": audio, "kind": kind, "answer": right[kind], "align": names}


def main() -> None:
    """Write the rows of both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for split, count in PAIRS.items():
        clips = clips_of(output.parent / "instruments" / f"{split}.jsonl")
        rows = rows_of(clips, count, Random(f"{SALT} {split}"))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (output / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
