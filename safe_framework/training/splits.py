"""How a recipe's data are split: the examples of each stage, and what is held out to measure on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs

from safe_framework.config.schema import MonitorSpec, Recipe, stage_key
from safe_framework.data.conversations import row_of
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.frame_cache import sample_key
from safe_framework.data.preview import no_texts_to_monitor
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample, each_of
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
    texts: tuple[TextRow, ...] = ()
    foreign: Mapping[str, Sequence[Sample]] = attrs.field(factory=dict)


def split_data(
    recipe: Recipe,
    examples: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> DataSplit:
    """Split a recipe's data.

    Args:
        recipe: its ``[[curriculum]]`` and ``[monitor]`` say how.
        examples: of ``train`` in ``[data]``.
        data: what else ``[data]`` names.
        encoders: by modality.

    Raises:
        DataError: a stage has no row, or there is nothing to measure on.
    """
    every, stages = _stages(recipe, examples, data, encoders)
    if recipe.monitor is None:
        return DataSplit(every, stages)
    held_out, remaining = hold_out(recipe.monitor, recipe.training.seed, every, data, encoders)
    new = {old: index for index, old in enumerate(remaining)}
    members = tuple([new[index] for index in part if index in new] for part in stages)
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
    trained = [every[index] for index in remaining]
    return DataSplit(trained, members, tuple(held_out), tuple(texts), foreign)


def _stages(
    recipe: Recipe,
    examples: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> tuple[list[Example], tuple[list[int], ...]]:
    """All examples of all stages, and the indices of each stage's."""
    every, parts = list(examples), []
    known: dict[str, list[int]] = {}
    for number, stage in enumerate(recipe.curriculum):
        indices = list(range(len(examples)))
        if stage.train is not None:
            if stage.train not in known:
                found = (data or RecipeData(recipe)).examples(stage_key(number), encoders)
                known[stage.train] = list(range(len(every), len(every) + len(found)))
                every += found
            indices = known[stage.train]
        parts.append(stage_indices(stage, every, indices))
    return every, tuple(parts)


def hold_out(
    spec: MonitorSpec,
    seed: int,
    every: Sequence[Example],
    data: RecipeData | None,
    encoders: dict[str, Encoder],
) -> tuple[list[Example], list[int]]:
    """The examples to measure on, and the indices of those that remain for training."""
    most = spec.max_examples or len(every)
    if data is not None and "validation" in data.sources:
        named = [one for one in data.examples("validation", encoders) if one.samples]
        if not named:
            raise DataError("no row of `validation` has a sample of any modality")
        return [
            named[index] for index in balanced_subset(named, min(most, len(named)), seed)
        ], list(range(len(every)))
    indices = balanced_subset(every, min(most, max(1, round(spec.held_out * len(every)))), seed)
    held_out_keys = {_sample_keys(every[index]) for index in indices}
    conversations = {row_of(every[index].place) for index in indices} - {""}
    remaining = [
        index
        for index, one in enumerate(every)
        if _sample_keys(one) not in held_out_keys and row_of(one.place) not in conversations
    ]
    if not remaining or not indices:
        raise DataError(
            f"there are too few training rows to hold some of the {len(every)} out",
            hint="name `validation` in [data]",
        )
    return [every[index] for index in indices], remaining


def balanced_subset(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """Indices of ``count`` examples with samples, each answer as often as it comes in all of them.

    Of examples with the same samples there is one: the others must not be trained on.
    """
    first: dict[str, int] = {}
    for index in shuffled_slice(seed, 0, len(examples), len(examples)):
        if examples[index].samples:
            first.setdefault(_sample_keys(examples[index]), index)
    sorted_ = sorted(first.values(), key=lambda index: examples[index].answer)
    return sorted(evenly_spaced(sorted_, count))


def evenly_spaced(items: Sequence[_Item], count: int) -> list[_Item]:
    """``count`` of the items at equal distances; all of them if there are not so many.

    >>> evenly_spaced("abcdefgh", 3)
    ['b', 'e', 'g']
    """
    count = min(count, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def _sample_keys(example: Example) -> str:
    """A key of an example's samples; where it comes from if it has none."""
    keys = [
        f"{name}:{sample_key(one)}"
        for name, held in sorted(example.samples.items())
        for one in each_of(held)
    ]
    return " ".join(keys) or example.place or str(id(example))


def _texts(recipe: Recipe, spec: MonitorSpec, data: RecipeData | None) -> list[TextRow]:
    named = {} if data is None else data.sources
    own = "retention_validation" in named
    if data is None or not (own or "retention" in named):
        raise no_texts_to_monitor()
    texts = list(dict.fromkeys(data.texts("retention_validation" if own else "retention")))
    trained = bool(recipe.retention) and not own
    share = max(1, round(spec.held_out * len(texts))) if trained else len(texts)
    if trained and share == len(texts):
        raise DataError(
            "there are too few texts in `retention` to hold one out",
            hint="name `retention_validation` in [data]",
        )
    order = shuffled_slice(recipe.training.seed, 0, len(texts), len(texts))
    return [texts[index] for index in order[: min(share, spec.max_texts or share)]]
