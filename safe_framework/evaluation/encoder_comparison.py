"""Which encoder, and which of its layers, to build on: linear probes before anything is trained.

Encoders are compared on training rows alone: each row is named by a probe that was fitted on other
rows, and, where rows name two sources or more, by one that never saw its source. Test rows would
choose for themselves what they are to measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.plugins import encoders_of
from safe_framework.config.schema import Recipe
from safe_framework.data.examples import Example
from safe_framework.data.fields import SOURCE
from safe_framework.data.frame_cache import FrameCache
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.tasks import CAPTIONS
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match, normalise
from safe_framework.evaluation.probe import Features, cross_validate, pool
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import each_of
from safe_framework.interfaces.types import Frames
from safe_framework.pretrained.location import cache_folder
from safe_framework.utils.progress import ProgressCallback, no_progress

_RESAMPLES = 1000


@attrs.frozen
class EncoderScore:
    """How well a linear probe reads what an encoder gives.

    Attributes:
        options: of the encoder.
        dim: width of its frames.
        own: whether these are the recipe's.
        accuracy: of probes fitted on other rows.
        other_sources: of probes that never saw a row's source; None without two of them.
    """

    options: Mapping[str, Any]
    dim: int
    own: bool
    accuracy: Estimate
    other_sources: Estimate | None


def compare_encoders(
    recipe: Recipe,
    modality: str | None = None,
    *,
    models: Sequence[str] = (),
    layers: Sequence[int] = (),
    most: int = 0,
    progress: ProgressCallback = no_progress,
) -> tuple[EncoderScore, ...]:
    """Probe the frames of a modality's training rows, encoder by encoder.

    Args:
        recipe: whose encoder and rows are used; nothing of it is trained.
        modality: of the recipe; its only one if None.
        models: values of the encoder's option ``model`` to try; the recipe's own if there are none.
        layers: values of its option ``layer``; every one that it takes if there are none.
        most: rows to probe, drawn of all; 0 for all.
        progress: called after each sample and each encoder.

    Raises:
        RecipeError: no encoder can be made so.
        DataError: the rows have too few samples, or of one answer alone.
        SafeError: the modality is not the recipe's.
    """
    name = _modality(recipe, modality)
    examples = list[Example]()
    found = list[EncoderScore]()
    own = recipe.modalities[name].encoder.options
    tried = list(_options(recipe, name, models, layers))
    for options in tried:
        encoder = encoders_of(_with_options(recipe, name, options))[name]
        if not examples:
            examples = _examples(recipe, name, encoder, most)
        features = _features(name, encoder, options, examples, progress)
        found.append(_score(features, examples, options, encoder.dim, options == own))
        progress("probing encoders", len(found), len(tried))
    return tuple(found)


def _modality(recipe: Recipe, name: str | None) -> str:
    names = list(recipe.modalities)
    if name is None and len(names) == 1:
        return names[0]
    if name not in recipe.modalities:
        raise SafeError(
            f"the recipe has the modalities {', '.join(names)}",
            hint=f"choose one: --modality {names[0]}",
        )
    return str(name)


def _options(
    recipe: Recipe, name: str, models: Sequence[str], layers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """The options of each encoder to try: of every model, every layer."""
    own = dict(recipe.modalities[name].encoder.options)
    for options in [{**own, "model": model} for model in models] or [own]:
        if "layer" not in own and not layers:
            yield options
            continue
        for layer in layers or range(_layers(recipe, name, options)):
            yield {**options, "layer": layer}


def _layers(recipe: Recipe, name: str, options: Mapping[str, Any]) -> int:
    """How many values its option ``layer`` takes, from 0 on, found by trying."""

    def made(layer: int) -> Encoder:
        """The encoder with that layer's hidden states."""
        return encoders_of(_with_options(recipe, name, {**options, "layer": layer}))[name]

    made(0)  # which says what is wrong with the other options
    count, step = 1, 1
    while step:
        try:
            made(count + step - 1)
        except RecipeError:
            step //= 2
        else:
            count, step = count + step, 2 * step
    return count


def _with_options(recipe: Recipe, name: str, options: Mapping[str, Any]) -> Recipe:
    spec = recipe.modalities[name]
    encoder = attrs.evolve(spec.encoder, options=dict(options))
    return attrs.evolve(recipe, modalities={name: attrs.evolve(spec, encoder=encoder)})


def _examples(recipe: Recipe, name: str, encoder: Encoder, most: int) -> list[Example]:
    """The training rows that have an answer to name and one sample."""
    rows = RecipeData(recipe).examples("train", {name: encoder})
    rows = [
        row for row in rows if row.task != CAPTIONS and len(each_of(row.samples.get(name))) == 1
    ]
    if most:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
        rows = [rows[number] for number in sorted(drawn.tolist())]
    if len({normalise(row.label) for row in rows}) < 2:
        raise DataError(
            f"the training rows with one sample of `{name}` have fewer than two answers",
            hint="a probe names answers: give it rows of several",
        )
    return rows


def _features(
    name: str,
    encoder: Encoder,
    options: Mapping[str, Any],
    examples: Sequence[Example],
    progress: ProgressCallback,
) -> Features:
    """Pooled frames of each row, from the cache that a run fills and reads, too."""
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        encoder.requires_grad_(False)
    encoder.eval()

    def encode(prepared: Mapping[str, Tensor]) -> Frames:
        """The frames of what was prepared."""
        found: Frames = encoder(**prepared)
        return found

    cache = FrameCache(name, encoder, encode, cache_folder() / "frames", options)
    samples = [each_of(row.samples[name])[0] for row in examples]
    frames = cache.frames(samples, progress, [row.place for row in examples])
    return torch.cat([pool(one) for one in frames])


def _score(
    features: Features,
    examples: Sequence[Example],
    options: Mapping[str, Any],
    dim: int,
    own: bool,
) -> EncoderScore:
    labels = [normalise(row.label) for row in examples]
    sources = [str(row.fields.get(SOURCE, "")) for row in examples]

    def accuracy(groups: Sequence[str] = ()) -> Estimate:
        """Of probes that left out each fold, or each group."""
        named = cross_validate(features, labels, groups)
        return bootstrap(exact_match(named, labels), resamples=_RESAMPLES, seed=0)

    other = accuracy(sources) if len(set(sources)) > 1 else None
    return EncoderScore(options, dim, own, accuracy(), other)
