"""The arithmetic of an evaluation: answers, estimates with intervals, distance of logits.

Calibration is the expected calibration error (Guo et al. 2017, arXiv:1706.04599): answers are put
in bins of equal width by their probability, and ``sum_b |b|/n |accuracy(b) - confidence(b)|`` is
their mean gap.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_PART_OF_NAMES = "#%&@*/\\"
_WITHOUT_SPACES = (
    "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TAI ", "NEW TAI",
    "YI ", "JAVANESE", "BALINESE",
)  # fmt: skip
"""How the Unicode names of characters begin whose scripts put no spaces between words."""
_SIGNS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\u05f3", "'")  # that serve as apostrophes
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u05f4", '"')  # Hebrew has them within words
    | dict.fromkeys(
        "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u05be", "-"
    )  # dashes, the minus sign
    | dict.fromkeys("\u0f0b\u0f0c\u1361", " ")  # what parts syllables in Tibetan, words in Ethiopic
    | {"\u066a": "%", "\u066b": ".", "\u066c": ","}  # of Arabic numbers
    | dict.fromkeys("\u00ad\u0640\u200b\u200e\u200f\u2060\ufeff")  # not to be seen, or mere length
)
_KEPT_FORMS = ("<super>", "<sub>", "<fraction>")
"""Forms that are no other spelling: a power is not its digits one behind another."""
_THIN = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
"""A blank that breaks no line, between the digits of one number."""
_THOUSANDS = re.compile(r"(?<![\d.,'])(\d{1,3}(?:([,'])\d{3})(?:\2\d{3})*)(?![\d,'])")
_AT_ONCE = 8
"""Positions that are compared at a time: of more, the logits do not fit a processor's cache."""
_TAIL = 2.5  # percent outside a 95 % interval on either side


def normalise(answer: str) -> str:
    r"""An answer without case, outer punctuation and spare blanks, in one form of its characters.

    What can be part of a name or number stays, and so does punctuation with nothing in it. Wide,
    narrow and joined characters are those that they stand for (Unicode's form NFKC, but for powers
    and fractions), digits of every script are 0 to 9, what parts thousands goes.

    >>> normalise("  The  Piano. ")
    'the piano'
    >>> normalise("C#, -3.5")
    'c# -3.5'
    >>> normalise(" ? ")
    '?'
    >>> normalise("\u0661\u0662 of 1,000,000 \u2013 x\u00b2")
    '12 of 1000000 - x²'
    """
    words = _plain_text(answer).split()
    stripped = (word.strip("".join(filter(_is_outer, word))) for word in words)
    return " ".join(filter(None, stripped)) or " ".join(words)


def _plain_text(text: str) -> str:
    """One spelling for all that Unicode has of the same characters, without case."""
    joined = _THIN.sub("", text.translate(_SIGNS))
    composed = unicodedata.normalize("NFC", "".join(map(_plain_character, joined)))
    folded = "".join(map(_plain_character, composed.casefold()))
    plain = unicodedata.normalize("NFC", folded).translate(_SIGNS)
    return _THOUSANDS.sub(lambda found: found[1].replace(found[2], ""), plain)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kept = unicodedata.decomposition(character).startswith(_KEPT_FORMS)
    return character if kept else unicodedata.normalize("NFKC", character)


def words_of(text: str) -> list[str]:
    """The words of a text, normalised; of scripts that put no spaces between words, characters.

    So F1 of a language without spaces is what MLQA's scorer (Lewis et al. 2020,
    arXiv:1910.07475) makes of Chinese: of characters. Marks stay on their character, punctuation
    beside them goes.

    >>> words_of("A small dog!")
    ['a', 'small', 'dog']
    >>> words_of("\u4e00\u53ea dog")
    ['\u4e00', '\u53ea', 'dog']
    """
    found: list[str] = []
    for word in normalise(text).split():
        goes_on = False  # whether a character may belong to the one before it
        for place, character in enumerate(word):
            alone = _stands_alone(character)
            beside = word[max(place - 1, 0) : place + 2]
            if _is_outer(character) and len(word) > 1 and any(map(_stands_alone, beside)):
                goes_on = False
                continue
            is_mark = unicodedata.category(character).startswith("M")
            if place and (is_mark or (goes_on and not alone)):
                found[-1] += character
            else:
                found.append(character)
            goes_on = not alone
    return found


def _stands_alone(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_WITHOUT_SPACES)


