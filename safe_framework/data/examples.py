"""Examples of a task: a prompt, the answer, and samples of new modalities; read from rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from safe_framework.data.addresses import InlineSample, sources_of
from safe_framework.data.aligned_words import align_of, aligned_words
from safe_framework.data.conversations import Talk, turns_of, whole_of
from safe_framework.data.fields import RowFields, plain_fields
from safe_framework.data.pictures import Picture, RowPictures
from safe_framework.data.questions import Asked, RowQuestions
from safe_framework.data.readers import Row, Source, iterate_rows, no_rows
from safe_framework.data.samples import read_for
from safe_framework.data.tasks import NO_FIELDS, QUESTIONS, TaskFormat, text_in, text_of
from safe_framework.data.text_length import TextLimit
from safe_framework.data.windows import try_sample
from safe_framework.errors import DataError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample, Several, each_of, sample_counts, together

_Read = TypeVar("_Read")

NO_ENCODERS: Mapping[str, Encoder] = MappingProxyType({})
"""No sample is read."""


@attrs.frozen(eq=False)
class Example:
    """One question about samples, with its answer.

    Attributes:
        prompt: the text that the model is given.
        answer: the text that it should continue with.
        samples: by modality one or several; a modality that the row lacks has no key.
        place: where it was read, as ``train.jsonl:12``.
        files: where they were read from, where all of a modality's are in files.
        task: what kind of answer it wants.
        dataset: the name of the dataset that it is of; empty where there is only one.
        labels: all the answers that there are, if they are known.
        at_tokens: whether the answer is read at the modality's tokens.
        fields: the row's texts, numbers and truth values, by which a curriculum chooses.
        images: the row's pictures, in order, for a base that sees.
        align: the words that alignment draws its samples to, one for all or one for each, where
            they are not the answer.
        questions: the others that it could be asked; None where it is one alone.
        asked: which of them it is asked.
    """

    prompt: str
    answer: str
    samples: Mapping[str, Sample | Several[Sample]] = attrs.field(factory=dict)
    place: str = ""
    files: Mapping[str, Path | Several[Path]] = attrs.field(factory=dict)
    task: str = QUESTIONS
    dataset: str = ""
    labels: tuple[str, ...] = ()
    at_tokens: bool = False
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    images: tuple[Picture, ...] = ()
    align: str | tuple[str, ...] | None = None
    questions: RowQuestions | None = None
    asked: Asked | None = None

    @property
    def aligned(self) -> tuple[str, ...]:
        """The words that alignment draws its samples to, as ``aligned_words`` says."""
        return aligned_words(self.answer, self.align, sample_counts(self.samples))

    @property
    def label(self) -> str:
        """The row's own answer, whatever it is asked."""
        return self.answer if self.questions is None else self.questions.label

    def judged(self, given: str) -> str:
        """What of an answer is compared with what of ``answer``, where either says more."""
        return given if self.asked is None else self.asked.conclusion(given)

    def with_questions(self, questions: RowQuestions) -> Example:
        """The same row with other questions, asked the one that stands for it."""
        return attrs.evolve(self, questions=questions).ask(questions.first())

    def ask(self, asked: Asked) -> Example:
        """The same row, asked a question of its bank.

        Yes and no are answered as questions are, also where rows are classified.
        """
        assert self.questions is not None
        label = self.questions.label
        prompt = self.questions.prompt_of(asked)
        align, alone = self.align, aligned_words(label, None, sample_counts(self.samples))
        if align is None and asked.answer != label and alone:  # that names the only sample
            align = label
        found = attrs.evolve(self, prompt=prompt, answer=asked.answer, align=align, asked=asked)
        if asked.verdicts is None:
            return found
        return attrs.evolve(found, task=QUESTIONS, labels=(), at_tokens=False)


@attrs.frozen
class TextRow:
    """A text of the base's own domain, with pictures where the base sees.

    Attributes:
        text: what the base is given.
        images: its pictures, in order.
        answer: what is right, where the row asks something; not part of ``text``.
        place: where it was read.
        fields: the row's texts, numbers and truth values.
        answers: what several people answered, where the row says it.
        samples: by modality, what belongs to the picture; only evaluation puts it beside the text.
        files: where they were read from.
    """

    text: str
    images: tuple[Picture, ...] = ()
    answer: str | None = None
    place: str = attrs.field(default="", eq=False)
    fields: Mapping[str, Any] = attrs.field(factory=dict, eq=False)
    answers: tuple[str, ...] = attrs.field(default=(), eq=False)
    samples: Mapping[str, Sample | Several[Sample]] = attrs.field(factory=dict, eq=False)
    files: Mapping[str, Path | Several[Path]] = attrs.field(factory=dict, eq=False)

    @property
    def people(self) -> tuple[str, ...]:
        """All that counts as an answer: what people said, else what is right; may be none."""
        return self.answers or (() if self.answer is None else (self.answer,))


