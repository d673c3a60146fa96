"""What ``safe check`` says of a base before anything is loaded, one test for each thing it says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import read_recipe
from safe_framework.pretrained.base_outline import known_types
from safe_framework.runs import base_check
from safe_framework.runs.base_check import check_base
from safe_framework.runs.run import run_recipe

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "architectures": ["LlamaForCausalLM"]}
LLAVA = {"model_type": "llava", "text_config": LLAMA, "vision_config": {}}
BLIP = {"model_type": "blip-2", "text_config": LLAMA, "vision_config": {}}
T5 = {"model_type": "t5", "num_layers": 4, "num_decoder_layers": 2, "is_encoder_decoder": True}
MLLAMA = {
    "model_type": "mllama",
    "vision_config": {},
    "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
}
SEEN = {"question": "what is this", "answer": "high", "audio": "0.wav", "image": "0.png"}
UNSEEN = {"question": "what is this", "answer": "high", "audio": "0.wav"}

RECIPE = """\
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "openai/whisper-tiny" }}
projector = {{ use = "standard", tokens = 2 }}
fusion = {{ use = "lora", rank = 2, layers = [0, -1] }}

[data]
train = "train.jsonl"
retention = "texts.jsonl"
"""


class World:
    """A recipe's folder, whose base is a config alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, folder / "base"
        self.base.mkdir()
        self.text = RECIPE.format(folder=folder)
        self.rows("train", UNSEEN)
        self.rows("texts", {"text": "the cat sat"})

    def rows(self, name, *rows):
        """Write a file of rows."""
        lines = [json.dumps(row) + "\n" for row in rows]
        (self.folder / f"{name}.jsonl").write_text("".join(lines))

    def check(self, config=None, *, processor=False, old="", new=""):
        """What is said of a base of this config."""
        if config is not None:
            (self.base / "config.json").write_text(json.dumps(config))
        if processor:
            (self.base / "processor_config.json").write_text("{}")
        assert old in self.text
        (self.folder / "recipe.toml").write_text(self.text.replace(old, new) if old else self.text)
        return check_base(read_recipe(self.folder / "recipe.toml"))

    def refused(self, *arguments, **options):
        """The problems of a base that will not do: message and hint of each."""
        with pytest.raises(RecipeError) as raised:
            self.check(*arguments, **options)
        return [(problem.message, problem.hint) for problem in raised.value.problems]


@pytest.fixture
def world(tmp_path):
    """A recipe on a base that reads text alone, with no picture anywhere."""
    return World(tmp_path)


@pytest.fixture
def installed(monkeypatch):
    """Say which modules are installed beside those that are."""

    def only(**there):
        monkeypatch.setattr(
            base_check, "find_spec", lambda name: there.get(name) or (
                None if name in there else find_spec(name)
            )
        )  # fmt: skip

    return only


def test_a_base_that_will_do(world):
    """Nothing is said of it."""
    assert world.check(LLAMA) == []
    assert world.check(T5) == []
    world.rows("train", SEEN)
    assert world.check(LLAVA, processor=True) == []


def test_a_base_that_is_not_on_this_machine(world, monkeypatch, tmp_path):
    """Nothing can be said of it, and nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    old = f"{world.folder}/base"
    assert world.check(old=old, new="acme/llama-of-nowhere") == []


def test_a_name_of_no_checkpoint(world):
    """A misspelt folder is found."""
    ((message, hint),) = world.refused(old="/base", new="/bass")
    assert (
        message == f"`{world.folder}/bass` is neither a folder, a card, nor a hub id `owner/name`"
    )
    assert "cards: " in hint


def test_a_folder_without_a_config(world):
    """A folder that is no checkpoint is found."""
    ((message, _),) = world.refused()
    assert message == f"the folder `{world.base}` has no config.json that can be read"


def test_a_type_that_continues_no_text(world):
    """A type that transformers has no such model for is found, with the nearest that it has."""
    ((message, hint),) = world.refused({"model_type": "lama"})
    assert message.endswith("has no model of type `lama` that continues texts")
    assert hint == "did you mean `llama`?"


def test_a_newer_transformers_may_have_more(world, monkeypatch):
    """A type that is not known here is not refused where transformers is newer."""
    monkeypatch.setattr(base_check, "version", lambda name: "99.1.0")
    assert world.check({"model_type": "lama"}) == []


def test_a_type_that_is_refused(world):
    """A type whose layers cannot be served is refused with the reason."""
    ((message, _),) = world.refused({"model_type": "musicgen"})
    assert message.startswith("a base of type `musicgen` cannot be given a modality: the layers")


def test_layers_that_are_not_there(world):
    """Each fused layer is one of the base, counted from either end."""
    ((message, hint),) = world.refused(LLAMA, old="[0, -1]", new="[0, 2, -3]")
    assert message == "`layers` names [2, -3], but the base has layers 0 to 1"
    assert hint == "choose among those; negative numbers count from the last"
    ((message, _),) = world.refused(T5, old="[0, -1]", new="[3]")
    assert message == "`layers` names [3], but the base has layers 0 to 1"


def test_layers_that_attend_to_pictures(world):
    """A layer that runs only beside a picture cannot be fused."""
    world.rows("train", SEEN)
    ((message, hint),) = world.refused(MLLAMA, processor=True, old="[0, -1]", new="[0, 1]")
    assert message == "`layers` names [1], which attend to pictures and run only beside one"
    assert hint == "choose others than 1"
    assert world.check(MLLAMA, processor=True) == []


def test_a_side_that_is_not_there(world):
    """A decoder alone has no encoder side."""
    old, new = "[modalities.audio]", 'side = "encoder"\n\n[modalities.audio]'
    ((message, _),) = world.refused(LLAMA, old=old, new=new)
    assert message == "a base of type `llama` has no encoder beside its decoder"
    assert world.check(T5, old=old, new=new) == []


def test_pictures_for_a_base_that_takes_none(world):
    """Rows with pictures are refused where the base reads text alone, each file with its row."""
    world.rows("train", UNSEEN, SEEN)
    world.rows("texts", {"text": "the cat sat", "images": ["0.png"]})
    findings = world.refused(LLAMA)
    assert [message for message, _ in findings] == [
        "train.jsonl:2 has a picture, but a base of type `llama` takes none",
        "texts.jsonl:1 has a picture, but a base of type `llama` takes none",
    ]
    assert (
        findings[0][1] == 'choose a base that takes pictures, or add `ignore = ["image"]` to [data]'
    )


def test_a_modality_called_image(world):
    """Its field is its own, and no picture of the base's."""
    world.rows("train", SEEN)
    assert world.check(LLAMA, old="modalities.audio", new="modalities.image") == []


