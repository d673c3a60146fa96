"""What a check of data finds, in rows and between them, and how it adds up.

Between rows there can be repeats, contradictions, and leaks from one split to another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs

Severity = Literal["error", "warning"]

KINDS: dict[str, Severity] = {
    "unreadable-data": "error",
    "bad-row": "error",
    "empty-question": "error",
    "empty-answer": "error",
    "empty-text": "error",
    "missing-file": "error",
    "unreadable-file": "error",
    "not-finite": "error",
    "refused": "error",
    "leak": "error",
    "wrong-rate": "warning",
    "silence": "warning",
    "clipped": "warning",
    "too-long": "warning",
    "duplicate": "warning",
    "contradiction": "warning",
    "untrained-answer": "warning",
    "no-sample": "warning",
}
"""Every kind of finding: with an error, training or its measures would fail or lie."""


@attrs.frozen
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: one of :data:`KINDS`.
        data: key of ``[data]``, or the file's name.
        place: the row, as ``train.jsonl:12``.
        message: what is wrong, without the place.
        hint: what to do about it.
    """

    kind: str
    data: str
    place: str
    message: str
    hint: str

    @property
    def severity(self) -> Severity:
        """Whether it is an error."""
        return KINDS[self.kind]


@attrs.frozen
class Counts:
    """How much one source holds.

    Attributes:
        rows: all of them, bad ones too.
        samples: of each modality.
        seconds: of sound in all samples together.
        answers: how often each one is given.
    """

    rows: int
    samples: Counter[str]
    seconds: float
    answers: Counter[str]


@attrs.frozen
class DataReport:
    """Everything that a check found.

    Attributes:
        findings: in the order of the rows.
        counts: by key of ``[data]``.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, Counts]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> str:
        """The report as text for programs; ``ok`` is whether there is no error."""
        findings = [{"severity": f.severity, **attrs.asdict(f)} for f in self.findings]
        counts: dict[str, Any] = {key: attrs.asdict(one) for key, one in self.counts.items()}
        report = {"ok": not self.errors, "findings": findings, "counts": counts}
        return json.dumps(report, indent=2, ensure_ascii=False)


@attrs.frozen
class Seen:
    """One sample or text as it stood in a row.

    Attributes:
        data: key of ``[data]``.
        place: the row.
        what: what it is in messages, such as ``audio``.
        file: its resolved file name; empty where there is none.
        content: hash of its content.
        question: what the row asks about it.
        answer: what it should be answered.
    """

    data: str
    place: str
    what: str
    file: str
    content: str
    question: str = ""
    answer: str = ""


def repeats(everything: Sequence[Seen]) -> Iterator[Finding]:
    """Contents that come again: in another split, or with the same question in one."""
    first: dict[tuple[str, str], Seen] = {}
    asked: dict[tuple[str, str, str, str], Seen] = {}
    for seen in everything:
        known = first.setdefault((seen.what, seen.content), seen)
        if split_of(known.data) != split_of(seen.data):
            yield _leak(known, seen)
            continue
        before = asked.setdefault((seen.data, seen.what, seen.content, seen.question), seen)
        if before is not seen:
            yield _again(before, seen)


def split_of(key: str) -> str:
    """Which split a key of ``[data]`` is; datasets of a mix and stages may share it.

    >>> split_of("train of captions"), split_of("retention_test")
    ('train', 'retention_test')
    """
    return "train" if key.startswith("curriculum[") else key.partition(" of ")[0]


def _leak(known: Seen, seen: Seen) -> Finding:
    same = "file" if seen.file and seen.file == known.file else "content"
    return Finding(
        "leak",
        seen.data,
        seen.place,
        f"its `{seen.what}` is the same {same} as that of {known.place} in `{known.data}`",
        "keep it in one of them: what was trained on cannot be measured",
    )


def _again(before: Seen, seen: Seen) -> Finding:
    if before.answer != seen.answer:
        return Finding(
            "contradiction",
            seen.data,
            seen.place,
            f"the same `{seen.what}` and question are answered `{before.answer}` in {before.place}"
            f" and `{seen.answer}` here",
            "keep the right answer",
        )
    return Finding(
        "duplicate", seen.data, seen.place, f"it repeats {before.place}", "leave one of them out"
    )
