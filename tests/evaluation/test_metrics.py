"""The laws of the arithmetic."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.evaluation import answers, gain, metrics
from safe_framework.evaluation.metrics import (
    bootstrap,
    exact_match,
    kl_per_position,
    normalise,
    same_top_token,
    token_f1,
    words_of,
)
from safe_framework.runs.report import html
from safe_framework.utils import formatting, tensors
from tests.support.tolerance import rounding


@pytest.mark.parametrize("module", [answers, tensors, gain, html, metrics, formatting])
def test_examples_in_docstrings_hold(module):
    """Every example in the documentation gives what it shows."""
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    """A normalised answer is its own normal form."""
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Piano", " piano."),
        ('"the  flute"', "The flute!"),
        ("\uff2f\uff22\uff2f\uff25\u3002", "oboe"),
        ("(red)", "red"),
    ],
)
def test_case_blanks_and_outer_punctuation_do_not_count(one, other):
    """Two spellings of an answer are equal."""
    assert normalise(one) == normalise(other)


SAME = [
    ("1,000", "1000"),
    ("12,345,678", "12345678"),
    ("\u0663\u066b\u0665", "3\u066b5"),  # Arabic digits
    ("\u096a\u0968", "42"),  # Devanagari
    ("\uff13\uff12", "32"),  # of full width
    ("\u22123", "-3"),  # the minus sign
    ("1990\u20131995", "1990-1995"),
    ("don\u2019t", "don't"),
    ("caf\u00e9", "cafe\u0301"),
    ("\ufb01sh", "fish"),  # a ligature
    ("\uff83\uff9e\uff70\uff80", "\u30c7\u30fc\u30bf"),  # narrow katakana
    ("stra\u00dfe", "STRASSE"),
    ("\u0130zmir", "i\u0307zmir"),
    ("pi\u00adano", "piano"),  # a soft hyphen
    ("\ufeffpiano\u200b", "piano"),
    ("a\u00a0b", "a b"),
    ("\u1100\u1161", "\uac00"),  # Hangul in parts
    ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"),  # Arabic, stretched
    ("\u0663\u066b\u0665\u066a", "3.5%"),  # Arabic digits, decimals, percent
    ("\u0661\u066c\u0660\u0660\u0660", "1,000"),  # Arabic thousands
    ("12\u202f345\u202f678", "12345678"),  # French thousands
    ("1\u2019000", "1000"),  # Swiss thousands
    ("\u05e6\u05d4\u05f4\u05dc", '\u05e6\u05d4"\u05dc'),  # Hebrew marks of abbreviation
    (
        "\u05d1\u05d9\u05ea\u05be\u05e1\u05e4\u05e8",
        "\u05d1\u05d9\u05ea-\u05e1\u05e4\u05e8",
    ),  # maqaf
    ("\u1230\u120b\u121d\u1361\u12d3\u1208\u121d", "\u1230\u120b\u121d \u12d3\u1208\u121d"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_forms_of_one_answer_are_equal(one, other):
    """Law: what Unicode or a keyboard writes in several ways is one answer."""
    assert exact_match([one], [other]).tolist() == [1]
    assert token_f1([one], [other]).tolist() == [1]


OTHER = [
    ("10\u00b2", "102"),
    ("\u00bd", "12"),
    ("1\u00bd", "11/2"),
    ("H\u2082O", "H O"),
    ("1,5", "15"),
    ("1,0000", "10000"),
    ("1 000", "1000"),
    ("12\u00a03456", "123456"),
    ("1,000'000", "1000000"),
    ("5'11", "511"),
    ("0.1,000", "0.1000"),
    ("3.0", "30"),
    ("-3", "3"),
    ("resume", "r\u00e9sum\u00e9"),
    ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645"),  # ZWNJ
]


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_forms_that_mean_something_else_stay_apart(one, other):
    """Law: powers, fractions, signs, decimals, accents and joiners are not another spelling."""
    assert exact_match([one], [other]).tolist() == [0]


@pytest.mark.parametrize(("one", "other"), [("C#", "C"), ("3.5", "35"), ("-3", "3"), ("a b", "ab")])
def test_what_makes_another_answer_counts(one, other):
    """Signs that are part of a name or number are kept."""
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [("", "?", 0), ("!", "?", 0), ("?", "?", 1), (" ? ", "?", 1), ("...", "-", 0), ("", "", 1)],
)
def test_punctuation_alone_is_an_answer_like_others(said, expected, right):
    """Law: saying nothing is wrong where something is expected, be it a mark; the mark is right."""
    assert exact_match([said], [expected]).tolist() == [right]
    assert token_f1([said], [expected]).tolist() == [right]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u4e00\u53ea\u72d7\u5728\u53eb", "\u4e00\u53ea\u5927\u72d7\u5728\u53eb"),
        ("\u3044\u306c\u304c\u9cf4\u304f", "\u72ac\u304c\u9cf4\u304f"),
        ("\u0e2b\u0e21\u0e32\u0e40\u0e2b\u0e48\u0e32", "\u0e2b\u0e21\u0e32"),
        (
            "\u0f56\u0f40\u0fb2\u0f0b\u0f64\u0f72\u0f66\u0f0d",
            "\u0f56\u0f40\u0fb2\u0f0b\u0f56\u0f51\u0f7a",
        ),
        ("\ua9b1\ua98f\ua9b8", "\ua9b1\ua98f"),  # a vowel sign stays on its letter
    ],
    ids=["Chinese", "Japanese", "Thai", "Tibetan", "Javanese"],
)
def test_languages_without_spaces_are_compared_by_character(one, other):
    """Law: texts that share characters score between 0 and 1, the same text 1, others 0."""
    assert token_f1([one], [one]).tolist() == [1]
    assert 0 < token_f1([one], [other])[0] < 1
    assert token_f1([one], ["\u94a2\u7434"]).tolist() == [0]


def test_punctuation_within_a_text_without_spaces_is_no_word():
    """Law: what blanks would part from words in other scripts does not count there either."""
    plain, marked = "\u4f60\u597d\u4e16\u754c", "\u4f60\u597d\uff0c\u4e16\u754c\u3002"
    assert token_f1([marked], [plain]).tolist() == [1]
    assert words_of("\u3002") == ["\u3002"]


SQUAD = [  # given, expected, F1 of the published scorer (Rajpurkar et al. 2016, arXiv:1606.05250)
    ("1976", "1976", 1.0),
    ("rock", "rock n roll", 0.5),
    ("   Rock    n  Roll.", "rock n roll", 1.0),
    ("x y z", "x y", 0.8),
    ("2 \u6642\u9593 21 \u5206", "2 \u6642\u9593", None),  # 2 / 3 there: it knows blanks alone
    ("Denver Broncos", "denver broncos!", 1.0),
    ("hello there", "hello world", 0.5),
    ("10th and 11th   centuries.", "10th and 11th centuries", 1.0),
    ("", "", 1.0),
    ("", "Paris", 0.0),
    ("Paris", "", 0.0),
    ("blue", "red", 0.0),
    ("the the the", "the", None),  # articles are no words there
    ("The Normans", "Normans", None),
    ("1,000", "1000", 1.0),
]


@pytest.mark.parametrize(("given_", "expected", "score"), SQUAD)
def test_f1_is_that_of_squad_but_for_articles_and_scripts(given_, expected, score):
    """Law: where no article and no script without spaces is met, F1 is that of SQuAD's scorer."""
    found = token_f1([given_], [expected])[0]
    if score is not None:
        assert found == pytest.approx(score)
        assert exact_match([given_], [expected])[0] == (score == 1)
    else:
        assert 0 < found < 1


