"""Before the language model is run: draw a picture's tokens to the words for what they show.

Each patch of the image encoder is drawn to the input embedding of the thing that it lies on, or of
the ground's colour; and, by its column, to the difference of the words "left" and "right", since
nothing else tells a LLaVA's language model where in the picture a token is from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from safe_framework.experimental.vision_language.scenes import COLOURS, NAMES, SIDES, Scene
from safe_framework.interfaces.types import IGNORED
from safe_framework.utils.progress import WorkProgress

_BATCH, _RATE, _DECAY = 256, 2e-3, 0.05
_TEMPERATURE, _SMOOTHING = 0.05, 0.05
_SIDEWAYS, _SIDE_WEIGHT = 0.4, 20.0  # how far a token at the edge leans to its side's word
_INSIDE, _OUTSIDE = 0.38, 0.6  # of a thing's size: what lies between is neither thing nor ground
_SAMPLE = 128  # pictures, to measure sizes on
_WORDS = (*NAMES, *COLOURS)


def align_patches(
    projector: Any,
    embeddings: Tensor,
    tokenizer: Any,
    scenes: Sequence[Scene],
    features: Tensor,
    *,
    steps: int,
    seed: int,
    progress: WorkProgress,
) -> None:
    """Train a LLaVA's projector, in place and in float32.

    Args:
        projector: of a composed base.
        embeddings: the language model's input embeddings, (vocabulary, hidden).
        tokenizer: its own.
        scenes: of the pictures.
        features: what enters the projector, (scenes, patches, dim).
        steps: of the optimizer.
        seed: of the patches that each sees.
        progress: the bars.
    """
    centre, device = embeddings.mean(0), embeddings.device
    targets = _word_embeddings(embeddings, tokenizer, _WORDS)
    pointing = functional.normalize(targets - centre, dim=-1)
    sides = _word_embeddings(embeddings, tokenizer, SIDES)
    sideways = functional.normalize(sides[0] - sides[1], dim=-1)
    grid = round(features.shape[1] ** 0.5)
    shown = torch.tensor([shown_by_patches(scene, grid) for scene in scenes]).flatten()
    lean = -_SIDEWAYS * columns(grid).repeat(len(scenes))
    flat = features.flatten(0, 1)
    things = ((shown >= 0) & (shown < len(NAMES))).nonzero().squeeze(1)
    ground = (shown >= len(NAMES)).nonzero().squeeze(1)
    with torch.no_grad():
        projector.linear_2.bias.copy_(centre)  # else all tokens begin pointing away from it
    optimizer = torch.optim.AdamW(projector.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, max(steps, 2))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):  # as many patches on things as on grounds
        some = torch.cat(
            [
                kind[torch.randint(len(kind), (_BATCH,), generator=generator)]
                for kind in (things, ground)
            ]
        )
        patches, wanted = flat[some].to(device).float(), shown[some].to(device)
        tokens = functional.normalize(projector(patches) - centre, dim=-1)
        loss = functional.cross_entropy(
            tokens @ pointing.T / _TEMPERATURE, wanted, label_smoothing=_SMOOTHING
        )
        off = tokens @ sideways - lean[some].to(device)
        loss = loss + _SIDE_WEIGHT * off.square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        optimizer.step()
        schedule.step()
        progress("aligning patches with words", step + 1, steps)
    _scale(projector, features[:_SAMPLE].to(device).float(), targets - centre, centre)


def shown_by_patches(scene: Scene, grid: int) -> list[int]:
    """For each patch, row by row, what it shows: a name's number, or after all names a colour's."""
    names, ground = list(NAMES), len(NAMES) + list(COLOURS).index(scene.colour)
    found = []
    for place in range(grid * grid):
        y, x = (place // grid + 0.5) / grid, (place % grid + 0.5) / grid
        reach = [((one.x - x) ** 2 + (one.y - y) ** 2) ** 0.5 / one.size for one in scene.sprites]
        nearest = min(range(len(reach)), key=reach.__getitem__)
        if reach[nearest] < _INSIDE:
            found.append(names.index(scene.sprites[nearest].name))
        else:
            found.append(ground if reach[nearest] > _OUTSIDE else IGNORED)
    return found


def columns(grid: int) -> Tensor:
    """Where each patch's middle is, row by row, from -1 at the left edge to 1 at the right."""
    return ((torch.arange(grid) + 0.5) / grid * 2 - 1).repeat(grid)


def _word_embeddings(embeddings: Tensor, tokenizer: Any, words: Sequence[str]) -> Tensor:
    """The mean embedding of each word's tokens, as within a sentence, (words, hidden)."""
    rows = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([embeddings[row].mean(0) for row in rows])


@torch.no_grad()
def _scale(projector: Any, features: Tensor, words: Tensor, centre: Tensor) -> None:
    """Give tokens the words' distance from the centre."""
    beside = projector(features) - centre
    size = words.square().mean().sqrt() / beside.square().mean().sqrt()
    second = projector.linear_2
    second.weight.mul_(size)
    second.bias.copy_(centre + size * (second.bias - centre))
