"""`safe compose` on scenes: trained, resumed after a kill, scored, written and found by name."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from safe_framework.cli import main
from safe_framework.config.read import read_recipe
from safe_framework.experimental.vision_language.compose import compose
from safe_framework.experimental.vision_language.packed_rows import QuestionPrompt
from safe_framework.experimental.vision_language.scene_training import (
    Steps,
    keep_texts,
    see,
    step_losses,
)
from safe_framework.experimental.vision_language.scenes import (
    KINDS,
    SpriteSets,
    scenes,
)
from safe_framework.experimental.vision_language.train import compose_recipe
from safe_framework.pretrained import resolve
from safe_framework.pretrained.base_model import load_base
from safe_framework.runs.run import _compose_if_missing
from safe_framework.utils.progress import WorkProgress, no_progress
from safe_framework.utils.tensors import bitwise_equal
from tests.experimental.vision_language.conftest import dinov2, speller
from tests.support.toys import llama

pytestmark = pytest.mark.slow

RECIPE = """
[base]
model = "{model}"

[base.compose]
vision = "{parts}/vision"
language = "{parts}/language"
image_size = 16
layer = 2
prompt = "user <image> {{question}} assistant "
align_steps = 8
max_steps = 6
batch_size = 2
learning_rate = 1e-3
warmup_steps = 1

[base.compose.scenes]
sprites = ["{sprites}"]
train = 12
validation = 4
test = 6
questions = 3
rank = 2
texts = "texts.jsonl"
texts_test = "texts.jsonl"
save_steps = 2