def _is_outer(character: str) -> bool:
    """Whether it is punctuation that surrounds words: marks, quotes and brackets."""
    kind = unicodedata.category(character)
    return kind in {"Po", "Ps", "Pe", "Pi", "Pf"} and character not in _PART_OF_NAMES


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> NDArray[np.float64]:
    """1.0 where the normalised answer is the expected one, else 0.0; one for each example."""
    pairs = zip(answers, expected, strict=True)
    return np.array([normalise(given) == normalise(right) for given, right in pairs], float)


def token_f1(
    answers: Sequence[str], expected: Sequence[str], *, both_empty: float = 1.0
) -> NDArray[np.float64]:
    """F1 of the normalised words that answer and expected one share, one for each example.

    >>> token_f1(["a grand piano"], ["the grand piano"]).round(2).tolist()
    [0.67]
    """
    pairs = zip(answers, expected, strict=True)
    return np.array([word_f1(*pair, both_empty=both_empty) for pair in pairs], float)


def word_f1(
    answer: str,
    expected: str,
    *,
    words: Callable[[str], Iterable[str]] = words_of,
    both_empty: float = 1.0,
) -> float:
    """F1 of the words that two texts share in any order, each as often as both have it.

    Args:
        answer: that is judged.
        expected: that is right.
        words: of a text, normalised.
        both_empty: the score where neither has a word.
    """
    given, wanted = Counter(words(answer)), Counter(words(expected))
    total = given.total() + wanted.total()
    return 2 * (given & wanted).total() / total if total else both_empty


@attrs.frozen
class Estimate:
    """A mean and its 95 % interval.

    A percentile interval is as wide as the data differ: with no mistake seen it has no width,
    however few the examples, so read it together with ``n``.

    Attributes:
        value: the mean.
        low: 2.5 % of the resampled means lie below.
        high: 2.5 % of the resampled means lie above.
        n: how many independent units were resampled (examples or texts).
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: ArrayLike, *, weights: ArrayLike | None = None, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of ``values`` with a seeded 95 % percentile bootstrap interval.

    Differences between two systems are estimated from the differences of each example
    (``bootstrap(first - second)``), which keeps the pairing.

    Args:
        values: one value for each independent unit, (n,).
        weights: what each counts, such as a text's number of positions, (n,); equal by default.
        resamples: how many times n units are drawn with replacement.
        seed: of the drawing; equal seeds draw equal units.

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("values: at least one is needed")
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float(np.average(values, weights=weights))
    low, high = percentiles(_resampled(values, weights, resamples, seed))
    return Estimate(mean, low, high, values.size)


def bootstrap_ratio(
    values: ArrayLike, reference: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Ratio of two means over the same units, with an interval that draws them in pairs.

    Resamples whose reference is 0 have no ratio and are left out.

    Args:
        values: one value for each independent unit, (n,).
        reference: of the same units, (n,).
        resamples: how many times n units are drawn with replacement.
        seed: of the drawing.

    Returns:
        None where the reference's mean is 0.
    """
    above, below = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if not below.sum():
        return None
    draws = np.random.default_rng(seed).integers(below.size, size=(resamples, below.size))
    means = [(above[draw].mean(), below[draw].mean()) for draw in draws]
    ratios = [one / other for one, other in means if other]
    ratio = float(above.mean() / below.mean())
    low, high = percentiles(ratios) if ratios else (ratio, ratio)
    return Estimate(ratio, low, high, below.size)


def percentiles(resampled: ArrayLike) -> tuple[float, float]:
    """The ends of the 95 % interval of a resampled statistic."""
    low, high = np.percentile(np.asarray(resampled), [_TAIL, 100 - _TAIL])
    return float(low), float(high)


