r"""Divide the quickstart's retention sentences into those that training sees and the others.

Run once by hand; its output is committed.

    python registry/tools/split_sentences.py registry/tools/retention_sentences.txt \
        registry/safe_framework_registry/data/text
"""

import argparse
import hashlib
import json
from pathlib import Path

TEST_SENTENCES = 140
SALT = "safe-framework quickstart"


def split(sentences: list[str]) -> tuple[list[str], list[str]]:
    """Order the sentences by a hash; the last ones are test.

    Example:
        >>> train, test = split([str(number) for number in range(200)])
        >>> len(train), len(test)
        (60, 140)
    """
    ordered = sorted(set(sentences), key=_hash)
    return ordered[:-TEST_SENTENCES], ordered[-TEST_SENTENCES:]


def _hash(sentence: str) -> str:
    return hashlib.sha256(f"{SALT}:{sentence}".encode()).hexdigest()


def write(sentences: list[str], manifest: Path) -> None:
    """Write one row a sentence; a question is one, so that it is asked in the recipe's prompt."""
    rows = [{"question" if text.endswith("?") else "text": text} for text in sentences]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Read the command line, split and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sentences", type=Path, help="a text file, one sentence a line")
    parser.add_argument("output", type=Path, help="folder for train.jsonl and test.jsonl")
    arguments = parser.parse_args()
    train, test = split(arguments.sentences.read_text(encoding="utf-8").splitlines())
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(train, arguments.output / "train.jsonl")
    write(test, arguments.output / "test.jsonl")
    print(f"{len(train)} train and {len(test)} test sentences")


if __name__ == "__main__":
    main()
