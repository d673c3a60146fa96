"""A base is loaded with its own processor where its type has one, else with its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaProcessor, PreTrainedTokenizerFast, Qwen2VLConfig

from safe_framework.config.schema import BaseSpec
from safe_framework.errors import CheckpointError, SafeError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.base_model import load_base, load_base_processor
from safe_framework.pretrained.base_processor import (
    PicturesUnreadable,
    image_settings,
    takes_images,
)
from tests.support.seeing import llava, picture, save, seeing_bases, tokenizer
from tests.support.toys import llama


@pytest.fixture
def spec(tmp_path: Path) -> BaseSpec:
    """A LLaVA and its processor in a folder."""
    with quietly():
        return BaseSpec(model=str(save(tmp_path, *llava())))


def test_a_base_that_sees_has_its_processor(spec: BaseSpec) -> None:
    """What is loaded makes the very tensors that the processor that was saved made."""
    loaded: Any = load_base(spec)
    base, processor = loaded
    assert type(processor) is LlavaProcessor
    assert type(load_base_processor(spec)) is LlavaProcessor
    inputs: Any = {"text": ["<image> what"], "images": [picture("red")], "return_tensors": "pt"}
    wanted, found = llava()[1](**inputs), processor(**inputs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert base(**found).logits.isfinite().all()


def test_a_base_that_reads_has_its_tokenizer(tmp_path: Path) -> None:
    """A type that reads text alone has no processor, and nobody is warned."""
    with quietly():
        base: Any = llama()
        base.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = load_base(BaseSpec(model=str(tmp_path)))
    assert isinstance(found, PreTrainedTokenizerFast)
    assert not takes_images(found)
    assert image_settings(found) == {}


def test_without_its_files_it_reads_alone(spec: BaseSpec) -> None:
    """Without the image processor's files the tokenizer is loaded, and the warning says so."""
    (Path(spec.model) / "processor_config.json").unlink()
    with pytest.warns(PicturesUnreadable, match=r"\(llava\) is loaded without its image processor"):
        found = load_base_processor(spec)
    assert isinstance(found, PreTrainedTokenizerFast)


def qwen(folder: Path) -> Any:
    """A processor that holds a video processor, made without torchvision, in a folder."""
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor

    from safe_framework.pretrained.without_torchvision import without_videos

    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    made = without_videos(
        Qwen2VLProcessor,
        image_processor=Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer=tokenizer(special),
    )
    made.save_pretrained(folder)
    Qwen2VLConfig().save_pretrained(folder)
    return made


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchvision were not installed, where it is."""
    find: Callable[..., Any] = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name == "torchvision" else find(name, *more)
    )


@pytest.mark.usefixtures("no_torchvision")
def test_pictures_need_no_torchvision(tmp_path: Path) -> None:
    """A type whose processor takes videos too takes pictures without torchvision."""
    with quietly():
        made = qwen(tmp_path)
    found = load_base_processor(BaseSpec(model=str(tmp_path)))
    assert type(found) is type(made)
    inputs: Any = {
        "text": ["<|image_pad|> what"],
        "images": [picture("red", 40, 40)],
        "return_tensors": "pt",
    }
    first, second = made(**inputs), found(**inputs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert image_settings(found) == image_settings(made) != {}
    with pytest.raises(SafeError, match="video processor needs torchvision"):
        found(text=["<|video_pad|>"], videos=[[picture("red", 40, 40)] * 4], return_tensors="pt")


def test_another_picture_size_is_another_setting() -> None:
    """Settings that decide pixels tell image processors apart; an empty one is none."""
    _, processor = llava()
    before = image_settings(processor)
    processor.image_processor.size = {"shortest_edge": 16}
    assert image_settings(processor) != before
    assert "size" in before
    assert not any(key.endswith(("_type", "_class", "_format")) for key in before)


def test_what_needs_a_picture_needs_its_processor(tmp_path: Path) -> None:
    """A type that reads no text without a picture is refused without what reads pictures."""
    with quietly():
        save(tmp_path, *seeing_bases()["blip-2-opt"]())
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"\(blip-2\) reads no text without a picture") as e:
        load_base(BaseSpec(model=str(tmp_path)))
    assert "save the processor beside the model" in e.value.hint
