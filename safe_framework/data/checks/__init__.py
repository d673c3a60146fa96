"""Look at data before they are trained on, and say everything that is wrong at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from safe_framework.data.checks.findings import Counts, DataReport, Finding, Seen, repeats, split_of
from safe_framework.data.checks.rows import SampleRequirements, open_sample, sample_problems
from safe_framework.data.examples import renamed, sources_of, text_of
from safe_framework.data.frame_cache import sample_key
from safe_framework.data.readers import Row, Source, is_dataset, iterate_rows, no_rows
from safe_framework.data.samples import InlineSample
from safe_framework.data.tasks import CAPTIONS, NO_FIELDS, TaskFormat
from safe_framework.errors import DataError
from safe_framework.utils.progress import ProgressCallback

__all__ = ["DataReport", "Finding", "SampleRequirements", "check_data"]


NO_READINGS: Mapping[str, TaskFormat] = MappingProxyType({})
TEXTS = ("retention", "retention_test", "retention_validation")
FOREIGN = ("foreign", "foreign_test", "foreign_validation")


def check_data(
    sources: Mapping[str, Source],
    modalities: Mapping[str, SampleRequirements],
    *,
    question: str | None = None,
    fields: Mapping[str, str] = NO_FIELDS,
    readings: Mapping[str, TaskFormat] = NO_READINGS,
    progress: ProgressCallback | None = None,
) -> DataReport:
    """Read every row and every sample of some data.

    Args:
        sources: what to read, by key of ``[data]``; another key is checked as ``train`` is.
        modalities: what to expect of each one's samples.
        question: what is asked where a row has no question.
        fields: what a field is called in the data, by the name that it has here.
        readings: how the rows of some sources are read, by key, if not as those of any other.
        progress: called after each row.
    """
    usual = TaskFormat(question=question, fields=fields)
    checks = [
        _SourceCheck(key, source, modalities, readings.get(key, usual))
        for key, source in sources.items()
    ]
    for check in checks:
        check.run(progress)
    found = [finding for check in checks for finding in check.findings]
    found += repeats([seen for check in checks for seen in check.seen])
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
    ) -> None:
        self.key, self.source, self.modalities = key, source, modalities
        self.reading = reading
        self.findings: list[Finding] = []
        self.seen: list[Seen] = []
        self.rows, self.seconds = 0, 0.0
        self.samples, self.answers = Counter[str](), Counter[str]()

    def run(self, progress: ProgressCallback | None) -> None:
        """Look at every row."""
        try:
            total = 0 if is_dataset(self.source) else sum(1 for _ in iterate_rows(self.source))
            for row in iterate_rows(self.source):
                self.rows += 1
                self._row(row)
                if progress is not None:
                    progress(f"checking {self.key}", self.rows, total or self.rows)
            if not self.rows:
                raise no_rows(self.source)
        except DataError as error:
            hint = error.hint or "correct what [data] names"
            self._note("unreadable-data", str(self.source), error.message, hint)

    def counts(self) -> Counts:
        """How much there was."""
        return Counts(self.rows, self.samples, self.seconds, self.answers)

    def _row(self, row: Row) -> None:
        if row.error is not None:
            self._note("bad-row", row.place, *_message_and_hint(row.error, row.place))
        elif self.key in TEXTS:
            self._text(renamed(row, self.reading.fields))
        else:
            self._task(renamed(row, self.reading.fields))

    def _text(self, row: Row) -> None:
        text = self._part("empty-text", row, lambda: text_of(row))
        if text:
            content = hashlib.sha256(text.encode()).hexdigest()
            self.seen.append(Seen(self.key, row.place, "text", "", content))

    def _task(self, row: Row) -> None:
        asked = answer = ""
        if self.key not in FOREIGN:
            asked = self._part("empty-question", row, lambda: self.reading.prompt_of(row))
            answer = self._part("empty-answer", row, lambda: self.reading.answer_of(row))
            self.answers.update([answer] if answer else [])
        try:
            held = sources_of(row, self.modalities)
        except DataError as error:
            self._note("bad-row", row.place, *_message_and_hint(error, row.place))
            return
        if not held and self.modalities:
            names = " or ".join(f"`{name}`" for name in self.modalities)
            hint = "add the name of its file, unless it is meant for the text alone"
            self._note("no-sample", row.place, f"it has no {names}", hint)
        for name, source in held.items():
            self._sample(row, name, source, asked, answer)

    def _sample(
        self, row: Row, name: str, source: Path | InlineSample, asked: str, answer: str
    ) -> None:
        expected = self.modalities[name]
        sample, wrong = open_sample(source, expected)
        if sample is not None:
            wrong = sample_problems(sample, expected)
            self.samples[name] += 1
            self.seconds += getattr(sample, "seconds", 0.0)
            file = str(source.resolve()) if isinstance(source, Path) else ""
            content = sample_key(sample)
            self.seen.append(Seen(self.key, row.place, name, file, content, asked, answer))
        for fault in wrong:
            self._note(fault.kind, row.place, f"`{name}`: {fault.message}", fault.hint)

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
    key: str, everything: Sequence[Seen], counts: Mapping[str, Counts]
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
