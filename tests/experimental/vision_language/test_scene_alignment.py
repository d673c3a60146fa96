"""Patches are drawn to the words for what they show, and lean to the side that they are on."""

import pytest
import torch
from torch.nn import functional

from safe_framework.experimental.vision_language.scene_alignment import (
    align_patches,
    columns,
    shown_by_patches,
)
from safe_framework.experimental.vision_language.scenes import COLOURS, NAMES, SIDES, scenes
from safe_framework.interfaces.types import IGNORED
from safe_framework.utils.progress import no_progress
from tests.experimental.vision_language.conftest import speller

GRID, DIM, HIDDEN = 6, 72, 64


class Projector(torch.nn.Module):
    """Two layers under the names that a LLaVA gives them."""

    def __init__(self):
        super().__init__()
        self.linear_1 = torch.nn.Linear(DIM, HIDDEN)
        self.linear_2 = torch.nn.Linear(HIDDEN, HIDDEN)

    def forward(self, values):
        """Features to tokens."""
        return self.linear_2(functional.gelu(self.linear_1(values)))


@pytest.fixture(scope="module")
def aligned():
    """An aligned projector, word embeddings, their tokenizer, and features that say all."""
    torch.manual_seed(0)
    tokenizer, shown = speller(), list(scenes(60, 0, "train"))
    embeddings = 0.3 + torch.randn(len(tokenizer), HIDDEN)
    kinds = torch.tensor([shown_by_patches(scene, GRID) for scene in shown]).clamp_min(0)
    features = functional.one_hot(kinds, DIM).float()
    features[..., -1] = columns(GRID)
    projector = Projector()
    align_patches(
        projector, embeddings, tokenizer, shown, features, steps=300, seed=0, progress=no_progress
    )
    with torch.no_grad():
        return projector(features), embeddings, tokenizer, shown


def word(embeddings, tokenizer, name):
    """The embedding of one word."""
    return embeddings[tokenizer(name)["input_ids"]].mean(0)


def test_tokens_point_at_what_they_show(aligned):
    """Among all names and colours a token is nearest to its own, from the middle of all words."""
    tokens, embeddings, tokenizer, shown = aligned
    centre = embeddings.mean(0)
    words = torch.stack([word(embeddings, tokenizer, name) for name in (*NAMES, *COLOURS)])
    near = functional.normalize(tokens - centre, dim=-1) @ functional.normalize(words - centre).T
    wanted = torch.tensor([shown_by_patches(scene, GRID) for scene in shown])
    right = (near.argmax(-1) == wanted)[wanted != IGNORED].float().mean()
    assert right > 0.95


def test_tokens_lean_to_their_side(aligned):
    """A token on the left leans to the word left, one on the right to the word right."""
    tokens, embeddings, tokenizer, _ = aligned
    left, right = (word(embeddings, tokenizer, side) for side in SIDES)
    lean = (functional.normalize(tokens - embeddings.mean(0), dim=-1)) @ (left - right)
    rising = torch.corrcoef(torch.stack([lean.flatten(), columns(GRID).repeat(len(tokens))]))
    assert rising[0, 1] < -0.95


def test_tokens_are_as_far_out_as_words(aligned):
    """Their mean square distance from the words' middle is that of the words."""
    tokens, embeddings, tokenizer, _ = aligned
    centre = embeddings.mean(0)
    words = torch.stack([word(embeddings, tokenizer, name) for name in (*NAMES, *COLOURS)])
    ratio = (tokens - centre).square().mean() / (words - centre).square().mean()
    assert abs(float(ratio) - 1) < 1e-3
