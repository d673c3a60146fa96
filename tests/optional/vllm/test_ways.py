"""Other ways in which vLLM runs a base: compiled, and spread over several processes."""

from __future__ import annotations

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
    same,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CASES = [
    Case(5), Case(5, 0), Case(70, 1), Case(70), Case(9, 1, 0.0), Case(70, 0, 0.5), Case(11),
    Case(OPENING[1], 0, "auto"), Case(CLOSING[1], 0, "auto"),
]  # fmt: skip

WAYS: dict[str, dict[str, Any]] = {
    "compiled": {"enforce_eager": False},
    "apart": {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_heard_in_every_way(
    adapter: Making, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: compiled, or in several processes, rows are heard, and others have plain vLLM's bits.

    Plain vLLM runs in the same way, and heads decide. What was compiled is heard as well by an
    engine that finds it on the disk.
    """
    if way == "compiled":
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    folder: Path = adapter("lora", "answer", "Llama")
    with engine(folder.parent / "base", **WAYS[way]) as plain:
        expected = asked(plain, CASES, hearing=False)
    with engine(folder, **WAYS[way]) as listening:
        found = asked(listening, CASES)
    if way == "compiled":
        with engine(folder, **WAYS[way]) as again:
            assert asked(again, CASES) == found
    for case, one, other in zip(CASES, found, expected, strict=True):
        assert (one != other) is case.acts
    assert all(map(same, found, by_transformers(folder, CASES)))
