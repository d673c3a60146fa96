"""Variants of training samples, from the recipe to the readings of a run."""

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from rich.console import Console

from safe_framework.config.read import read_recipe
from safe_framework.config.schema import AugmentSpec, TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.data.augmentation import Variation
from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import FrameCache
from safe_framework.interfaces.types import Frames
from safe_framework.training import alignment as alignment_module
from safe_framework.training.alignment import Alignment, prepare_projectors
from safe_framework.training.questions import Questions
from safe_framework.training.setup import Variations, encode_examples, variations_of
from safe_framework.utils.progress import WorkProgress
from tests.support.toys import ToyEncoder


def louder(sample: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sample times a number that only this variant has."""
    return sample * np.float32(generator.uniform(2.0, 3.0))


@pytest.fixture
def varied(model: SafeModel, monkeypatch: pytest.MonkeyPatch) -> Variations:
    """Two variants of the samples, by the encoder's own hook."""
    encoder = model.modality("touch").encoder
    monkeypatch.setattr(type(encoder), "augment", staticmethod(louder))
    return {"touch": [Variation(AugmentSpec(variants=2), encoder, 0, n) for n in (1, 2)]}


@pytest.fixture
def examples(samples: list[np.ndarray]) -> list[Example]:
    """Three with a sample, one without."""
    made = [Example("a b", "c", {"touch": sample}) for sample in samples[:3]]
    return [*made, Example("a b", "d")]


def stores(model: SafeModel, folder: Path) -> dict[str, FrameCache]:
    """Where frames are kept."""
    encoder = model.modality("touch").encoder
    return {"touch": FrameCache("touch", encoder, lambda given: encoder(**given), folder)}


def frames(row: object) -> torch.Tensor:
    """The frames of a row's only sample."""
    held = row.frames["touch"]
    assert isinstance(held, Frames)
    return held.values


def test_each_reading_meets_another_variant(
    model: SafeModel, varied: Variations, examples: list[Example], tmp_path: Path
) -> None:
    """Law: three readings in turn meet the sample and both its variants; then they come again."""
    progress = WorkProgress(Console(quiet=True))
    rows = encode_examples(model, examples, stores(model, tmp_path), progress, variations=varied)
    plain = encode_examples(model, examples, stores(model, tmp_path), progress)
    assert [len(row.variants) for row in rows] == [2, 2, 2, 0]
    assert [len(row.variants) for row in plain] == [0, 0, 0, 0]
    read = Questions(rows).read_in([0, 1, 0, 1, 0, 1, 0, 3])
    first = [frames(row) for row in read[0:7:2]]
    assert torch.equal(first[0], frames(plain[0])), "the first row's first reading"
    assert not torch.equal(frames(read[1]), frames(plain[1])), "its neighbour's is a variant"
    assert len({one.sum().item() for one in first[:3]}) == 3
    assert torch.equal(first[3], first[0])
    assert read[7] is rows[3]
    assert Questions(plain).read_in([0, 1]) == plain[:2], "the rows themselves where nothing varies"


def test_alignment_sees_the_variants(
    model: SafeModel,
    varied: Variations,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: the stage before fusion trains on the frames of variants, with their sample's words."""
    progress = WorkProgress(Console(quiet=True))
    rows = encode_examples(model, examples, stores(model, tmp_path), progress, variations=varied)
    seen: list[tuple[Frames, list[str]]] = []

    def align(stage, alignment, answers, spec, progress) -> None:
        """Note what is aligned."""
        seen.append((stage.frames(torch.arange(len(answers))), answers))

    monkeypatch.setattr(alignment_module, "align", align)
    recipe = read_recipe("quickstart", with_data=False)
    recipe = attrs.evolve(recipe, training=TrainingSpec(max_steps=1, align_steps=1))
    prepare_projectors(model, recipe, rows, Alignment(model, ["c", "d"]), progress)
    ((found, answers),) = seen
    assert answers == ["c"] * 9
    assert len({one.sum().item() for one in found.values}) == 9


def test_a_recipe_names_its_variants(model: SafeModel) -> None:
    """Law: a modality with `augment` has so many variants of its own seed; others have none."""
    recipe = read_recipe("quickstart", with_data=False)
    own = attrs.evolve(recipe.modalities["audio"], augment=AugmentSpec(variants=3, gain=6.0))
    training = attrs.evolve(recipe.training, seed=5)
    recipe = attrs.evolve(recipe, training=training, modalities={"touch": own})
    (found,) = variations_of(model, recipe).values()
    assert [(one.number, one.seed, one.spec.gain) for one in found] == [
        (1, 5, 6.0), (2, 5, 6.0), (3, 5, 6.0)
    ]  # fmt: skip
    own = attrs.evolve(own, augment=None)
    assert not variations_of(model, attrs.evolve(recipe, modalities={"touch": own}))


def test_an_encoder_leaves_samples_as_they_are() -> None:
    """Law: without a hook of its own an encoder varies nothing."""
    sample = np.ones(3)
    assert ToyEncoder().augment(sample, np.random.default_rng(0)) is sample