def test_a_picture_under_another_name(world):
    """``[data.fields]`` says what the picture is called."""
    world.rows("train", {**UNSEEN, "photo": "0.png"})
    assert world.check(LLAMA) == []
    renamed = 'retention = "texts.jsonl"\nfields = { image = "photo" }'
    ((message, _),) = world.refused(LLAMA, old='retention = "texts.jsonl"', new=renamed)
    assert message.startswith("train.jsonl:1 has a picture")


def test_no_processor(world):
    """A base without its processor's files: a note, and an error where rows have pictures."""
    assert world.check(LLAVA) == [
        "its base takes pictures, but has no processor beside it: it will read text alone",
        "its base takes pictures, and no row has one: what it keeps of seeing is unknown",
    ]
    world.rows("train", SEEN)
    ((message, hint),) = world.refused(LLAVA)
    assert message == (
        f"train.jsonl:1 has a picture, but the folder `{world.base}` has no processor that could "
        "read it"
    )
    assert hint == "AutoProcessor.from_pretrained(...).save_pretrained(folder)"


def test_no_pillow(world, installed):
    """Pictures need Pillow."""
    world.rows("train", SEEN)
    installed(PIL=None)
    ((message, hint),) = world.refused(LLAVA, processor=True)
    assert message == "train.jsonl:1 has a picture, but Pillow is not installed"
    assert hint == "pip install 'safe-framework[image]'"


def test_no_torchvision(world, installed):
    """What a type reads with torchvision alone is an error for pictures, and a note for videos."""
    world.rows("train", SEEN)
    videos = {**LLAVA, "model_type": "qwen2_vl"}
    pictures = {**LLAVA, "model_type": "llama4"}
    assert known_types()["qwen2_vl"].torchvision == "videos"
    installed(torchvision=None)
    assert world.check(videos, processor=True) == [
        "its base cannot be given videos: torchvision is not installed"
    ]
    ((message, _),) = world.refused(pictures, processor=True)
    assert message == (
        "train.jsonl:1 has a picture, but bases of type `llama4` read pictures with torchvision "
        "alone"
    )
    installed(torchvision="there")
    assert world.check(videos, processor=True) == world.check(pictures) == []


def test_a_picture_in_every_row(world):
    """A base that runs on no text without a picture wants one in each row, retention's too."""
    world.rows("train", SEEN, UNSEEN)
    findings = world.refused(BLIP, processor=True)
    assert [message for message, _ in findings] == [
        "train.jsonl:2 has no picture, without which a base of type `blip-2` reads no text",
        "texts.jsonl:1 has no picture, without which a base of type `blip-2` reads no text",
    ]
    world.rows("train", SEEN)
    world.rows("texts", {"text": "the cat sat", "image": "0.png"})
    assert world.check(BLIP, processor=True) == []


def test_another_base_than_the_adapters(world):
    """The recipe in an adapter's folder names the class of base that it was trained on."""
    config = {"base": {"class": "GPT2LMHeadModel"}}
    (world.folder / "adapter_config.json").write_text(json.dumps(config))
    ((message, _),) = world.refused(LLAMA)
    assert message == (
        "the adapter beside this recipe was trained on a `GPT2LMHeadModel`, and the base is a "
        "`LlamaForCausalLM`"
    )
    config["base"]["class"] = "LlamaForCausalLM"
    (world.folder / "adapter_config.json").write_text(json.dumps(config))
    assert world.check(LLAMA) == []


def test_rows_that_cannot_be_read(world):
    """They are for ``safe data check`` to report."""
    (world.folder / "train.jsonl").write_text("no row\n")
    assert world.check(LLAMA) == []


def test_a_run_is_refused_for_it(world):
    """``run_recipe`` says the same before anything is loaded, and leaves no folder."""
    world.refused({"model_type": "lama"})
    with pytest.raises(RecipeError, match="no model of type `lama`"):
        run_recipe(str(world.folder / "recipe.toml"), output=world.folder / "run")
    assert not (world.folder / "run").exists()


def test_the_command_shows_where(world):
    """It leaves with 1, points at the recipe's lines, and loads neither torch nor transformers."""
    world.rows("train", SEEN)
    world.refused(LLAMA)
    code = (
        "import sys\nfrom safe_framework.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code, "check", "recipe.toml"]
    done = subprocess.run(command, cwd=world.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "recipe.toml:10:9: train.jsonl:1 has a picture, but a base of type `llama` takes none\n"
        '  10 | train = "train.jsonl"\n'
        "     |         ^^^^^^^^^^^^^\n"
        'hint: choose a base that takes pictures, or add `ignore = ["image"]` to [data]\n'
    )
