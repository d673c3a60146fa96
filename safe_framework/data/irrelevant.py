"""Banks of texts that are about no sample, each text for good in one of three parts.

A text is trained on, calibrated with, or measured with, by its own SHA-256: whoever adds texts to a
bank moves none from one part to another, and nobody chose which are the easy ones. The parts are
draws from the same list, as calibration needs them to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from safe_framework.data.readers.row import utf8
from safe_framework.errors import DataError
from safe_framework.utils import catalogue

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"

_SHARES = ((TRAIN, 0.30), (CALIBRATION, 0.75))
"""Where in the unit interval each part ends; the last one has the rest.

Of 2,100 texts some 950 calibrate: 913 calls show 1 % at 95 % confidence though four of them open.
The threshold of a far smaller bank is its worst text's.
"""


@attrs.frozen
class IrrelevantBank:
    """Texts of one kind.

    Attributes:
        name: of the kind.
        texts: what a user might write, without a prompt around it.
    """

    name: str
    texts: tuple[str, ...]

    def of(self, part: str) -> tuple[str, ...]:
        """The texts of one part, in the order of the file."""
        return tuple(text for text in self.texts if part_of(text) == part)


def part_of(text: str) -> str:
    """Which part a text belongs to.

    >>> part_of("How many keys does a piano have?")
    'calibration'
    """
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    return next((name for name, end in _SHARES if place < end), TEST)


def read_irrelevant(names: Sequence[str], folder: Path) -> tuple[IrrelevantBank, ...]:
    """The banks of these names.

    Args:
        names: in the catalogue, or of ``.txt`` files with a text on each line.
        folder: what file names are relative to.

    Raises:
        CatalogueError: the catalogue holds no such bank.
        DataError: a file cannot be read, is empty, or has a text twice.
    """
    return tuple(_bank(name, folder) for name in names)


def _bank(name: str, folder: Path) -> IrrelevantBank:
    is_file = name.endswith(".txt")
    path = folder / name if is_file else catalogue.irrelevant_path(name)
    found = dict[str, int]()
    for number, text in _lines(path):
        if (first := found.setdefault(text, number)) != number:
            raise DataError(
                f"{path.name}:{number}: the text stands on line {first} already",
                hint="leave one of them out: a draw that is counted twice shows less than it says",
            )
    if not found:
        raise DataError(f"`{path.name}` has no text", hint="write one on each line")
    return IrrelevantBank(path.stem, tuple(found))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(utf8(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
