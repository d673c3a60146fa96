"""Texts that are longer than the base's context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from safe_framework.config.schema import BaseSpec
from safe_framework.data.examples import read_task, read_text_rows
from safe_framework.data.tasks import TaskFormat
from safe_framework.data.text_length import TextLimit
from safe_framework.errors import DataError
from safe_framework.pretrained.base_model import context_length
from tests.support.toys import tokenizer


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> TextLimit:
    """A context of 150 words."""
    found = TextLimit(BaseSpec("some"), tokenizer)
    monkeypatch.setitem(vars(found), "tokens", 150)
    return found


def rows(path: Path, *values: dict[str, Any]) -> Path:
    """A file of rows."""
    path.write_text("".join(json.dumps(one) + "\n" for one in values), "utf-8")
    return path


LONG = {
    "question": {"question": "w3 " * 200, "answer": "w4"},
    "answer": {"question": "w3 " * 75, "answer": "w4 " * 100},
    "text": {"text": "w3 " * 200},
}


@pytest.mark.parametrize("part", LONG)
def test_a_row_that_does_not_fit_is_named(part: str, tmp_path: Path, limit: TextLimit) -> None:
    """Law: such a row stops the run by its name, or is left out and listed; others stay."""
    fine = {"text": "w3 " * 149} if part == "text" else {"question": "w3 " * 149, "answer": "w4"}
    file = rows(tmp_path / "rows.jsonl", fine, LONG[part])

    def read(skipped: list[DataError] | None) -> list[Any]:
        """The rows that are left."""
        if part == "text":
            return list(read_text_rows(file, limit=limit, skipped=skipped))
        return list(read_task(file, {}, TaskFormat(), skipped, limit=limit))

    with pytest.raises(DataError, match=r"rows.jsonl:2: the text is too long.*context 150"):
        read(None)
    skipped: list[DataError] = []
    assert len(read(skipped)) == 1
    assert [error.message.partition(": ")[0] for error in skipped] == ["rows.jsonl:2"]


CONFIGS = {
    "llama": (transformers.LlamaConfig(max_position_embeddings=64), 64),
    "gpt2": (transformers.GPT2Config(n_positions=33), 33),
    "bart": (transformers.BartConfig(max_position_embeddings=80), 80),
    "llava": (transformers.LlavaConfig(text_config={"max_position_embeddings": 99}), 99),
    "t5": (transformers.T5Config(), None),
    "mamba": (transformers.MambaConfig(), None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_context_of_a_type(name: str) -> None:
    """Law: it is what the config says, by whatever name; None where it says none."""
    config, expected = CONFIGS[name]
    assert context_length(config) == expected
