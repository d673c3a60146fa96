"""What a check of data finds, and how it adds up."""

from __future__ import annotations

import json
from collections import Counter
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
