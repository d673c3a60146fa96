"""A model knows its base's own processor, and an adapter knows it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

import safe_framework
from safe_framework.config.schema import BaseSpec
from safe_framework.core.adapter import CONFIG
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.base_model import load_base
from tests.runs.conftest import write_whisper
from tests.support.seeing import llava, save
from tests.support.toys import llama, tokenizer

RECIPE = """
[base]
model = "{base}"

[modalities.audio]
encoder = {{ use = "whisper", model = "{whisper}" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = [0, 1] }}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with its processor, a recipe on it, and an adapter."""
    folder = tmp_path_factory.mktemp("seeing")
    write_whisper(folder / "whisper")
    with quietly():
        save(folder / "base", *llava())
    recipe = RECIPE.format(base=folder / "base", whisper=folder / "whisper")
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    safe_framework.build(folder / "recipe.toml").save_pretrained(folder / "adapter")
    return folder


def test_both_are_at_hand(world: Path) -> None:
    """A model that a recipe built has the processor, and the tokenizer inside it."""
    model = safe_framework.build(world / "recipe.toml")
    assert type(model.base_processor) is LlavaProcessor
    assert model.tokenizer is model.base_processor.tokenizer
    assert model.processor.tokenizer is model.processor.base_processor.tokenizer
    reads = SafeModel(llama(), words := tokenizer())
    assert reads.base_processor is reads.tokenizer is words
    assert SafeModel(llama()).tokenizer is None


def test_loading_gives_the_processor(world: Path) -> None:
    """So has a model that an adapter's folder loads."""
    assert type(safe_framework.load(world / "adapter").base_processor) is LlavaProcessor


def recorded(folder: Path) -> dict[str, Any]:
    """What an adapter knows of its base."""
    base: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))["base"]
    return base


def test_an_adapter_knows_how_its_base_sees(world: Path) -> None:
    """Another size of pictures is another base; a tokenizer alone says nothing of pictures."""
    base, processor = load_base(BaseSpec(model=str(world / "base")))
    assert "image_processor" in recorded(world / "adapter")
    safe_framework.load(world / "adapter", base=base, tokenizer=processor).detach()
    safe_framework.load(world / "adapter", base=base, tokenizer=processor.tokenizer).detach()
    processor.image_processor.size = {"shortest_edge": 16}
    with pytest.raises(AdapterError, match="image processor differ"):
        safe_framework.load(world / "adapter", base=base, tokenizer=processor)


def test_older_adapters_load(world: Path, tmp_path: Path) -> None:
    """An adapter that says nothing of pictures is not asked about them."""
    for path in (world / "adapter").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    del config["base"]["image_processor"]
    (tmp_path / CONFIG).write_text(json.dumps(config), "utf-8")
    loaded = safe_framework.load(tmp_path)
    assert "image_processor" in loaded.base_identity()
    assert list(loaded.modalities) == ["audio"]


def test_a_base_that_reads_is_known_as_before() -> None:
    """Without an image processor an adapter's identity has the parts that it always had."""
    identity = SafeModel(llama(), tokenizer()).base_identity()
    assert list(identity) == ["class", "model", "weights", "config", "tokenizer"]


def test_the_tokenizers_fingerprint_is_the_same(world: Path) -> None:
    """A base is known by its tokenizer whether a processor is around it or not."""
    base, processor = llava()
    whole = SafeModel(base, processor).base_identity()
    inner = SafeModel(base, processor.tokenizer).base_identity()
    assert whole["tokenizer"] == inner["tokenizer"] == recorded(world / "adapter")["tokenizer"]
