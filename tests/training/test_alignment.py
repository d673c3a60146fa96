"""Alignment before fusion takes any number of steps."""

import pytest
import torch
from rich.console import Console

from safe_framework import Frames
from safe_framework.config.schema import TrainingSpec
from safe_framework.interfaces.samples import Several
from safe_framework.interfaces.types import all_real
from safe_framework.training.alignment import (
    Alignment,
    AlignmentStage,
    align,
    samples_and_words,
)
from safe_framework.training.batches import TokenizedExample
from safe_framework.utils.progress import WorkProgress
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.support.toys import DIM, HIDDEN, WORDS


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 15])
def test_a_projector_is_aligned_in_few_steps(model, steps):
    """The rate rises and falls within them, and the projector has moved."""
    answers = list(WORDS[3:5]) * 4
    values = torch.randn(len(answers), 5, DIM)
    frames = Frames(values, all_real(values))
    projector = StandardProjector(DIM, HIDDEN, tokens=1, hidden_dim=8)
    before = projector.mlp[0].weight.clone()
    spec = TrainingSpec(align_steps=steps)
    stage = AlignmentStage(projector, frames.rows, {projector: 1e-2})
    align(stage, Alignment(model, answers), answers, spec, WorkProgress(Console(quiet=True)))
    assert not torch.equal(projector.mlp[0].weight, before)


def test_a_clip_of_many_rows_counts_once_for_each_word():
    """Pairs of few clips hold no more frames, and a clip that means two things is drawn to both."""
    clips = [Frames(values, all_real(values)) for values in torch.randn(3, 1, 4, DIM)]
    first, varied = (Several(clips[place] for place in both) for both in ((0, 1), (2, 1)))
    pairs = [
        TokenizedExample(
            [1], [2], "a", {"touch": first}, align=("a", "b"), variants=[{"touch": varied}]
        )
        for _ in range(5)
    ]
    samples, words = samples_and_words(pairs, "touch")
    assert [next(n for n, c in enumerate(clips) if c is one) for one in samples] == [0, 1, 2]
    assert words == ["a", "b", "a"]
