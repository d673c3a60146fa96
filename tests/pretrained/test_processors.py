"""A base's processor is loaded without torchvision, its part for videos refused by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers.utils

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.processors import load_processor
from tests.support.lanes import slow_but
from tests.support.seeing import picture, save, seeing_bases

WITH_VIDEOS = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm"]


@pytest.fixture(scope="module", params=slow_but(["qwen2-vl", "smolvlm"], WITH_VIDEOS))
def folder(request, tmp_path_factory):
    """A base whose processor wants torchvision for its part for videos."""
    assert not transformers.utils.is_torchvision_available()
    return save(tmp_path_factory.mktemp("base"), *seeing_bases()[request.param]())


def chat(processor):
    """A question about a picture, as the processor's template puts it."""
    parts = [{"type": "image"}, {"type": "text", "text": "what is this"}]
    return processor.apply_chat_template([{"role": "user", "content": parts}])


def test_pictures_are_read(folder):
    """Pictures come out as tensors, and another picture as others."""
    processor = load_processor(str(folder))
    red, blue = (
        processor(text=[chat(processor)], images=[picture(colour)], return_tensors="pt")
        for colour in ("red", "blue")
    )
    assert torch.equal(red["input_ids"], blue["input_ids"])
    assert not torch.equal(red["pixel_values"], blue["pixel_values"])


def test_videos_are_refused(folder):
    """A video is an error that says what to install."""
    processor = load_processor(str(folder))
    with pytest.raises(CheckpointError, match="torchvision") as raised:
        processor(text=[processor.video_token], videos=[[picture("red")] * 2])
    assert "pip install torchvision" in raised.value.hint


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_it_is_copied_and_pickled(folder, again):
    """A copy gives the same, and is of the published class."""
    processor = load_processor(str(folder))
    other = again(processor)
    assert type(other) is getattr(transformers, type(processor).__name__)
    call = {"text": [chat(processor)], "images": [picture("red")], "return_tensors": "pt"}
    assert torch.equal(processor(**call)["pixel_values"], other(**call)["pixel_values"])


def test_what_it_knows_of_videos_is_kept(folder, tmp_path):
    """Saved again, a processor has the settings of its part for videos that it was loaded with."""
    import json

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    settings["video_processor"] = {"fps": 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    processor = load_processor(str(tmp_path))
    processor.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert written["video_processor"] == settings["video_processor"]
    assert written["processor_class"] == type(processor).__name__


def test_others_are_what_the_auto_class_loads(tmp_path):
    """A processor without a part for videos comes from ``AutoProcessor``; a tokenizer too."""
    save(tmp_path / "llava", *seeing_bases()["llava"]())
    assert type(load_processor(str(tmp_path / "llava"))).__name__ == "LlavaProcessor"
