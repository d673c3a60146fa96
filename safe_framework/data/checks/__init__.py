"""Look at data before they are trained on, and say everything that is wrong at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np

from safe_framework.data.addresses import InlineSample, sources_of
from safe_framework.data.aligned_words import align_of
from safe_framework.data.checks.findings import (
    KINDS,
    PICTURE,
    Counts,
    DataReport,
    Finding,
    SeenRow,
    near_duplicates,
    repeats,
    shared_origins,
    split_of,
)
from safe_framework.data.checks.near_duplicates import Likeness, likeness_of
from safe_framework.data.checks.rows import (
    SampleRequirements,
    open_sample,
    picture_problems,
    sample_problems,
)
from safe_framework.data.conversations import last_of, turns_of, whole_of
from safe_framework.data.fields import FOREIGN, ORIGINS, TEXTS, RowFields, ignoring
from safe_framework.data.frame_cache import sample_key
from safe_framework.data.pictures import Look, RowPictures, blind_base
from safe_framework.data.readers import Row, Source, is_dataset, iterate_rows, no_rows
from safe_framework.data.tasks import CAPTIONS, TaskFormat, text_of
from safe_framework.errors import DataError
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.progress import ProgressCallback, no_progress

__all__ = ["DataReport", "Finding", "SampleRequirements", "check_data"]


NO_READINGS: Mapping[str, TaskFormat] = MappingProxyType({})
ANY_FIELDS: Mapping[str, RowFields] = MappingProxyType({})


def check_data(
    sources: Mapping[str, Source],
    modalities: Mapping[str, SampleRequirements],
    *,
    question: str | None = None,
    readings: Mapping[str, TaskFormat] = NO_READINGS,
    fields: Mapping[str, RowFields] = ANY_FIELDS,
    base: str = "",
    takes_pictures: Callable[[], bool] = lambda: True,
    progress: ProgressCallback = no_progress,
) -> DataReport:
    """Read every row, every sample and every picture of some data.

    Args:
        sources: what to read, by key of ``[data]``; another key is checked as ``train`` is.
        modalities: what to expect of each one's samples.
        question: what is asked where a row has no question.
        readings: how the rows of some sources are read, by key, if not as those of any other.
        fields: what the rows of some sources may hold, by key; those of others anything.
        base: what messages call the base.
        takes_pictures: whether the base does; asked when a row has one.
        progress: called after each row.
    """
    usual = TaskFormat(question=question)
    checks = [
        _SourceCheck(
            key,
            source,
            modalities,
            readings.get(key, usual),
            fields.get(key, RowFields()),
            RowPictures(
                modalities, takes_pictures, label=f"opening pictures of {key}", progress=progress
            ),
        )
        for key, source in sources.items()
    ]
    for check in checks:
        check.run(progress)
    unread = [check.fields for check in checks if check.fields.unread]
    for check in checks:
        check.note_unread(ignoring(unread), base)
    found = [finding for check in checks for finding in check.findings]
    everything = [seen for check in checks for seen in check.seen]
    for between in (repeats, shared_origins, near_duplicates):
        found += between(everything)
    counts = {check.key: check.counts() for check in checks}
    closed = [check for check in checks if check.reading.task != CAPTIONS]
    found += [one for check in closed for one in _untrained(check.key, check.seen, counts)]
    return DataReport(tuple(found), counts)


class _SourceCheck:
    """The check of one source, row by row."""

    def __init__(
        self,
        key: str,
        source: Source,
        modalities: Mapping[str, SampleRequirements],
        reading: TaskFormat,
        fields: RowFields,
        pictures: RowPictures,
    ) -> None:
        self.key, self.source, self.modalities = key, source, modalities
        self.reading, self.fields, self.pictures = reading, fields, pictures
        self.looks: Mapping[int, Look] = {}
        self.findings: list[Finding] = []
        self.seen: list[SeenRow] = []
        self.rows, self.seconds = 0, 0.0
        self.samples, self.answers = Counter[str](), Counter[str]()
        self.opened = 0
        self.likenesses: list[Likeness] = []  # of the row that is looked at

    def run(self, progress: ProgressCallback) -> None:
        """Look at every row."""
        try:
            total = 0 if is_dataset(self.source) else self._open_pictures()
            for row in iterate_rows(self.source):
                self.rows += 1
                self._row(row)
                progress(f"checking {self.key}", self.rows, total or self.rows)
            if not self.rows:
                raise no_rows(self.source)
        except DataError as error:
            hint = error.hint or "correct what [data] names"
            self._note("unreadable-data", str(self.source), error.message, hint)

    def _open_pictures(self) -> int:
        """Look at the pictures in files, several at a time; how many rows there are."""
        total = 0
        for row in iterate_rows(self.source):
            total += 1
            if self.key not in FOREIGN:
                with suppress(DataError):  # of which its row's own turn comes
                    whole = last_of(self.fields.of(row), self.modalities)
                    self.pictures.of(whole, by_file_name=self.key in TEXTS)
        in_files = [use for use in self.pictures.uses if isinstance(use[-1].source, Path)]
        self.pictures.uses = in_files  # the others are opened as their rows come by again
        self.looks = self.pictures.looks()
        return total

    def counts(self) -> Counts:
        """How much there was."""
        return Counts(self.rows, self.samples, self.seconds, self.answers, self.opened)

    def note_unread(self, hint: str, base: str) -> None:
        """Say which fields nobody reads, and that the base takes no pictures if it has some."""
        if self.fields.unread:
            place = self.fields.place
            message = self.fields.message().removeprefix(place).lstrip(": ")
            self._note("unread-field", place, message, hint)
        if self.pictures.blind is not None:
            place, field = self.pictures.blind
            error = blind_base(base, place, field)
            self._note("unseen-picture", place, *_message_and_hint(error, place))

    def _row(self, row: Row) -> None:
        if row.error is not None:
            self._note("bad-row", row.place, *_message_and_hint(row.error, row.place))
            return
        self.fields.note(row)
        row = self.fields.of(row)
        parts = whole_of if self.key in TEXTS else turns_of
        try:
            found = [row] if self.key in FOREIGN else parts(row, self.modalities)
        except DataError as error:
            self._note("bad-row", row.place, *_message_and_hint(error, row.place))
            return
        for part in found:
            if self.key in TEXTS:
                self._text(part)
            else:
                self._task(part)

    def _text(self, row: Row) -> None:
        text = self._part("empty-text", row, lambda: text_of(row))
        pictures = self._pictures(row)
        if text:
            contents = pictures or {("text", ""): text_fingerprint(text)}
            self.seen.append(SeenRow(self.key, row.place, contents, text, ""))

    def _task(self, row: Row) -> None:
        asked = answer = ""
        if self.key not in FOREIGN:
            asked = self._part("empty-question", row, lambda: self.reading.prompt_of(row))
            answer = self._part("empty-answer", row, lambda: self.reading.answer_of(row))
            self.answers.update([answer] if answer else [])
        found = {} if self.key in FOREIGN else self._pictures(row)
        try:
            held = sources_of(row, self.modalities)
            counts = {name: len(each) for name, each in held.items()}
            if asked:
                self.reading.prompt_of(row, counts)
            align_of(row, counts)
        except DataError as error:
            self._note("bad-row", row.place, *_message_and_hint(error, row.place))
            return
        if not held and self.modalities and not found:
            names = " or ".join(f"`{name}`" for name in self.modalities)
            hint = "add the name of its file, unless it is meant for the text alone"
            self._note("no-sample", row.place, f"it has no {names}", hint)
        for name, each in held.items():
            for number, source in enumerate(each):
                called = f"{name}[{number}]" if len(each) > 1 else name
                for (what, file), content in self._sample(row, name, source, called).items():
                    again = f"{file} in `{called}`"  # the same file twice in a row
                    found[what, again if (what, file) in found else file] = content
        if found:
            origins = {
                name: str(row.values[name]) for name in ORIGINS if row.values.get(name) is not None
            }
            likenesses, self.likenesses = tuple(self.likenesses), []
            self.seen.append(
                SeenRow(self.key, row.place, found, asked, answer, origins, likenesses)
            )

    def _pictures(self, row: Row) -> dict[tuple[str, str], str]:
        """What the row's pictures hold, by what they are and their files; bad ones differ."""
        try:
            pictures = self.pictures.of(row, by_file_name=self.key in TEXTS)
        except DataError as error:
            self._note("bad-row", row.place, *_message_and_hint(error, row.place))
            return {(PICTURE, ""): row.place}
        found: dict[tuple[str, str], str] = {}
        for number, picture in enumerate(pictures):
            field = self.pictures.uses[-1][1]
            problems = list(picture_problems(picture, self.looks))
            for fault in problems:
                self._note(fault.kind, row.place, f"`{field}`: {fault.message}", fault.hint)
            whole = not any(KINDS[fault.kind] == "error" for fault in problems)
            self.opened += whole
            file = str(picture.source.resolve()) if isinstance(picture.source, Path) else ""
            found[PICTURE, file or f"{number}"] = picture.digest if whole else row.place
            if whole and self.key not in TEXTS:
                self._note_likeness(np.asarray(picture.open()), PICTURE)
        self.pictures.uses.clear()  # so that pictures in rows are not kept in memory
        return found

    def _sample(
        self, row: Row, name: str, source: Path | InlineSample, called: str
    ) -> dict[tuple[str, str], str]:
        """What a row's sample holds, by what it is and its file; nothing if it is not read."""
        expected = self.modalities[name]
        sample, wrong = open_sample(source, expected)
        found = {}
        if sample is not None:
            wrong = sample_problems(sample, expected)
            self.samples[name] += 1
            self.seconds += getattr(sample, "seconds", 0.0)
            file = str(source.resolve()) if isinstance(source, Path) else ""
            found[name, file] = sample_key(sample)
            self._note_likeness(sample, name)
        for fault in wrong:
            self._note(fault.kind, row.place, f"`{called}`: {fault.message}", fault.hint)
        return found

    def _note_likeness(self, sample: Sample, what: str) -> None:
        likeness = likeness_of(sample, what)
        self.likenesses += [likeness] if likeness is not None else []

    def _part(self, kind: str, row: Row, read: Callable[[], str]) -> str:
        try:
            return read()
        except DataError as error:
            self._note(kind, row.place, *_message_and_hint(error, row.place))
            return ""

    def _note(self, kind: str, place: str, message: str, hint: str) -> None:
        self.findings.append(Finding(kind, self.key, place, message, hint))


def _message_and_hint(error: DataError, place: str) -> tuple[str, str]:
    """An error's message without the place that it begins with, and its hint."""
    return error.message.removeprefix(place).lstrip(": "), error.hint or "correct the row"


def _untrained(
    key: str, everything: Sequence[SeenRow], counts: Mapping[str, Counts]
) -> Iterator[Finding]:
    """Answers of a test that its training never gives."""
    train = key.replace("test", "train", 1)
    if split_of(key) != "test" or train not in counts:
        return
    known = {
        answer
        for one in counts
        if one == train or one.startswith("curriculum[")
        for answer in counts[one].answers
    }
    for seen in everything:
        if seen.answer and seen.answer not in known:
            known.add(seen.answer)
            message = f"the answer `{seen.answer}` is in no row of `{train}`"
            hint = f"add rows with it to `{train}`, or leave it out"
            yield Finding("untrained-answer", key, seen.place, message, hint)
