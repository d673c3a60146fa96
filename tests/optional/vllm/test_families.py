"""Bases of further architectures, whose layers hand on hidden states in ways of their own."""

from __future__ import annotations

import pytest

from tests.optional.vllm.conftest import (
    CLOSING,
    FAMILIES,
    OPENING,
    Case,
    Making,
    asked,
    by_transformers,
    engine,
    same,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CASES = [
    Case(5), Case(5, 0), Case(70, 1), Case(70), Case(9, 1, 0.0), Case(70, 0, 0.5),
    *(Case(length, 0, "auto") for length in (OPENING[1], OPENING[2], CLOSING[0], CLOSING[1])),
]  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_heard_as_in_transformers_beside_rows_of_plain_bits(adapter: Making, kind: str) -> None:
    """Law: on each of them, who hears is answered as in transformers, others to plain vLLM's bits.

    The batch is mixed, and its prompts are read in pieces. Where a relevance head opens, the token
    that runs again leaves out the layer before the first fused one.
    """
    folder = adapter("lora", "answer", kind)
    with engine(folder.parent / "base") as plain:
        expected = asked(plain, CASES, hearing=False)
    with engine(folder) as listening:
        found = asked(listening, CASES)
    assert [case.acts for case in CASES].count(True) == 5
    for case, one, other in zip(CASES, found, expected, strict=True):
        assert (one != other) is case.acts
    assert all(map(same, found, by_transformers(folder, CASES)))
