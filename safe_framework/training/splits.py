"""Who learns from what: each stage's rows, and what is kept from training to measure on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs

from safe_framework.config.schema import MonitorSpec, Recipe, stage_key
from safe_framework.data.examples import Example, distinct
from safe_framework.data.frame_cache import sample_key
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Sample
from safe_framework.training.curriculum import stage_indices
from safe_framework.training.sampling import shuffled_slice

_Item = TypeVar("_Item")


@attrs.frozen(eq=False)
class DataSplit:
    """What is trained on, and what is measured on meanwhile.

    Attributes:
        examples: that are trained on, of all stages.
        members: for each stage, the indices of its own among them.
        held_out: examples that the monitor measures gain on; none without a monitor.
        texts: that the monitor measures retention on; none without a monitor.
        foreign: samples by modality, from outside the task, to add to some of them.
    """

    examples: list[Example]
    members: tuple[list[int], ...] = ()
    held_out: tuple[Example, ...] = ()
    texts: tuple[str, ...] = ()
    foreign: Mapping[str, Sequence[Sample]] = attrs.field(factory=dict)


def split_data(
    recipe: Recipe,
    examples: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> DataSplit:
    """Divide a recipe's data.

    Args:
        recipe: its ``[[curriculum]]`` and ``[monitor]`` say how.
        examples: of ``train`` in ``[data]``.
        data: what else ``[data]`` names.
        encoders: by modality.

    Raises:
        DataError: a stage has no row, or there is nothing to measure on.
    """
    every, parts = _stages(recipe, examples, data, encoders)
    if recipe.monitor is None:
        return DataSplit(every, parts)
    held, left = _held(recipe.monitor, recipe.training.seed, every, data, encoders)
    new = {old: place for place, old in enumerate(left)}
    members = tuple([new[place] for place in part if place in new] for part in parts)
    for stage, part in zip(recipe.curriculum, members, strict=True):
        if not part:
            raise DataError(
                f"all training rows of the stage `{stage.name}` are held out",
                hint="give it more rows, or name `validation` in [data]",
            )
    texts = _texts(recipe, recipe.monitor, data)
    foreign = {
        name: data.samples("foreign_validation", name, encoder)
        for name, encoder in encoders.items()
        if data is not None and "foreign_validation" in data.sources
    }
    trained = [every[place] for place in left]
    return DataSplit(trained, members, tuple(held), tuple(texts), foreign)


def _stages(
    recipe: Recipe,
    examples: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> tuple[list[Example], tuple[list[int], ...]]:
    """All examples of all stages, and the places of each stage's."""
    every, parts = list(examples), []
    known: dict[str, list[int]] = {}
    for number, stage in enumerate(recipe.curriculum):
        places = list(range(len(examples)))
        if stage.train is not None:
            if stage.train not in known:
                found = (data or RecipeData(recipe)).examples(stage_key(number), encoders)
                known[stage.train] = list(range(len(every), len(every) + len(found)))
                every += found
            places = known[stage.train]
        parts.append(stage_indices(stage, every, places))
    return every, tuple(parts)


def _held(
    spec: MonitorSpec,
    seed: int,
    every: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> tuple[list[Example], list[int]]:
    """The examples to measure on, and the places of those that are left for training."""
    most = spec.max_examples or len(every)
    if data is not None and "validation" in data.sources:
        named = [one for one in data.examples("validation", encoders) if one.samples]
        if not named:
            raise DataError("no row of `validation` has a sample of any modality")
        return [
            named[place] for place in balanced_subset(named, min(most, len(named)), seed)
        ], list(range(len(every)))
    places = balanced_subset(every, min(most, max(1, round(spec.held_out * len(every)))), seed)
    contents = {_content(every[place]) for place in places}
    left = [place for place, one in enumerate(every) if _content(one) not in contents]
    if not left or not places:
        raise DataError(
            f"there are too few training rows to hold some of the {len(every)} out",
            hint="name `validation` in [data]",
        )
    return [every[place] for place in places], left


def balanced_subset(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """Places of ``count`` examples with samples, each answer as often as it comes in all of them.

    Of examples with the same samples there is one: the others must not be trained on.
    """
    first: dict[str, int] = {}
    for place in shuffled_slice(seed, 0, len(examples), len(examples)):
        if examples[place].samples:
            first.setdefault(_content(examples[place]), place)
    sorted_ = sorted(first.values(), key=lambda place: examples[place].answer)
    return sorted(evenly_spaced(sorted_, count))


def evenly_spaced(items: Sequence[_Item], count: int) -> list[_Item]:
    """``count`` of the items at equal distances; all of them if there are not so many.

    >>> evenly_spaced("abcdefgh", 3)
    ['b', 'e', 'g']
    """
    count = min(count, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def _content(example: Example) -> str:
    """What tells an example's samples from others; its place where it has none."""
    keys = [f"{name}:{sample_key(one)}" for name, one in sorted(example.samples.items())]
    return " ".join(keys) or example.place or str(id(example))


def _texts(recipe: Recipe, spec: MonitorSpec, data: RecipeData | None) -> list[str]:
    named = {} if data is None else data.sources
    own = "retention_validation" in named
    if data is None or not (own or "retention" in named):
        raise DataError(
            "[monitor] needs text of the base's own domain to measure retention on",
            hint='add `retention_validation = "texts.jsonl"` or `retention` to [data]',
        )
    texts = distinct(data.texts("retention_validation" if own else "retention"))
    trained = bool(recipe.retention) and not own
    share = max(1, round(spec.held_out * len(texts))) if trained else len(texts)
    if trained and share == len(texts):
        raise DataError(
            "there are too few texts in `retention` to hold one out",
            hint="name `retention_validation` in [data]",
        )
    order = shuffled_slice(recipe.training.seed, 0, len(texts), len(texts))
    return [texts[place] for place in order[: min(share, spec.max_texts or share)]]
