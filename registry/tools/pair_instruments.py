"""Pair the quickstart's notes: which was heard first, which second, and are they the same?

A third of the rows asks each, and of those that compare, half have two notes of one instrument.
Notes of the training rows are paired with one another alone, and so are those of the test's. The
pairs follow from the rows and from ``SEED``; each line names only files that are there.

    python registry/tools/pair_instruments.py \
        registry/safe_framework_registry/data/instruments/sources
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

KINDS = ("first", "second", "same")
PAIRS = {"train": 1500, "test": 150}
SEED = 0


def pairs(rows: Sequence[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Rows of two notes each, with what is asked of them.

    Args:
        rows: of one note each.
        count: of pairs.
    """
    drawn = random.Random(SEED)
    files = defaultdict[str, list[str]](list)
    for row in rows:
        files[row["answer"]].append(row["audio"])
    for number in range(count):
        turn, which = divmod(number, len(KINDS))
        kind = KINDS[which]
        heard = drawn.sample(sorted(files), 2)
        if kind == "same" and turn % 2:
            heard[1] = heard[0]
        first = drawn.choice(files[heard[0]])
        second = drawn.choice([file for file in files[heard[1]] if file != first])
        verdict = "yes" if heard[0] == heard[1] else "no"
        answer = verdict if kind == "same" else heard[KINDS.index(kind)]
        yield {"audio": [first, second], "kind": kind, "answer": answer, "align": heard}


def main() -> None:
    """Write ``pairs_train.jsonl`` and ``pairs_test.jsonl`` beside the rows of single notes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for split, count in PAIRS.items():
        lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
        made = pairs([json.loads(line) for line in lines], count)
        text = "".join(json.dumps(row) + "\n" for row in made)
        (folder / f"pairs_{split}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
