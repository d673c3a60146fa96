"""What was found of every type: the table, and the blocks of the page that explains it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

from safe_framework.verification.certificate import Verdict
from tests.zoo.examine import Entry

LAWS = ("L1", "L2", "L3", "L4", "L5")
PICTURE = "a picture reaches the answer"
_MARKS = {
    Verdict.HOLDS.value: "yes",
    Verdict.NOT_APPLICABLE.value: "n/a",
    Verdict.FAILS.value: "**no**",
}
_PICTURES = {"": "", "none": "not tried", "tensors": "yes", "processor": "yes, by its processor"}
_TASKS = {"causal": "text", "image_text": "image and text", "seq2seq": "sequence to sequence"}

_HEAD = """\
# Compatibility: every type

Written by `make check-zoo`, of transformers {transformers} with torch {torch}, Python {python},
on a CPU, in float32. [compatibility.md](compatibility.md) says what was asked and what it means.
"""


def table_page(entries: Sequence[Entry]) -> str:
    """The whole page of the table."""
    head = _HEAD.format(
        transformers=version("transformers"),
        torch=version("torch"),
        python=platform.python_version(),
    )
    return "\n".join([head.rstrip(), *_tables(_ordered(entries))]) + "\n"


def with_counts(page: str, entries: Sequence[Entry]) -> str:
    """The page that explains the table, with the counts of these entries."""
    return _with_block(page, "counts", _counts(entries))


def with_gpu(page: str, section: str) -> str:
    """The page that explains the table, with another section on GPUs."""
    return _with_block(page, "gpu", section)


def _with_block(page: str, name: str, content: str) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no block `{name}`")
    return f"{before}{start}{content.rstrip()}\n{end}{after}"


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.model_type, entry.task))


def _counts(entries: Sequence[Entry]) -> str:
    number = {
        status: sum(entry.status == status for entry in entries)
        for status in ("holds", "refused", "unbuilt", "fails")
    }
    rows = sum(entry.laws.get("L4") == Verdict.HOLDS.value for entry in entries)
    beams = sum("beams" in entry.generates for entry in entries)
    seeing = [entry.picture for entry in entries if entry.task == "image_text"]
    given = seeing.count("processor")
    lines = [
        f"Of **{len(entries)}** types (one per class), **{number['holds']}** hold L1, L2, L3 and "
        f"L5, {rows} of them L4 too. With the modality on, {beams} decode with beams.",
        f"In {given + seeing.count('tensors')} of {len(seeing)} image-text types a picture reaches "
        f"the answer, in {given} of them given to the type's own processor.",
        f"Refused when attached: {number['refused']}. Not built: {number['unbuilt']}. "
        f"Failing: {number['fails']}.",
    ]
    return "\n".join(lines)


def _tables(entries: Sequence[Entry]) -> list[str]:
    lines = ["", f"| type | reads | {' | '.join(LAWS)} | generates | {PICTURE} | limits |"]
    lines.append("|---|---|" + "---|" * (len(LAWS) + 3))
    lines += [_row(entry) for entry in entries if entry.status in ("holds", "fails")]
    for status, title in (("refused", "Refused when attached"), ("unbuilt", "Not built")):
        found = [entry for entry in entries if entry.status == status]
        if found:
            lines += ["", f"## {title}", "", "| type | reads | why |", "|---|---|---|"]
            lines += [
                f"| `{entry.model_type}` | {_TASKS[entry.task]} | {_plain(entry.reason)} |"
                for entry in found
            ]
    return lines


def _row(entry: Entry) -> str:
    marks = [_MARKS.get(entry.laws.get(law, ""), "") for law in LAWS]
    notes = [*entry.limits, *([f"**{entry.reason}**"] if entry.status == "fails" else [])]
    cells = [
        f"`{entry.model_type}`",
        _TASKS[entry.task],
        *marks,
        ", ".join(entry.generates) or "none",
        _PICTURES[entry.picture],
        _plain("; ".join(notes)),
    ]
    return f"| {' | '.join(cells)} |"


def _plain(text: str, most: int = 200) -> str:
    """One table cell's text."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= most else line[: most - 3] + "..."