@given(st.text(), st.text())
def test_f1_is_symmetric_and_between_0_and_1(one, other):
    """Law: F1 is the same both ways, from 0 to 1, and 1 for a text and itself."""
    score = token_f1([one], [other])[0]
    assert 0 <= score <= 1
    assert score == token_f1([other], [one])[0]
    assert token_f1([one], [one])[0] == 1


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_words_with_spaces_are_what_blanks_part(text):
    """Law: in scripts that put spaces between words, the words are those of the normalised text."""
    assert words_of(text) == normalise(text).split()


def test_exact_match_is_by_example():
    """One number for each pair, and as many answers as expected ones."""
    assert exact_match(["Red.", "green"], ["red", "blue"]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        exact_match(["red"], ["red", "blue"])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(0, 100))
def test_an_interval_lies_within_the_data(values, seed):
    """The value is the mean, and no resampled mean lies outside the data."""
    found = bootstrap(values, resamples=20, seed=seed)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert found.value == pytest.approx(np.mean(values), abs=slack)
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.n == len(values)


def test_equal_seeds_give_equal_intervals():
    """The seed decides the interval, and another one another interval."""
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_an_interval_covers_what_theory_says():
    """For many values it is close to the normal interval of the mean."""
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_pairing_narrows_a_difference():
    """Differences of each example vary less than two systems that vary together."""
    first = np.random.default_rng(0).normal(size=100)
    paired = bootstrap(first + 1 - first)
    assert paired.low == pytest.approx(1)
    assert paired.high == pytest.approx(1)


def test_weights_count_positions():
    """A text of three positions counts three times one of a single position."""
    assert bootstrap([1.0, 0.0], weights=[3, 1]).value == 0.75


def test_nothing_to_estimate_is_refused():
    """An interval needs data."""
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])


def test_divergence_of_a_model_from_itself_is_zero():
    """KL(p || p) is 0, and logits may be shifted by any constant."""
    logits = torch.randn(2, 3, 7)
    assert kl_per_position(logits, logits).tolist() == torch.zeros(2, 3).tolist()
    shifted = logits + 5
    assert kl_per_position(logits, shifted).max() <= rounding(shifted.shape[-1], shifted)


def test_divergence_is_the_formula():
    """The sum of p log(p / q), in nats, at each position."""
    base, safe = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl_per_position(base.log(), safe.log()).item() == pytest.approx(expected)


def test_divergence_of_a_position_is_its_own():
    """However many positions are compared together, each has the bits that it has alone."""
    base, safe = torch.randn(2, 2, 13, 50)
    alone = torch.stack(
        [
            kl_per_position(*pair)
            for pair in zip(base.flatten(0, 1), safe.flatten(0, 1), strict=True)
        ]
    )
    assert torch.equal(kl_per_position(base, safe).flatten(), alone)


def test_what_the_base_rules_out_adds_nothing():
    """A token of probability 0 in the base neither counts nor makes NaN."""
    base = torch.tensor([0.0, 0.0, -math.inf])
    assert kl_per_position(base, base).item() == 0
    assert kl_per_position(base, torch.zeros(3)).item() == pytest.approx(math.log(1.5))


def test_agreement_is_of_the_first_token():
    """Only which token is ranked first counts, at each position."""
    base = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert same_top_token(base, torch.tensor([[0.0, 9.0], [0.0, 0.5]])).tolist() == [True, False]
