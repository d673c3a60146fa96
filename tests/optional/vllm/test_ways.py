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

NUMBERS = [
    Case(5), Case(5, 0), Case(70, 1), Case(70), Case(9, 1, 0.0), Case(70, 0, 0.5), Case(11),
]  # fmt: skip
DECIDED = [Case(OPENING[1], 0, "auto"), Case(CLOSING[1], 0, "auto")]

APART = {"distributed_executor_backend": "mp"}
WAYS: dict[str, dict[str, Any]] = {
    "compiled": {"enforce_eager": False},
    "tensors apart": {"tensor_parallel_size": 2, **APART},
    "layers apart": {"pipeline_parallel_size": 2, **APART},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_heard_in_every_way(
    adapter: Making, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: compiled, or in several processes, rows are heard, and others have plain vLLM's bits.

    Plain vLLM runs in the same way. Heads decide, but where layers are in several processes. What
    was compiled is heard as well by an engine that finds it on the disk.
    """
    if way == "compiled":
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    folder: Path = adapter("lora", "answer", "Llama")
    cases = NUMBERS + ([] if way == "layers apart" else DECIDED)
    with engine(folder.parent / "base", **WAYS[way]) as plain:
        expected = asked(plain, cases, hearing=False)
    with engine(folder, **WAYS[way]) as listening:
        found = asked(listening, cases)
    if way == "compiled":
        with engine(folder, **WAYS[way]) as again:
            assert asked(again, cases) == found
    for case, one, other in zip(cases, found, expected, strict=True):
        assert (one != other) is case.acts
    assert all(map(same, found, by_transformers(folder, cases)))