def _resampled(
    values: NDArray[np.float64], weights: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    totals = values * weights
    draws = (random.integers(values.size, size=values.size) for _ in range(resamples))
    return np.fromiter((totals[draw].sum() / weights[draw].sum() for draw in draws), np.float64)


def kl_per_position(
    base_logits: Annotated[Tensor, "... vocabulary"], logits: Annotated[Tensor, "... vocabulary"]
) -> Annotated[Tensor, "..."]:
    """KL(base || safe) in nats at each position, in fp32; what the base rules out adds nothing."""
    if torch.equal(base_logits, logits):  # as where a modality is absent
        return base_logits.new_zeros(base_logits.shape[:-1], dtype=torch.float32)
    flat = (one.reshape(-1, one.shape[-1]) for one in (base_logits, logits))
    pairs = zip(*(torch.split(one, _AT_ONCE) for one in flat), strict=True)
    found = torch.cat([_kl(base, safe) for base, safe in pairs])
    return found.view(base_logits.shape[:-1])


def _kl(base_logits: Tensor, logits: Tensor) -> Tensor:
    base = torch.log_softmax(base_logits.float(), dim=-1)
    safe = torch.log_softmax(logits.float(), dim=-1)
    chance = base.exp()
    return torch.where(chance > 0, chance * (base - safe), 0.0).sum(dim=-1).clamp_min(0.0)


def same_top_token(
    base_logits: Annotated[Tensor, "... vocabulary"], logits: Annotated[Tensor, "... vocabulary"]
) -> Annotated[Tensor, "..."]:
    """True where both rank the same next token first."""
    return base_logits.argmax(dim=-1) == logits.argmax(dim=-1)


BINS = 10


@attrs.frozen
class Bin:
    """Answers of like probability.

    Attributes:
        confidence: their mean probability.
        accuracy: the share that is right.
        n: how many there are.
    """

    confidence: float
    accuracy: float
    n: int


@attrs.frozen
class Calibration:
    """How far the probability of an answer is from how often it is right.

    Attributes:
        error: the expected calibration error, from 0 to 1.
        confidence: mean probability of an answer.
        bins: that are not empty, by ascending probability.
    """

    error: Estimate
    confidence: Estimate
    bins: tuple[Bin, ...]


def calibration(
    confidence: Sequence[float], right: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Calibration:
    """Calibration of answers, with intervals that draw whole examples.

    The error of few answers is biased upwards, since every bin's gap is taken without its sign; its
    interval is one of the same biased statistic.

    Args:
        confidence: probability of each answer, from 0 to 1.
        right: 1.0 where it is right, else 0.0.
        resamples: of the intervals.
        seed: of the intervals.

    Raises:
        ValueError: there is no answer.
    """
    sure, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if not sure.size:
        raise ValueError("confidence: at least one is needed")
    draws = np.random.default_rng(seed).integers(sure.size, size=(resamples, sure.size))
    errors = [_error(sure[draw], hits[draw]) for draw in draws]
    means = [sure[draw].mean() for draw in draws]
    bin_of = _bin_indices(sure)
    return Calibration(
        Estimate(_error(sure, hits), *percentiles(errors), sure.size),
        Estimate(float(sure.mean()), *percentiles(means), sure.size),
        tuple(_bin(sure[bin_of == number], hits[bin_of == number]) for number in np.unique(bin_of)),
    )


def _bin_indices(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _bin(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> Bin:
    return Bin(float(confidence.mean()), float(right.mean()), confidence.size)


def _error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    gaps = np.bincount(_bin_indices(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / confidence.size)


@attrs.frozen
class TextSums:
    """Sums over the valid positions of one text, of two models.

    Attributes:
        agreed: how many positions rank the same next token first.
        divergence: KL(base || other) in nats.
        positions: how many were compared.
    """

    agreed: int
    divergence: float
    positions: int


def sum_text(
    base: Annotated[Tensor, "positions vocabulary"],
    other: Annotated[Tensor, "positions vocabulary"],
) -> TextSums:
    """The sums of one text, from the logits at its valid positions."""
    divergence = kl_per_position(base, other).sum()
    return TextSums(int(same_top_token(base, other).sum()), divergence.item(), len(base))


def merge_sums(texts: Iterable[TextSums]) -> TextSums:
    """The sums of several texts, or of one text with several samples."""
    parts = [(text.agreed, text.divergence, text.positions) for text in texts]
    agreed, divergence, positions = (sum(column) for column in zip(*parts, strict=True))
    return TextSums(int(agreed), divergence, int(positions))


def agreement_and_kl(
    texts: Sequence[TextSums], *, resamples: int, seed: int
) -> tuple[Estimate, Estimate]:
    """Share of equal next tokens and mean KL of a position; intervals draw whole texts."""
    weights = [text.positions for text in texts]
    agreed = [text.agreed / text.positions for text in texts]
    divergence = [text.divergence / text.positions for text in texts]
    return (
        bootstrap(agreed, weights=weights, resamples=resamples, seed=seed),
        bootstrap(divergence, weights=weights, resamples=resamples, seed=seed),
    )


def interval(estimate: Estimate) -> str:
    """The 95 % interval of a share, in percent.

    >>> interval(Estimate(0.5, 0.4, 0.6, 20))
    '40.0 to 60.0'
    """
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def interval_points(estimate: Estimate) -> str:
    """The 95 % interval of a difference of two shares, in percentage points.

    >>> interval_points(Estimate(0.1, -0.01, 0.2, 20))
    '-1.0 to +20.0'
    """
    return f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"