def read_examples(
    source: Source,
    encoders: Mapping[str, Encoder],
    template: str = "{question}",
    *,
    question: str | None = None,
    fields: Mapping[str, str] = NO_FIELDS,
    skipped: list[DataError] | None = None,
) -> list[Example]:
    """Examples of a source with ``question``, ``answer`` and a file name, or several, by modality.

    File names are relative to the file that holds them. Sound is resampled to the encoder's rate;
    any other modality is read from ``.npy``, from ``.npz`` with one array, or from an image file.
    With one modality, ``file_name`` names its sample too.

    Args:
        source: a file, a folder or a dataset, as ``safe_framework.data.readers`` reads them.
        encoders: by modality.
        template: the prompt, around ``{question}``.
        question: what is asked where a row has no question.
        fields: what a field is called in this source, by the name that it has here.
        skipped: where to put the error of each row that cannot be used; None stops at the first.

    Raises:
        DataError: a row lacks a field or names a file that cannot be read, and ``skipped`` is
            None; the message gives the row's line. Or no row can be used.
    """
    reading = TaskFormat(prompt=template, question=question, fields=fields)
    return read_task(source, encoders, reading, skipped)


def read_task(
    source: Source,
    encoders: Mapping[str, Encoder],
    reading: TaskFormat,
    skipped: list[DataError] | None = None,
    *,
    fields: RowFields | None = None,
    pictures: RowPictures | None = None,
    limit: TextLimit | None = None,
) -> list[Example]:
    """Examples of a source whose rows are those of any task.

    Args:
        source: as for :func:`read_examples`.
        encoders: by modality.
        reading: the task, and how its rows are written.
        skipped: as for :func:`read_examples`.
        fields: of the rows; those that ``reading`` names if None.
        pictures: of the rows, for a base that takes them; every row's if None.
        limit: of the length of a row's text; None for none.

    Raises:
        DataError: as :func:`read_examples` does, or an answer is none of the labels, or a text is
            too long.
    """
    fields = fields or RowFields(reading.fields, reading.ignore)
    pictures = pictures or RowPictures(encoders)

    def example(row: Row) -> Example:
        """A row's example, tried on the encoders if bad ones may be skipped."""
        made = _example(row, encoders, reading, pictures)
        if limit is not None:
            limit.check(made.place, made.prompt, made.answer)
        if skipped is not None:
            _try(made.place, made.samples, encoders)
        return made

    return _each(source, fields, pictures, example, skipped, partial(turns_of, modalities=encoders))


def read_texts(
    source: Source,
    template: str = "{question}",
    *,
    fields: Mapping[str, str] | RowFields = NO_FIELDS,
    skipped: list[DataError] | None = None,
) -> list[str]:
    """The texts alone of what :func:`read_text_rows` reads, which says what the arguments are."""
    rows = read_text_rows(source, template, fields=fields, skipped=skipped)
    return [row.text for row in rows]


def read_text_rows(
    source: Source,
    template: str = "{question}",
    *,
    around: Callable[[str], str] = str,
    talk: Talk | None = None,
    modalities: Collection[str] = (),
    encoders: Mapping[str, Encoder] = NO_ENCODERS,
    fields: Mapping[str, str] | RowFields = NO_FIELDS,
    pictures: RowPictures | None = None,
    limit: TextLimit | None = None,
    skipped: list[DataError] | None = None,
) -> list[TextRow]:
    """The ``text`` of every row of a source, or its ``question`` in the template; and its pictures.

    Args:
        source: as for :func:`read_examples`.
        template: the prompt, around ``{question}``.
        around: what is made of a prompt with its question: a chat, where one is asked in.
        talk: renders conversations.
        modalities: of the recipe, of which a conversation here has no samples.
        encoders: by modality, of those whose samples are read where a row has a picture and an
            answer, so that it can be asked beside its own sample.
        fields: what a field is called in this source, by the name that it has here.
        pictures: of the rows, for a base that takes them; every row's if None.
        limit: of the length of a row's text; None for none.
        skipped: as for :func:`read_examples`.

    Raises:
        DataError: a row has no text, or a picture that cannot be had; the message gives its line.
    """
    fields = fields if isinstance(fields, RowFields) else RowFields(fields)
    pictures = pictures or RowPictures()

    def text(row: Row) -> TextRow:
        """What a row says."""
        made = TextRow(
            text=text_of(row, template, around, talk),
            images=pictures.of(row, by_file_name=True),
            answer=text_in(row, "answer") if row.values.get("answer") not in (None, "") else None,
            place=row.place,
            fields=plain_fields(row),
            answers=_answers_of(row),
        )
        if limit is not None:
            limit.check(row.place, made.text)
        if not (made.images and made.people):
            return made
        held = sources_of(row, encoders, by_file_name=False)  # which is the picture's
        samples = _read_samples(held, encoders, row)
        if skipped is not None:
            _try(row.place, samples, encoders)
        return attrs.evolve(made, samples=samples, files=_files(held))

    whole = partial(whole_of, modalities=modalities)
    return _each(source, fields, pictures, text, skipped, whole)