[modalities.touch]
encoder = {{ use = "whisper", model = "none" }}
projector = {{ use = "standard" }}
fusion = {{ use = "lora" }}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a tiny image encoder, a tiny language model that knows the words, and texts."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    dinov2(folder / "vision")
    tokenizer = speller()
    llama(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(
        folder / "language"
    )
    tokenizer.save_pretrained(folder / "language")
    rows = [{"text": "the cat and the dog"}, {"question": "what is a bell?"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "texts.jsonl").write_text(text, "utf-8")
    return folder


def written(small, sprites, model, name="recipe.toml"):
    """The recipe's file."""
    path = small / name
    path.write_text(RECIPE.format(model=model, parts=small, sprites=sprites), "utf-8")
    return path


@pytest.fixture(scope="module")
def made(small, sprites):
    """The folder that the command writes, and what it prints."""
    folder = small / "made"
    recipe = read_recipe(written(small, sprites, folder))
    found, scores = compose_recipe(recipe, no_progress)
    assert found == folder
    return folder, scores


def test_what_is_written(made):
    """An ordinary checkpoint with its scores on both splits, and a card; nothing else is left."""
    folder, scores = made
    note = json.loads((folder / "composed.json").read_text("utf-8"))
    assert set(note["scores"]) == {"validation", "test"}
    assert scores.scenes == 6
    assert set(scores.seen_wordings) == set(scores.unseen_wordings) == set(KINDS)
    assert scores.text_loss > 0
    assert scores.text_loss_before > 0
    exact = note["scores"]["test"]["seen_wordings"]["colour"]
    assert (exact["value"], exact["n"]) == (scores.seen_wordings["colour"].value, 6)
    assert "held-out scenes" in (folder / "README.md").read_text("utf-8")
    assert [path.name for path in folder.parent.glob(".made*")] == []


def test_it_is_a_base_that_sees(made):
    """It loads as any base does, with its processor, and a picture reaches its answer."""
    from PIL import Image

    folder, _ = made
    recipe = read_recipe(folder.parent / "recipe.toml")
    model, processor = load_base(recipe.base)
    logits = []
    for colour in ("red", "blue"):
        picture = Image.new("RGB", (16, 16), colour)
        batch = processor(images=[picture], text=["<image> what is it?"], return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert logits[0].isfinite().all()
    assert not torch.equal(*logits)


def test_updates_are_merged_into_the_language_model(made, small):
    """Its language model is another than the part's, and the image encoder is the part."""
    from transformers import AutoModel, AutoModelForCausalLM

    assert made
    model, _ = load_base(read_recipe(small / "recipe.toml").base)
    part = AutoModelForCausalLM.from_pretrained(small / "language").base_model.state_dict()
    ours = model.model.language_model.state_dict()
    changed = [
        name for name in part if not bitwise_equal(ours[name][: len(part[name])], part[name])
    ]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    tower = AutoModel.from_pretrained(small / "vision").state_dict()
    held = model.model.vision_tower.state_dict()
    assert len(held) > 10
    assert all(bitwise_equal(value, tower[name]) for name, value in held.items())


_KILLED = """
import os, signal, sys
from pathlib import Path
from safe_framework.config.read import read_recipe
from safe_framework.experimental.vision_language import scene_training
from safe_framework.experimental.vision_language.train import compose_recipe
from safe_framework.utils.progress import no_progress

def killed(label, done, total, note=""):
    if label == sys.argv[2] and done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

compose_recipe(read_recipe(sys.argv[1]), killed)
"""


@pytest.mark.parametrize(
    ("label", "done", "left"),
    [("training on scenes", 5, [5, 6]), ("looking at test scenes", 6, [])],
    ids=["training", "scoring"],
)
def test_a_killed_command_goes_on(made, small, sprites, label, done, left):
    """After a kill the same command goes on from the last checkpoint, to the same weights."""
    folder = small / f"killed-{done}"
    path = written(small, sprites, folder, "killed.toml")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _KILLED, str(path), label, str(done)]
    killed = subprocess.run(command, env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    (kept,) = small.glob(f".killed-{done}-training-*")
    assert len(list(kept.glob("checkpoint-*"))) == 2
    steps = []

    def note(label, done, total, note=""):
        """Which steps are run, and what is made anew."""
        steps.append((label, done))

    compose_recipe(read_recipe(path), note)
    assert [done for label, done in steps if label == "training on scenes"] == left
    assert not [label for label, _ in steps if label.startswith(("aligning", "looking at scenes"))]
    first, again = (load_file(one / "model.safetensors") for one in (made[0], folder))
    assert first.keys() == again.keys()
    assert all(bitwise_equal(first[name], again[name]) for name in first)


def load_file(path):
    """The tensors of a file."""
    from safetensors.torch import load_file

    return load_file(path)


def test_the_command_prints_a_table(made, small, sprites, capsys, tmp_path):
    """The command says how well each kind of question is answered, and where the base is."""
    path = written(small, sprites, tmp_path / "out", "printed.toml")
    assert main(["compose", str(path), "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["6", "held-out", "scenes"]
    assert [line.split()[0] for line in printed[1:10]] == list(KINDS)
    assert printed[10].startswith("loss of texts ")
    assert printed[-1] == str(tmp_path / "out")


def test_a_plain_name_is_kept_in_the_cache(small, sprites, tmp_path, monkeypatch):
    """A run makes the base that it needs, once, where every recipe finds it by its name."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path))
    recipe = read_recipe(written(small, sprites, "toy-sees", "named.toml"))
    said = io.StringIO()
    console = Console(file=said, width=200)
    _compose_if_missing(recipe, console, WorkProgress(Console(file=io.StringIO())))
    assert "the base `toy-sees` is made first, once, as `safe compose " in said.getvalue()
    assert Path(resolve("toy-sees")) == tmp_path / "composed" / "toy-sees"
    first = said.getvalue()
    _compose_if_missing(recipe, console, WorkProgress(console))
    assert said.getvalue() == first


def test_at_first_nothing_is_lost(small, sprites):
    """Before the first step the kept texts' predictions are the language model's own."""
    recipe = read_recipe(written(small, sprites, "unused", "first.toml"))
    spec = recipe.base.compose
    model, processor = compose(spec.vision, spec.language, image_size=16, layer=2)
    sets = SpriteSets([sprites])
    shown = list(scenes(4, 0, "train", styles=1))
    seen = see(model, processor, sets, shown, no_progress, "looking")
    assert seen.features.shape == (4, 16, 8)
    texts = keep_texts(model, [[3, 4, 5], [6, 7]], 0, no_progress)
    steps = Steps(
        seen, texts, QuestionPrompt(processor.tokenizer, spec.prompt, 16), spec, model.dtype
    )
    assert len(steps) == 6
    step = steps[0]
    with torch.no_grad():
        task, retention = step_losses(model, step)
    assert task > 0
    assert abs(float(retention)) < 1e-3  # they are kept in 16 bits
    assert step.answers < len(step.packed.targets) == step.answers + 3
