"""What a check of data finds, in rows and between them, and how it adds up.

Between rows there can be repeats, contradictions, and leaks from one split to another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from safe_framework.data.checks.near_duplicates import Likeness, nearly_same

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
    "unread-field": "error",
    "unseen-picture": "error",
    "leak": "error",
    "wrong-rate": "warning",
    "silence": "warning",
    "clipped": "warning",
    "too-long": "warning",
    "duplicate": "warning",
    "contradiction": "warning",
    "near-duplicate": "warning",
    "shared-source": "warning",
    "untrained-answer": "warning",
    "no-sample": "warning",
    "several-frames": "warning",
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
        pictures: that were opened for the base.
    """

    rows: int
    samples: Counter[str]
    seconds: float
    answers: Counter[str]
    pictures: int = 0


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


PICTURE = "picture"
"""What messages call a picture for the base."""


@attrs.frozen
class SeenRow:
    """What one row held and asked.

    Attributes:
        data: key of ``[data]``.
        place: the row.
        contents: the hash of each sample, picture or text in it, by what messages call it and its
            resolved file name, which is none's where it is in no file.
        question: what the row asks about them.
        answer: what it should be answered.
        origins: what the row says of where its samples come from: its source, its speaker.
        likenesses: of its samples and pictures, by which near-duplicates are found.
    """

    data: str
    place: str
    contents: Mapping[tuple[str, str], str]
    question: str = ""
    answer: str = ""
    origins: Mapping[str, str] = attrs.field(factory=dict)
    likenesses: tuple[Likeness, ...] = ()


_TRAINED = {"train": ("test", "validation"), "foreign": ("foreign_test", "foreign_validation")}
"""By split that training sees, those that should be new to it."""


def shared_origins(everything: Sequence[SeenRow]) -> Iterator[Finding]:
    """Sources and speakers of held-out rows that training rows have too: one finding for each."""
    for trained, held_out in _TRAINED.items():
        known = {
            origin for seen in everything if split_of(seen.data) == trained
            for origin in seen.origins.items()
        }  # fmt: skip
        first: dict[tuple[str, str, str], list[SeenRow]] = {}
        for seen in everything:
            if split_of(seen.data) in held_out:
                for origin in seen.origins.items():
                    if origin in known:
                        first.setdefault((seen.data, *origin), []).append(seen)
        for (data, kind, name), rows in first.items():
            yield Finding(
                "shared-source",
                data,
                rows[0].place,
                f"{len(rows)} rows have the {kind} `{name}`, which rows of `{trained}` have too:"
                " what is measured on them says nothing of others",
                f"keep a {kind} for `{data}` alone, or read the results by source",
            )


def near_duplicates(everything: Sequence[SeenRow]) -> Iterator[Finding]:
    """Samples of held-out rows that are nearly the same as training rows', and no exact copies."""
    for trained, held_out in _TRAINED.items():
        known = _likenesses(everything, (trained,))
        for what, asked in _likenesses(everything, held_out).items():
            rows = known.get(what, [])
            pairs = nearly_same([one for _, one in rows], [one for _, one in asked])
            for place, at, correlation in pairs:
                seen, other = asked[place][0], rows[at][0]
                if set(seen.contents.values()) & set(other.contents.values()):
                    continue  # of which `repeats` tells
                yield Finding(
                    "near-duplicate",
                    seen.data,
                    seen.place,
                    f"its `{what}` is nearly that of {other.place} in `{other.data}`:"
                    f" a correlation of {correlation:.3f}",
                    "listen to both, or look at them: what was trained on cannot be measured",
                )


def _likenesses(
    everything: Sequence[SeenRow], splits: Sequence[str]
) -> dict[str, list[tuple[SeenRow, Likeness]]]:
    """What is compared of the rows of some splits, by what messages call it."""
    found: dict[str, list[tuple[SeenRow, Likeness]]] = {}
    for seen in everything:
        if split_of(seen.data) in splits:
            for one in seen.likenesses:
                found.setdefault(one.what, []).append((seen, one))
    return found


def repeats(everything: Sequence[SeenRow]) -> Iterator[Finding]:
    """Contents that come again: in another split, or with the same question in one."""
    first: dict[tuple[str, str], tuple[SeenRow, str]] = {}
    asked: dict[tuple[str, ...], SeenRow] = {}
    for seen in everything:
        leaks = []
        for (what, file), content in seen.contents.items():
            known, held = first.setdefault((what, content), (seen, file))
            if _group(known, what) != _group(seen, what):
                leaks.append(_leak(known, seen, what, same_file=bool(file) and file == held))
        yield from leaks
        inputs = [text for (what, _), content in seen.contents.items() for text in (what, content)]
        before = asked.setdefault((seen.data, seen.question, *inputs), seen)
        if before is not seen and not leaks:
            yield _again(before, seen)


def split_of(key: str) -> str:
    """Which split a key of ``[data]`` is; datasets of a mix and stages may share it.

    >>> split_of("train of captions"), split_of("retention_test")
    ('train', 'retention_test')
    """
    return "train" if key.startswith("curriculum[") else key.partition(" of ")[0]


def _group(seen: SeenRow, what: str) -> str:
    """What may share contents: texts may be about the pictures that the task is about."""
    split = split_of(seen.data)
    return split.removeprefix("retention").strip("_") or "train" if what == PICTURE else split


def _leak(known: SeenRow, seen: SeenRow, what: str, *, same_file: bool) -> Finding:
    same = "file" if same_file else "content"
    return Finding(
        "leak",
        seen.data,
        seen.place,
        f"its `{what}` is the same {same} as that of {known.place} in `{known.data}`",
        "keep it in one of them: what was trained on cannot be measured",
    )


def _again(before: SeenRow, seen: SeenRow) -> Finding:
    if before.answer != seen.answer:
        named = " and ".join(f"`{what}`" for what in dict.fromkeys(w for w, _ in seen.contents))
        return Finding(
            "contradiction",
            seen.data,
            seen.place,
            f"the same {named} and question are answered `{before.answer}` in {before.place}"
            f" and `{seen.answer}` here",
            "keep the right answer",
        )
    return Finding(
        "duplicate", seen.data, seen.place, f"it repeats {before.place}", "leave one of them out"
    )
