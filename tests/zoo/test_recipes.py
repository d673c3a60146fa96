"""Every type that a recipe is promised to work on: built, trained on pictures, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import safe_framework
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.errors import SafeError
from safe_framework.pretrained import quietly
from safe_framework.runs.run import run_recipe
from tests.support.lanes import slow_but
from tests.support.seeing import picture, reading_bases, save, seeing_bases
from tests.zoo.pictures import problems

RATE = 16_000
SEEING, READING = seeing_bases(), reading_bases()
NEEDS_A_PICTURE = {"blip-2-opt", "blip-2-t5", "instructblip"}
LAYERS = {"mllama": [0, 2]}  # the layer between them runs only beside a picture

RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{world}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = {layers} }}

[[retention]]
use = "distillation"

[data]
train = "train.jsonl"
test = "train.jsonl"
retention = "texts.jsonl"
retention_test = "texts.jsonl"

[training]
max_steps = 3
batch_size = 2
retention_batch_size = 2
projector_learning_rate = 1e-2
fusion_learning_rate = 1e-2

[evaluation]
max_new_tokens = 2
bootstrap = 20
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Whisper of one layer, tones and pictures, and a cache of these tests' own."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    folder = tmp_path_factory.mktemp("types")
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_source_positions=50, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    with quietly():
        WhisperModel(config).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder / "whisper")
    for name, hertz in (("low", 220), ("high", 1760)):
        soundfile.write(folder / f"{name}.wav", tone(hertz), RATE)
    picture("red").save(folder / "red.png")
    picture("blue", 24, 16).save(folder / "blue.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_CACHE", str(folder / "cache"))
        yield folder


def tone(hertz: float) -> Any:
    """A fifth of a second."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 5) / RATE)).astype("float32")


def write_recipe(world: Path, name: str, kind: str = "asked") -> Path:
    """A folder with the type's base, rows with and without pictures, and a recipe for them."""
    folder = world / kind / name
    makers = SEEING | READING
    with quietly():
        save(folder / "base", *makers[name]())
    shown = [{"image": str(world / "red.png")}, {"images": [str(world / "blue.png")]}]
    if name in READING:
        shown = [{}, {}]
    unseen = shown[0] if name in NEEDS_A_PICTURE else {}
    asked = [
        {"question": "what is this", "answer": sound, "audio": str(world / f"{sound}.wav"), **seen}
        for sound, seen in zip(
            ("low", "high", "low", "high"), (*shown, unseen, unseen), strict=True
        )
    ]
    texts = ["the cat sat on a mat", "the dog ran", "a dog sat"]
    kept = [{"text": text, **seen} for text, seen in zip(texts, (*shown, unseen), strict=True)]
    for file, rows in (("train", asked), ("texts", kept)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = RECIPE.format(folder=folder, world=world, layers=LAYERS.get(name, [0, 1]))
    (folder / "recipe.toml").write_text(recipe)
    return folder


@pytest.fixture(scope="module", params=slow_but(["llava"], [*SEEING, *READING]))
def run(request: pytest.FixtureRequest, world: Path) -> Path:
    """The folder of a finished run on one type."""
    folder = write_recipe(world, request.param)
    return run_recipe(str(folder / "recipe.toml"), output=folder / "run", quiet=True)


@pytest.fixture(scope="module")
def loaded(run: Path) -> safe_framework.SafeModel:
    """Its adapter, loaded again on its base."""
    return safe_framework.load(run / "adapter")


def question(model: Any, colour: str | None) -> dict[str, Any]:
    """Two rows of the same question beside a tone, about a picture of this colour if one."""
    pictures = {} if colour is None else {"images": [[picture(colour)]] * 2}
    batch = dict(
        model.processor(
            text=["what is this"] * 2, audio=[tone(220)] * 2, sampling_rate=RATE, **pictures
        )
    )
    batch.pop("labels", None)
    if decodes_separately(model.base):
        batch["decoder_input_ids"] = batch["input_ids"][:, -2:]
    return batch


def test_training_moves_the_adapter(run: Path, loaded: safe_framework.SafeModel) -> None:
    """Each loss is finite, and three steps move the sense away from where it began."""
    losses = [entry for entry in json.loads((run / "curves.json").read_text()) if "loss" in entry]
    assert losses
    assert all(math.isfinite(value) for one in losses for value in one.values())
    fresh = safe_framework.build(run.parent / "recipe.toml").trainable_parameters()
    moved = [not torch.equal(p, fresh[name]) for name, p in loaded.trainable_parameters().items()]
    assert sum(moved) > len(moved) / 2


def test_the_base_is_kept(run: Path) -> None:
    """Evaluation finds the base unchanged without the sense, on rows with pictures too."""
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["retention"]["absent"]["identical"] is True
    assert metrics["gain"]["accuracy"]["n"] == 4


def test_the_loaded_adapter_is_heard(run: Path, loaded: safe_framework.SafeModel) -> None:
    """A sample beside a picture changes the logits; beside text alone where the base reads that."""
    batch = question(loaded, None if run.parent.name in READING else "red")
    given = {key: value for key, value in batch.items() if not key.startswith("audio__")}
    with torch.no_grad():
        assert not torch.equal(loaded(**batch).logits, loaded(**given).logits)


def test_a_picture_reaches_the_answer(run: Path, loaded: safe_framework.SafeModel) -> None:
    """Another picture changes the logits on, off and absent, and off is the base with it.

    A base that reads text alone refuses one.
    """
    if run.parent.name in READING:
        with pytest.raises(SafeError, match="takes no images"):
            question(loaded, "red")
        return
    red, blue = question(loaded, "red"), question(loaded, "blue")
    assert list(problems(loaded, red, blue)) == []


CHATTING = [name for name in SEEING if name not in NEEDS_A_PICTURE | {"paligemma", "florence2"}]
"""The types that have a chat template, and take several pictures with a text."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATTING)
def test_chats_with_markers_and_several_pictures(world: Path, name: str) -> None:
    """Rows with two pictures are trained on in a chat, with markers and inline tokens."""
    folder = write_recipe(world, name, "chat")
    for file in ("train", "texts"):
        rows = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text().splitlines()]
        rows[0]["images"] = [rows[0].pop("image"), str(world / "blue.png")]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (folder / "recipe.toml").read_text()
    text = text.replace("[data]\n", "[data]\nchat = true\n")
    text = text.replace("[[retention]]", "markers = true\ninline = true\n\n[[retention]]", 1)
    (folder / "chat.toml").write_text(text)
    run = run_recipe(str(folder / "chat.toml"), output=folder / "run", quiet=True)
    losses = [entry for entry in json.loads((run / "curves.json").read_text()) if "loss" in entry]
    assert losses
    assert all(math.isfinite(value) for one in losses for value in one.values())
    assert json.loads((run / "metrics.json").read_text())["retention"]["absent"]["identical"]
    model = safe_framework.load(run / "adapter")
    pictures = [[picture("red"), picture("blue")]]
    batch = model.processor(
        question="what is this", images=pictures, audio=[tone(220)], sampling_rate=RATE
    )
    with torch.no_grad():
        heard, absent = model(**batch).logits, model(**batch, gate=0.0).logits
    assert heard.isfinite().all()
    assert not torch.equal(heard[:, -1], absent[:, -1])


def test_all_types_are_tried() -> None:
    """Fifteen that see and two that read."""
    assert len(SEEING) + len(READING) == 17
