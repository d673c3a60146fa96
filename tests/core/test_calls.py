"""What a call refuses: rows, keys and gates that would drop a sample silently."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from safe_framework.errors import SafeError, SampleError
from safe_framework.model import SafeModel
from tests.toys import ToyEncoder, ToyFusion, ToyProjector, attached, felt, llama, texts


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A Llama that can touch."""
    return attached(llama())


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_as_many_rows_as_texts(model: SafeModel, method: str, rows: int) -> None:
    """One sample for four texts is refused, not stretched over them as beams would be."""
    batch = texts(model.base, 4, 3)
    with pytest.raises(SampleError, match=f"`touch` came with {rows} rows for 4 texts"):
        getattr(model, method)(**batch, **felt(rows))


def test_rows_are_counted_in_positional_texts_and_in_embeddings(model: SafeModel) -> None:
    """The texts may be positional or embeddings."""
    batch = texts(model.base, 4, 3)
    with pytest.raises(SampleError, match="2 rows for 4 texts"):
        model(batch["input_ids"], **felt(2))
    with pytest.raises(SampleError, match="2 rows for 4 texts"):
        model(inputs_embeds=torch.zeros(4, 3, 16), **felt(2))
