"""Several senses of one adapter in vLLM: each alone, both and none, at once and one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.optional.vllm.conftest import (
    CLOSING,
    OPENING,
    Case,
    Making,
    asked,
    by_transformers,
    engine,
    outputs,
    same,
    touch,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

BOTH = {"audio": 0.5, "touch": 1.0}
CASES = [
    Case(5), Case(5, 0), Case(70, felt=0), Case(70, 1, felt=0), Case(70), Case(11, 0, BOTH, felt=1),
    Case(9, 1, {"audio": 0.0}, felt=1), Case(9, 1, 0.0, felt=1), Case(70, felt=1, gate=0.5),
    *(Case(length, 0, "auto", felt=0) for length in (OPENING[1], CLOSING[2])),
    Case(OPENING[2], 0, {"audio": 1.0, "touch": "auto"}, felt=0),
    Case(CLOSING[1], 0, {"audio": "auto", "touch": 0.5}, felt=0),
    Case(CLOSING[0], 0, {"audio": "auto", "touch": 0.0}, felt=0),
]  # fmt: skip
"""Where a head decides, one of the two senses opens: hearing to some prompts, touch to others."""


@pytest.fixture(scope="module")
def folder(adapter: Making) -> Path:
    """Of an adapter that hears and feels."""
    return adapter("lora", "answer", "Llama", "touch")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[Any]:
    """What plain vLLM says to a batch of the same shape."""
    with engine(folder.parent / "base") as llm:
        return asked(llm, CASES, hearing=False)


@pytest.fixture(scope="module")
def sensing(folder: Path, plain: list[Any]) -> Iterator[Any]:
    """An engine that stays, once the plain one is gone."""
    with engine(folder) as llm:
        yield llm


def test_each_sense_is_heard_as_in_transformers(
    sensing: Any, folder: Path, plain: list[Any]
) -> None:
    """Law: with either sense or both, a row is answered as in transformers; else as by the base.

    The batch is mixed, its prompts are read in pieces, gates are by sense, heads decide of both.
    """
    found = asked(sensing, CASES)
    assert [case.acts for case in CASES].count(True) == 10
    for case, one, other in zip(CASES, found, plain, strict=True):
        assert (one != other) is case.acts
    assert all(map(same, found, by_transformers(folder, CASES)))


def test_no_sense_leaks_into_another_s_answer(sensing: Any) -> None:
    """Law: one prompt with each sense, both and none, in every order, is answered as ever.

    Both at other gates, too: the cache knows each of them by all that it senses.
    """
    cases = [Case(70), Case(70, 0), Case(70, felt=0), Case(70, 0, felt=0)]
    other = Case(70, 0, BOTH, felt=0)
    first = [asked(sensing, [case])[0] for case in [*cases, other]]
    assert len({tuple(one) for one in first}) == len(cases) + 1
    for order in itertools.permutations(range(len(cases))):
        assert [asked(sensing, [cases[n]])[0] for n in order] == [first[n] for n in order]
    assert asked(sensing, [other, cases[3]])[0] != first[3]
    (again,) = outputs(sensing, [cases[3]])
    assert again.num_cached_tokens == 64


def test_samples_are_named_by_their_sense(sensing: Any) -> None:
    """Law: a sense that the adapter does not have is refused by its name, and so is its gate."""
    from vllm.exceptions import VLLMValidationError

    for data, gate in [({"smell": touch(0)}, 1), ({"touch": touch(0)}, {"smell": 1})]:
        prompt = {
            "prompt_token_ids": [3, 4, 5],
            "multi_modal_data": {"audio": data},
            "mm_processor_kwargs": {"gate": gate},
        }
        with pytest.raises(VLLMValidationError, match="smell"):
            sensing.generate([prompt], use_tqdm=False)
