"""Banks of texts that are about no sample."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from safe_framework.data.irrelevant import (
    CALIBRATION,
    TEST,
    TRAIN,
    part_of,
    read_irrelevant,
)
from safe_framework.data.questions import read_forms, words
from safe_framework.errors import DataError
from safe_framework.utils import catalogue

OF_SENSES = {"questions-about-sounds": "labelled-clips", "questions-about-distances": "depth"}
"""What a sense is asked, for the gates of others: each bank, and that of questions it is of."""

MISTAKES = {
    "everyday": 10,
    "music-and-sounds": 10,
    "pictures-and-other-senses": 10,
    "depth-and-distance": 6,
    **dict.fromkeys(OF_SENSES, 4),
}
"""How many texts of a bank may open while it shows its risk."""


def tail(mistakes: int, calls: int, risk: float) -> float:
    """The probability of so few mistakes where each call is one with that risk."""
    return sum(
        math.comb(calls, k) * risk**k * (1 - risk) ** (calls - k) for k in range(mistakes + 1)
    )


def test_banks_are_large_enough_to_show_their_risk() -> None:
    """Law: each bank shows 1 % at 95 %, and trains and tests on others.

    Of those that any sense has, texts may open meanwhile: no threshold is its worst text's.
    """
    names = sorted(catalogue.irrelevant())
    assert names == sorted(MISTAKES)
    for bank in read_irrelevant(names, Path()):
        parts = [set(bank.of(part)) for part in (TRAIN, CALIBRATION, TEST)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == len(bank.texts)
        assert tail(MISTAKES[bank.name], len(parts[1]), 0.01) <= 0.05
        assert min(len(parts[0]), len(parts[2])) >= 180


def test_no_text_is_a_near_copy_of_another() -> None:
    """Law: no two texts have the same words, and none is a form of a bank of questions.

    But for what one sense is asked: its trained forms, on which others stay closed.
    """
    banks = read_irrelevant(sorted(catalogue.irrelevant()), Path())
    bags = {bank.name: [" ".join(words(text)) or text for text in bank.texts] for bank in banks}
    every = list(itertools.chain.from_iterable(bags.values()))
    assert len(set(every)) == len(every)
    for name, own in bags.items():
        forms = {
            " ".join(words(form.question))
            for bank, path in catalogue.questions().items()
            for form in read_forms(path)
            if (own_bank := OF_SENSES.get(name)) is None
            or (bank == own_bank and form.held_out)
            or bank in {*OF_SENSES.values()} - {own_bank}
        }
        assert not forms & set(own), name


def test_parts_follow_the_text_alone(tmp_path: Path) -> None:
    """Law: a text that is added moves no other from one part to another."""
    path = tmp_path / "mine.txt"
    path.write_text("One.\nTwo.\n", "utf-8")
    (before,) = read_irrelevant(["mine.txt"], tmp_path)
    path.write_text("Zero.\nOne.\nTwo.\n", "utf-8")
    (after,) = read_irrelevant(["mine.txt"], tmp_path)
    for part in (TRAIN, CALIBRATION, TEST):
        assert [t for t in after.of(part) if t != "Zero."] == list(before.of(part))
    assert part_of("One.") in (TRAIN, CALIBRATION, TEST)


def test_a_text_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Law: a repeated text is an error that gives both lines."""
    (tmp_path / "mine.txt").write_text("One.\n\nOne.\n", "utf-8")
    with pytest.raises(DataError, match=r"^mine\.txt:3: the text stands on line 1 already"):
        read_irrelevant(["mine.txt"], tmp_path)
