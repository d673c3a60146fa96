"""What can be wrong between rows: repeats, contradictions, and leaks from one split to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from safe_framework.data.checks.findings import Finding


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
