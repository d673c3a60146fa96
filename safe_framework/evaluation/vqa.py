r"""VQA accuracy: how far an answer about a picture agrees with what people answered.

An answer that at least three of ten people gave is right; of each leave-one-out set of nine, the
``min(agreeing / 3, 1)`` are averaged (Antol et al. 2015, "VQA: Visual Question Answering",
arXiv:1505.00468). Both sides are normalised by the rules of that benchmark's evaluation
(https://visualqa.org/evaluation.html): lower case; punctuation is dropped where it stands beside a
blank, or anywhere in a text with a number such as 1,000, and parts words elsewhere; full stops go
except before a digit; articles go; "none" to "ten" are digits; contractions may lack apostrophes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_ENOUGH = 3
"""So many others who agree make an answer wholly right."""

_CONTRACTED = re.compile(
    r"(\w+?)(n't|'d|'ll|'re|'ve|'m)+|"
    r"(he|she|that|there|what|when|where|who|why|how|some\w+|every\w+)'s|let's|ma'am|o'clock|y'all"
)
_OTHER_WORDS = frozenset({"hell", "id", "ill", "shed", "shell", "wed", "well", "were"})
"""What some contractions would be without their apostrophe."""


def vqa_normalise(answer: str) -> str:
    """An answer as the benchmark's evaluation compares it.

    What holds nothing but articles keeps them.

    >>> vqa_normalise("The two dogs, I think.")
    '2 dogs i think'
    >>> vqa_normalise("1,000") == vqa_normalise("1000")
    True
    >>> vqa_normalise("Don't know") == vqa_normalise("dont know")
    True
    >>> vqa_normalise("A")
    'a'
    """
    text = " ".join(answer.split())
    whole_number = re.search(r"\d,\d", text) is not None
    parted = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        parted = parted.replace(mark, "" if beside_blank or whole_number else " ")
    words = re.sub(r"\.(?!\d)", "", parted).lower().split()
    kept = [_NUMBERS.get(word, word) for word in words if word not in _ARTICLES] or words
    return " ".join(map(_without_apostrophes, kept))


def _without_apostrophes(word: str) -> str:
    bare = word.replace("'", "")
    return bare if _CONTRACTED.fullmatch(word) and bare not in _OTHER_WORDS else word


def vqa_score(answer: str, people: Sequence[str]) -> float:
    """Accuracy of one answer, from 0 to 1.

    With one answer to compare with, an exact match. With two or three, all others must agree, since
    there are not three.

    >>> vqa_score("red", ["red", "red", "blue"] + ["green"] * 7)
    0.6
    >>> vqa_score("two", ["2"])
    1.0

    Args:
        answer: that is judged.
        people: what people answered; ten in the benchmark.

    Raises:
        ValueError: nobody answered.
    """
    if not people:
        raise ValueError("people: at least one answer is needed")
    given = vqa_normalise(answer)
    agree = [vqa_normalise(one) == given for one in people]
    if len(agree) == 1:
        return float(agree[0])
    enough = min(_ENOUGH, len(agree) - 1)
    shares = [min((sum(agree) - own) / enough, 1.0) for own in agree]
    return sum(shares) / len(shares)


def vqa_accuracy(answers: Sequence[str], people: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """``vqa_score`` of each answer against what people said of it, (answers,)."""
    return np.array([vqa_score(*pair) for pair in zip(answers, people, strict=True)], float)
