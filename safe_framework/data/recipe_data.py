"""The data that a recipe names, each read once, and the rows of them that had to be left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attrs

from safe_framework.config.schema import BaseSpec, DataSpec, MixSpec, Recipe, mixed
from safe_framework.data.examples import (
    NO_ENCODERS,
    Example,
    TextRow,
    read_samples,
    read_task,
    read_texts,
)
from safe_framework.data.prompts import render_prompt
from safe_framework.data.tasks import CLASSES, NO_FIELDS, TaskFormat, unique
from safe_framework.errors import DataError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Sample
from safe_framework.pretrained.base_model import load_base_processor, takes_pictures

_Read = TypeVar("_Read")
_PictureRow = TypeVar("_PictureRow", Example, TextRow)


class RecipeData:
    """Reads what ``[data]`` names, as it says.

    Args:
        recipe: it must have ``[data]``.

    Attributes:
        skipped: the error of each row that was left out, by key of ``[data]``.

    Raises:
        DataError: the recipe has none.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.data is None:
            raise DataError("the recipe has no [data]", hint='add `train = "train.jsonl"` to it')
        self.spec: DataSpec = recipe.data
        self._base: BaseSpec = recipe.base
        self._modalities = tuple(recipe.modalities)
        self.sources = recipe.data_files()
        self.skipped: dict[str, list[DataError]] = {}
        self._read: dict[tuple[str, ...], Any] = {}

    def examples(self, key: str, encoders: Mapping[str, Encoder]) -> list[Example]:
        """The task's rows in ``train`` or ``test``, of all datasets that have it, in turn.

        A classification without ``labels`` has those of its training rows.

        Raises:
            DataError: a row cannot be used; or an answer of the test is none of the labels.
        """
        return [
            example
            for name, one in self.spec.datasets().items()
            if mixed(key, name) in self.sources
            for example in self._of(key, name, one, encoders)
        ]

    def _of(
        self, key: str, name: str, one: MixSpec, encoders: Mapping[str, Encoder]
    ) -> list[Example]:
        labels = one.labels
        if key != "train" and one.task == CLASSES:
            labels = labels or self._of("train", name, one, encoders)[0].labels
        reading = self.reading(name, labels)
        source = self.sources[mixed(key, name)]

        def read(skipped: list[DataError] | None) -> list[Example]:
            """The examples of one dataset, with its labels."""
            found = read_task(source, encoders, reading, skipped)
            if one.task != CLASSES or labels:
                return found
            own = tuple(unique([example.answer for example in found]))
            return [attrs.evolve(example, labels=own) for example in found]

        return self._seen(self._once((mixed(key, name),), read))

    def reading(self, name: str, labels: tuple[str, ...] | None = None) -> TaskFormat:
        """How the rows of the dataset called ``name`` are read."""
        one = self.spec.datasets()[name]
        return TaskFormat(
            dataset=name,
            task=one.task,
            prompt=self._around(one.prompt or ""),
            question=one.question,
            labels=one.labels if labels is None else labels,
            at_tokens=one.read_at == "tokens",
            fields=one.fields or NO_FIELDS,
        )

    def _around(self, prompt: str) -> str:
        """The prompt in the base's chat template, if there is to be one."""
        return render_prompt(self.spec, prompt, self._processor) if self.spec.chat else prompt

    @cached_property
    def _processor(self) -> Any:
        return load_base_processor(self._base)

    @property
    def weights(self) -> dict[str, float]:
        """The share of the rows drawn from each dataset, by name."""
        return {name: one.weight for name, one in self.spec.datasets().items()}

    def trained_on(self) -> list[str]:
        """The keys of all data that training reads."""
        keys = [mixed("train", name) for name in self.spec.datasets()]
        return [key for key in (*keys, "retention", "foreign") if key in self.sources]

    def texts(self, key: str, encoders: Mapping[str, Encoder] = NO_ENCODERS) -> list[TextRow]:
        """The texts of ``retention`` or ``retention_test``; none if the recipe names none.

        Args:
            key: of ``[data]``.
            encoders: of the modalities whose samples are read beside the texts.
        """

        def read(skipped: list[DataError] | None) -> list[TextRow]:
            """The texts in the file."""
            return read_texts(
                self.sources[key],
                self._around(self.spec.prompt),
                modalities=self._modalities,
                encoders=encoders,
                fields=self.spec.fields,
                skipped=skipped,
            )

        if key not in self.sources:
            return []
        return self._seen(self._once((key, *sorted(encoders)), read))

    def _seen(self, rows: list[_PictureRow]) -> list[_PictureRow]:
        """The rows, unless they have pictures that nobody would see."""
        row = next((row for row in rows if row.images), None)
        if row is not None and not self.takes_pictures:
            raise DataError(
                f"{row.place}: it has a picture, but the base `{self._base.model}` takes none",
                hint="choose a base that takes pictures, or rename the field",
            )
        return rows

    @cached_property
    def takes_pictures(self) -> bool:
        """Whether the base is given the rows' pictures."""
        return takes_pictures(self._base)

    def samples(self, key: str, modality: str, encoder: Encoder) -> list[Sample]:
        """A modality's samples in ``foreign`` or ``foreign_test``; none if it names none."""

        def read(skipped: list[DataError] | None) -> list[Sample]:
            """The samples in the file."""
            return read_samples(
                self.sources[key], modality, encoder, fields=self.spec.fields, skipped=skipped
            )

        return self._once((key, modality), read) if key in self.sources else []

    def _once(self, key: tuple[str, ...], read: Callable[[list[DataError] | None], _Read]) -> _Read:
        if key not in self._read:
            skipped: list[DataError] | None = [] if self.spec.on_bad_row == "skip" else None
            self._read[key] = read(skipped)
            if skipped:
                self.skipped.setdefault(key[0], []).extend(skipped)
        found: _Read = self._read[key]
        return found

    def digest(self, key: str) -> str:
        """SHA-256 of what ``key`` names: the bytes of its files, or a dataset's name.

        What a dataset of the hub holds is its owner's to change: a revision in its name pins it.
        """
        source = self.sources[key]
        if isinstance(source, str):
            return hashlib.sha256(source.encode()).hexdigest()
        if source.is_file():
            return _file_digest(source)
        names = sorted(path for path in source.rglob("*") if path.is_file())
        lines = [f"{path.relative_to(source).as_posix()} {_file_digest(path)}\n" for path in names]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_by_modality(
    examples: list[Example], modality: str
) -> tuple[list[Example], list[Example]]:
    """The examples that carry a sample of ``modality``, and those that do not."""
    having = [example for example in examples if modality in example.samples]
    return having, [example for example in examples if modality not in example.samples]


def listing(skipped: Mapping[str, list[DataError]]) -> list[dict[str, str]]:
    """The rows that were left out, for a file of JSON lines."""
    return [
        {"data": key, "problem": error.message, "hint": error.hint}
        for key, errors in skipped.items()
        for error in errors
    ]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
