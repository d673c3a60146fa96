"""A tiny base that sees, with a sense of two numbers, and questions about pictures and samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.pictures import Picture
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, Tokens
from tests.evaluation.conftest import AddTokens, PairEncoder
from tests.support.seeing import llava, picture

COLOURS = ("red", "blue", "green", "black")
WIDTH = 32
"""Of the base's hidden states."""


class WideProjector(Projector):
    """One token for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, WIDTH)

    def forward(self, frames: Frames) -> Tokens:
        return Tokens(self.linear(frames.values), frames.mask)


def seeing_model(scale: float = 3.0) -> SafeModel:
    """A LLaVA that can touch; ``scale`` is how loudly."""
    model = SafeModel(*llava())
    torch.manual_seed(0)
    fusion = AddTokens()
    with torch.no_grad():
        fusion.scale.fill_(scale)
    model.add_modality("touch", encoder=PairEncoder(), projector=WideProjector(), fusion=fusion)
    return model


def sample(number: int) -> np.ndarray:
    """Two numbers that differ from row to row."""
    return np.random.default_rng(number).normal([4 - 2 * (number % 5), 1]).astype(np.float32)


def seen(colour: str) -> Picture:
    """A picture of one colour."""
    return Picture(picture(colour), f"{colour}.png")


def examples(pictures: bool = True) -> list[Example]:
    """Questions with a sample, every second with a picture too."""
    return [
        Example(
            prompt="what is this" if number % 2 else "which dog",
            answer=COLOURS[number % 4],
            samples={"touch": sample(number)},
            place=f"test.jsonl:{number + 1}",
            fields={"kind": "both" if number % 2 else "touch"},
            images=(seen(COLOURS[number // 2 % 4]),) if number % 2 and pictures else (),
        )
        for number in range(12)
    ]


def texts() -> list[TextRow]:
    """Two texts, one with a picture that asks nothing, and six questions about pictures."""
    asked = [
        TextRow(
            text="what is this" if number % 2 else "is this red",
            images=(seen(COLOURS[number % 4]),),
            answer=COLOURS[number % 4] if number % 2 else "no",
            place=f"retention_test.jsonl:{number + 1}",
            fields={"kind": "name" if number % 2 else "told"},
            samples={"touch": sample(number)} if number < 3 else {},
        )
        for number in range(6)
    ]
    plain = [TextRow("the cat sat on the mat"), TextRow("the dog ran", (seen("white"),))]
    return [*plain, *asked]