def read_samples(
    source: Source,
    modality: str,
    encoder: Encoder,
    *,
    fields: Mapping[str, str] | RowFields = NO_FIELDS,
    skipped: list[DataError] | None = None,
) -> list[Sample]:
    """The samples of every row of a source that names some for ``modality``.

    ``fields`` and ``skipped`` are those of :func:`read_examples`.

    Raises:
        DataError: no row names one, or one cannot be read; the message gives the row's line.
    """
    fields = fields if isinstance(fields, RowFields) else RowFields(fields)

    def sample(row: Row) -> list[Sample]:
        """The sample in a row."""
        found = _read_samples(sources_of(row, [modality]), {modality: encoder}, row)
        if skipped is not None:
            _try(row.place, found, {modality: encoder})
        return list(each_of(found.get(modality)))

    rows = _each(source, fields, RowPictures(), sample, skipped)
    samples = [one for found in rows for one in found]
    if not samples:
        raise DataError(
            f"no row of `{source}` has a `{modality}`",
            hint=f"add a field `{modality}` that names a file",
        )
    return samples


def _each(
    source: Source,
    fields: RowFields,
    pictures: RowPictures,
    read: Callable[[Row], _Read],
    skipped: list[DataError] | None,
    parts: Callable[[Row], Sequence[Row]] = lambda row: [row],
) -> list[_Read]:
    """What is read of each row, or of each of its parts."""
    found: dict[str, _Read] = {}
    for row in iterate_rows(source):
        try:
            if row.error is not None:
                raise row.error
            found |= {part.place: read(part) for part in parts(fields.of(row))}
            fields.note(row)
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(error)
    for place, fault in pictures.faults().items():
        if skipped is None:
            raise fault
        if found.pop(place, None) is not None:
            skipped.append(fault)
    if not found:
        raise no_rows(source)
    return list(found.values())


def _example(
    row: Row, encoders: Mapping[str, Encoder], reading: TaskFormat, pictures: RowPictures
) -> Example:
    held = sources_of(row, encoders)
    counts = {name: len(each) for name, each in held.items()}
    align = align_of(row, counts)
    return Example(
        prompt=reading.prompt_of(row, counts),
        answer=reading.answer_of(row),
        samples=_read_samples(held, encoders, row),
        place=row.place,
        files=_files(held),
        task=reading.task,
        dataset=reading.dataset,
        labels=reading.labels,
        at_tokens=reading.at_tokens,
        fields=plain_fields(row),
        images=pictures.of(row),
        align=align,
        questions=reading.questions_of(row, counts, _heard(align, counts)),
    )


def _heard(align: str | tuple[str, ...] | None, counts: Mapping[str, int]) -> tuple[str, ...]:
    """What each sample is, where the row says so."""
    if isinstance(align, str):
        return (align,) * max(counts.values(), default=1)
    return align or ()


_Held = Mapping[str, Sequence[Path | InlineSample]]


def _read_samples(
    held: _Held, encoders: Mapping[str, Encoder], row: Row
) -> dict[str, Sample | Several[Sample]]:
    return {
        name: together([read_for(encoders[name], one, row.place) for one in each])
        for name, each in held.items()
    }


def _files(held: _Held) -> dict[str, Path | Several[Path]]:
    found = dict[str, Path | Several[Path]]()
    for name, each in held.items():
        files = together([one for one in each if isinstance(one, Path)])
        if files is not None and len(each_of(files)) == len(each):
            found[name] = files
    return found


def _answers_of(row: Row) -> tuple[str, ...]:
    """What several people answered: texts, or objects with an ``answer``, as VQA has them."""
    value = row.values.get("answers")
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a table
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    listed = list(value) if isinstance(value, (list, tuple)) else []
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{row.place}: `answers` must be a list of texts that are not empty, not {value!r:.80}",
            hint="give what each person answered, or one `answer`",
        )
    return tuple(map(str, texts))


def _try(place: str, samples: Mapping[str, Any], encoders: Mapping[str, Encoder]) -> None:
    """Let each encoder look at its samples now: later nobody could leave them out."""
    for name, held in samples.items():
        try:
            for sample in each_of(held):
                try_sample(encoders[name], sample)
        except SampleError as error:
            raise DataError(f"{place}: {error.message}", hint=error.hint) from error
