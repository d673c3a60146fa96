"""Every type whose processor wants a video processor takes pictures without torchvision."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import transformers.utils

from safe_framework.config.schema import BaseSpec
from safe_framework.errors import SafeError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.base_model import load_base_processor
from tests.support.lanes import slow_but
from tests.support.seeing import picture, save, seeing_bases

WITH_VIDEOS = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm"]
VIDEOS = {"fps": 3, "num_frames": 4}


@pytest.fixture(scope="module", params=slow_but(["qwen2-vl", "smolvlm"], WITH_VIDEOS))
def folder(request, tmp_path_factory):
    """Such a base in a folder, whose processor was saved with settings for videos."""
    assert not transformers.utils.is_torchvision_available()
    with quietly():
        made = save(tmp_path_factory.mktemp("base"), *seeing_bases()[request.param]())
    settings = json.loads((made / "processor_config.json").read_text())
    settings["video_processor"] = VIDEOS
    (made / "processor_config.json").write_text(json.dumps(settings))
    return made


@pytest.fixture(scope="module")
def processor(folder):
    """The base's processor, loaded."""
    return load_base_processor(BaseSpec(model=str(folder)))


def call(processor, colour):
    """A question about a picture, as tensors."""
    parts = [{"type": "image"}, {"type": "text", "text": "what is this"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}])
    return processor(text=[text], images=[picture(colour)], return_tensors="pt")


def test_pictures_are_read(processor):
    """Another picture comes out as other pixels, in as many tokens."""
    red, blue = call(processor, "red"), call(processor, "blue")
    assert torch.equal(red["input_ids"], blue["input_ids"])
    assert not torch.equal(red["pixel_values"], blue["pixel_values"])


def test_videos_are_refused(processor):
    """A video is an error that names what is missing."""
    with pytest.raises(SafeError, match="torchvision"):
        processor(text=[processor.video_token], videos=[[picture("red")] * 2])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_it_is_copied_and_pickled(processor, again):
    """A copy is of the published class, and makes the same of a picture."""
    other = again(processor)
    assert type(other) is getattr(transformers, type(processor).__name__)
    first, second = call(processor, "red"), call(other, "red")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_it_knows_of_videos_is_kept(processor, tmp_path):
    """Saved again, it has the settings of its video processor that it was loaded with."""
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["video_processor"] == VIDEOS
    assert written["processor_class"] == type(processor).__name__
