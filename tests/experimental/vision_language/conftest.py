"""Tiny parts to compose: a CLIP or DINOv2, a language model, and captioned pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safe_framework.experimental.vision_language.scenes import COLOURS, NAMES, SIDES, WORDINGS
from safe_framework.pretrained import quietly
from tests.support.toys import gpt2, llama, opt, tokenizer

SIDE, PATCH = 8, 4
_VISION = {
    "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip


def clip(folder: Path) -> None:
    """A CLIP with both of its towers, as checkpoints of it are."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    config = CLIPConfig(
        vision_config={**_VISION, "intermediate_size": 8},
        text_config={**text, "intermediate_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    """A DINOv2, which takes pictures of any size."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**_VISION)).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)


VISION = {"clip": clip, "dinov2": dinov2}
LANGUAGE = {"llama": llama, "gpt2": gpt2, "opt": opt}
SHOWN = {"red": "w3", "green": "w4", "blue": "w5", "white": "w6"}


def write_pictures(folder: Path, name: str, count: int) -> None:
    """A JSONL file of pictures of one colour each, whose captions name it."""
    random = np.random.default_rng(len(name))
    rows = []
    for number in range(count):
        colour = list(SHOWN)[number % len(SHOWN)]
        size = tuple(int(side) for side in random.integers(6, 12, 2))
        Image.new("RGB", size, colour).save(folder / f"{name}{number}.png")
        rows.append({"image": f"{name}{number}.png", "caption": f"w7 {SHOWN[colour]}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def speller() -> Any:
    """A tokenizer with a token for each word that scenes are asked about with."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [text for kind in WORDINGS.values() for text in (*kind.seen, *kind.unseen)]
    texts += [*NAMES, *COLOURS, *SIDES, "zero one two yes no none and an user assistant"]
    cut = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in cut.pre_tokenize_str(text)})
    found = {word: number for number, word in enumerate(["pad", "end", "unknown", *words])}
    made = Tokenizer(models.WordLevel(found, unk_token="unknown"))
    made.pre_tokenizer = cut
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="pad", eos_token="end", unk_token="unknown"
    )


def write_sprites(folder: Path) -> None:
    """A set of sprites as an npm package holds them: a patch of one colour for each name."""
    pictures = folder / "img" / "toy" / "64"
    pictures.mkdir(parents=True)
    rows = []
    for number, short in enumerate(NAMES.values()):
        colour = tuple(int(one) for one in np.random.default_rng(number).integers(0, 256, 3))
        Image.new("RGBA", (64, 64), (*colour, 255)).save(pictures / f"{number}.png")
        rows.append({"short_name": short, "image": f"{number}.png"})
    (folder / "emoji.json").write_text(json.dumps(rows), "utf-8")


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set of sprites."""
    folder = tmp_path_factory.mktemp("sprites")
    write_sprites(folder)
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each part, and captioned pictures."""
    folder = tmp_path_factory.mktemp("parts")
    with quietly():
        for name, write in VISION.items():
            torch.manual_seed(0)
            write(folder / name)
        for name, make in LANGUAGE.items():
            model: Any = make()
            model.save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
    write_pictures(folder, "train", 24)
    write_pictures(folder, "test", 8)
    return folder
