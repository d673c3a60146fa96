"""A base that runs on no text without a picture is attached to without an example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained import probe_cache, quietly
from safe_framework.verification.target import with_made_up_modality
from tests.runs.conftest import write_whisper
from tests.support.lanes import slow_but
from tests.support.seeing import save, seeing_bases
from tests.support.toys import tokenizer

NEED_PICTURES = ["blip-2-opt", "blip-2-t5", "instructblip"]
RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{folder}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = {layers} }}
"""


@pytest.mark.parametrize("name", slow_but(["llava"], seeing_bases()))
def test_every_type_attaches(name: str) -> None:
    """With its processor, and none but its model."""
    model = with_made_up_modality(*seeing_bases()[name]())
    assert list(model.modalities) == ["sense"]


@pytest.mark.parametrize("name", NEED_PICTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_config_describes_a_picture(name: str, dtype: torch.dtype) -> None:
    """Without a processor, the example is made from the config, in the base's own type."""
    base = seeing_bases()[name]()[0].to(dtype)
    for processor in (None, tokenizer()):
        model = with_made_up_modality(base, processor)
        assert model.stack.count == 2
        model.detach()


def test_the_first_error_is_told() -> None:
    """A base that runs on nothing is refused for what it said of plain text."""

    class Deaf(torch.nn.Module):
        """It has layers and no call."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
            self.config, self.table = config, torch.nn.Embedding(60, 2)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.table

        def forward(self, pixel_values: Any, **rest: Any) -> Any:
            raise ValueError("no words")

    base = Deaf(seeing_bases()["blip-2-opt"]()[0].config)
    with pytest.raises(UnsupportedBaseError, match="failed on `input_ids`, `attention_mask`"):
        SafeModel(base)


@pytest.mark.parametrize("layers", [[[0], [0]], [[0], [1]]])
def test_what_is_known_of_a_checkpoint_is_known_of_its_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: Sequence[list[int]]
) -> None:
    """A second build, of the same layers or others, runs on the same example as the first."""
    monkeypatch.setattr(probe_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(probe_cache, "MIN_AGE", 0.0)
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    write_whisper(tmp_path / "whisper")
    with quietly():
        save(tmp_path / "base", *seeing_bases()["blip-2-opt"]())
    path = tmp_path / "recipe.toml"
    for fused in layers:
        path.write_text(RECIPE.format(folder=tmp_path, layers=fused), "utf-8")
        model = safe_framework.build(path)
        assert model.base(**model._example_inputs()).logits.isfinite().all()
