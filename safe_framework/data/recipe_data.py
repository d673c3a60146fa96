"""The data that a recipe names, each read once, and the rows of them that had to be left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attrs

from safe_framework.config.schema import DataSpec, MixSpec, Recipe, mixed
from safe_framework.data.addresses import sources_of
from safe_framework.data.chat_template import ChatTemplate
from safe_framework.data.conversations import Talk, last_of
from safe_framework.data.examples import (
    NO_ENCODERS,
    Example,
    TextRow,
    read_samples,
    read_task,
    read_text_rows,
)
from safe_framework.data.fields import FOREIGN, TEXTS, RowFields, row_fields, unread_error
from safe_framework.data.pictures import RowPictures, blind_base
from safe_framework.data.prompts import chats_that_go_on, may_chat, recipe_chat
from safe_framework.data.questions import check_bank, question_and_bank
from safe_framework.data.readers import MemoryRows, Source, is_dataset, iterate_rows
from safe_framework.data.tasks import CLASSES, NO_FIELDS, TaskFormat, unique
from safe_framework.data.text_length import TextLimit
from safe_framework.errors import DataError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained.base_model import load_base_processor, takes_pictures
from safe_framework.pretrained.base_outline import BaseOutline
from safe_framework.utils.progress import ProgressCallback, no_progress

_Read = TypeVar("_Read")


@attrs.frozen(eq=False)
class InMemory:
    """What a recipe could only name, since it is in memory.

    Attributes:
        rows: by the key of their source.
        processor: the base's; that of the recipe's base is loaded if None.
        config: the base's, likewise.
    """

    rows: Mapping[str, MemoryRows] = attrs.field(factory=dict)
    processor: Any = None
    config: Any = None


class RecipeData:
    """Reads what ``[data]`` names, as it says.

    Args:
        recipe: it must have ``[data]``.
        progress: called while pictures are opened.
        memory: what of it is in memory.

    Attributes:
        skipped: the error of each row that was left out, by key of ``[data]``.

    Raises:
        DataError: the recipe has none.
    """

    def __init__(
        self,
        recipe: Recipe,
        progress: ProgressCallback = no_progress,
        memory: InMemory | None = None,
    ) -> None:
        if recipe.data is None:
            raise DataError("the recipe has no [data]", hint='add `train = "train.jsonl"` to it')
        self.spec: DataSpec = recipe.data
        self._recipe, self._base, self._progress = recipe, recipe.base, progress
        self._memory = memory or InMemory()
        self.sources: dict[str, Source] = {**recipe.data_files(), **self._memory.rows}
        self.skipped: dict[str, list[DataError]] = {}
        self._read: dict[tuple[str, ...], Any] = {}
        self._limit = TextLimit(recipe.base, lambda: self._processor, self._memory.config)

    def examples(self, key: str, encoders: Mapping[str, Encoder]) -> list[Example]:
        """The task's rows in ``train`` or ``test``, of all datasets that have it, in turn.

        A classification without ``labels`` has those of its training rows.

        Raises:
            DataError: a row cannot be used; an answer of the test is none of the labels; or rows
                have fields that nothing reads, or pictures that the base does not take.
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
        called = mixed(key, name)

        def read(skipped: list[DataError] | None) -> list[Example]:
            """The examples of one dataset, with its labels."""
            with self._rows(called) as (fields, pictures):
                found = read_task(
                    self.sources[called],
                    encoders,
                    reading,
                    skipped,
                    fields=fields,
                    pictures=pictures,
                    limit=self._limit,
                )
            if reading.bank is not None:
                found = self._asked(key, name, one, found, encoders)
            if one.task != CLASSES or labels:
                return found
            own = tuple(unique([example.label for example in found]))
            return [attrs.evolve(example, labels=own) for example in found]

        return self._once((called,), read)

    def _asked(
        self,
        key: str,
        name: str,
        one: MixSpec,
        found: Sequence[Example],
        encoders: Mapping[str, Encoder],
    ) -> list[Example]:
        """The examples with the question of the bank that stands for each.

        Others are to be drawn from the answers of the training rows.
        """
        known = found if key == "train" else self._of("train", name, one, encoders)
        labels = tuple(unique([e.questions.label for e in known if e.questions]))
        asked = [example for example in found if example.questions]
        if asked and asked[0].questions:
            check_bank(asked[0].questions.bank, labels, asked[0].place)
        seed = self._recipe.training.seed
        return [
            example.with_questions(attrs.evolve(example.questions, labels=labels, seed=seed))
            if example.questions
            else example
            for example in found
        ]

    def reading(
        self, name: str, labels: tuple[str, ...] | None = None, *, rendered: bool = True
    ) -> TaskFormat:
        """How the rows of the dataset called ``name`` are read.

        Args:
            name: of the dataset.
            labels: of a classification; those that the recipe gives if None.
            rendered: with the base's chat template around the prompt, for which its processor is
                loaded.
        """
        one = self.spec.datasets()[name]
        question, bank = question_and_bank(one.question, self._recipe.folder)
        return TaskFormat(
            dataset=name,
            task=one.task,
            prompt=one.prompt or "",
            question=question,
            bank=bank,
            labels=one.labels if labels is None else labels,
            at_tokens=one.read_at == "tokens",
            fields=one.fields or NO_FIELDS,
            ignore=one.ignore,
            around=self._around(one) if rendered else str,
            talk=self._talk if rendered else None,
        )

    def _around(self, one: MixSpec | None = None) -> Callable[[str], str]:
        """What puts a prompt into the base's chat template, if there is to be one.

        Args:
            one: the dataset that asks; the texts of the base's own domain if None.
        """
        if not may_chat(self.spec, one) or self._chat is None:
            return str
        return self._chat.question

    def other_chats(self) -> dict[str, str]:
        """The text around ``{question}`` in chats that training has not, by what is different.

        There are none where nothing is asked in a chat.
        """
        return {} if self._chat is None else chats_that_go_on(self._chat, self.spec.prompt)

    @cached_property
    def _chat(self) -> ChatTemplate | None:
        """The base's chat template; its processor is loaded only if there may be a chat."""
        return recipe_chat(self.spec, self._processor) if may_chat(self.spec) else None

    @cached_property
    def _talk(self) -> Talk:
        """Renders rows that are conversations, in the base's chat template as the recipe has it."""
        specs = self._recipe.modalities.items()
        marked = [name for name, spec in specs if spec.markers or spec.inline]
        return Talk(
            lambda: self._chat or ChatTemplate.of(self._processor), marked, self.spec.system
        )

    @cached_property
    def _processor(self) -> Any:
        given = self._memory.processor
        return load_base_processor(self._base) if given is None else given

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
            with self._rows(key) as (fields, pictures):
                return read_text_rows(
                    self.sources[key],
                    self.spec.prompt,
                    around=self._around(),
                    talk=self._talk,
                    modalities=self._recipe.modalities,
                    encoders=encoders,
                    fields=fields,
                    pictures=pictures,
                    limit=self._limit,
                    skipped=skipped,
                )

        if key not in self.sources:
            return []
        return self._once((key, *sorted(encoders)), read)

    @contextmanager
    def _rows(self, key: str) -> Iterator[tuple[RowFields, RowPictures]]:
        """What a source's rows may hold; refuses afterwards what they held in vain."""
        fields = row_fields(self._recipe, key)
        pictures = RowPictures(
            self._recipe.modalities,
            lambda: self.takes_pictures,
            label=f"opening pictures of {key}",
            progress=self._progress,
        )
        yield fields, pictures
        if fields.unread:
            raise self._unread(key, fields)
        if pictures.blind is not None:
            raise blind_base(self._base.model, *pictures.blind)

    def _unread(self, key: str, fields: RowFields) -> DataError:
        """The error about fields that nobody reads, here and in files that are yet to be read."""
        found = [fields]
        for other, source in self.sources.items():
            if other != key and not is_dataset(source):
                found.append(row_fields(self._recipe, other))
                with suppress(DataError):  # which its own reading will raise
                    for row in iterate_rows(source):
                        found[-1].note(row)
        return unread_error(found)

    @cached_property
    def takes_pictures(self) -> bool:
        """Whether the base is given the rows' pictures."""
        config = self._memory.config
        if config is not None:
            return BaseOutline(config.to_dict()).sees
        return takes_pictures(self._base)

    def samples(self, key: str, modality: str, encoder: Encoder) -> list[Sample]:
        """A modality's samples in ``foreign`` or ``foreign_test``; none if it names none."""

        def read(skipped: list[DataError] | None) -> list[Sample]:
            """The samples in the file."""
            fields = row_fields(self._recipe, key)
            return read_samples(
                self.sources[key], modality, encoder, fields=fields, skipped=skipped
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

        The samples and pictures that its rows name are among its files. What a dataset of the hub
        holds is its owner's to change: a revision in its name pins it.
        """
        source = self.sources[key]
        if isinstance(source, str):
            return hashlib.sha256(source.encode()).hexdigest()
        if isinstance(source, MemoryRows):
            digests = [source.digest(), *map(_file_digest, self._named_files(key, source))]
            return hashlib.sha256(" ".join(digests).encode()).hexdigest()
        named = self._named_files(key, source)
        if source.is_file() and not named:
            return _file_digest(source)
        held = [source] if source.is_file() else sorted(filter(Path.is_file, source.rglob("*")))
        names = [path.relative_to(source).as_posix() for path in held]
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_file_digest, [*held, *named]))
        lines = [f"{name} {one}\n" for name, one in zip(names, digests[: len(held)], strict=True)]
        content = "".join([*lines, *(f"{one}\n" for one in digests[len(held) :])])
        return hashlib.sha256(content.encode()).hexdigest()

    def _named_files(self, key: str, source: Path | MemoryRows) -> list[Path]:
        """The files of samples and pictures that a source's rows name, outside of it, in order."""
        fields, modalities = row_fields(self._recipe, key), list(self._recipe.modalities)
        pictures, files = RowPictures(modalities), dict[Path, None]()
        for row in map(fields.of, iterate_rows(source)):
            with suppress(DataError):  # which reading it will raise
                row = last_of(row, modalities)
                held: list[Any] = [
                    one for each in sources_of(row, modalities).values() for one in each
                ]
                if key not in FOREIGN:
                    held += [one.source for one in pictures.of(row, by_file_name=key in TEXTS)]
                files |= dict.fromkeys(file for file in held if isinstance(file, Path))
        return [file for file in files if source not in file.parents and os.path.isfile(file)]


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
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}") from error
