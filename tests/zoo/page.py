"""``docs/compatibility.md``: what was found of every type."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

from safe_framework.verification.certificate import Verdict
from tests.zoo.examine import Entry

LAWS = ("L1", "L2", "L3", "L4", "L5")
_MARKS = {
    Verdict.HOLDS.value: "yes",
    Verdict.NOT_APPLICABLE.value: "n/a",
    Verdict.FAILS.value: "**no**",
}
_TASKS = {"causal": "text", "image_text": "image and text", "seq2seq": "sequence to sequence"}

_HEAD = """\
# Compatibility

Written by `make check-zoo`, which builds a tiny random model of every causal, image-text and
sequence-to-sequence type that transformers {transformers} maps, from its own config made small,
gives it a made-up sense with random weights, and asks it the laws of the
[certificate](certificate.md). Models are random and tiny, so this says what an architecture can
hold, not how well it learns.
To ask the same of your checkpoint: `safe verify MODEL`.

{counts}

Measured with torch {torch}, Python {python}, on a CPU, in float32.

- **L1** to **L5** are the [laws](laws.md). **n/a** in L4 means that the base itself lets the rows
  of a batch touch each other's last bits (experts take the tokens of all rows together), so that
  only the whole-call law L2 holds; `split_rows=True` runs the rows apart and brings L4 back.
- **generates** names the decodings of a batch of 2 that work with the sense on. Where one is
  missing, the base itself cannot do it.
"""

_GPU = "## On a GPU\n"
_UNMEASURED = """
Not measured: no GPU was at hand. `make check-gpu` measures eight architectures in float32 and
bfloat16 and the quickstart's adapter on a CUDA device, and writes what it found here.
"""


def page(entries: Sequence[Entry], before: str = "") -> str:
    """The whole page; its section on GPUs is kept as it was ``before``."""
    ordered = sorted(entries, key=lambda entry: (entry.model_type, entry.task))
    gpu = before.partition(_GPU)[2] or _UNMEASURED
    return "\n".join([_head(ordered), *_tables(ordered)]).rstrip() + f"\n\n{_GPU}{gpu}"


def with_gpu(before: str, section: str) -> str:
    """The page with another section on GPUs."""
    return f"{before.partition(_GPU)[0]}{_GPU}\n{section}"


def _head(entries: Sequence[Entry]) -> str:
    return _HEAD.format(
        transformers=version("transformers"),
        torch=version("torch"),
        python=platform.python_version(),
        counts=_counts(entries),
    )


def _counts(entries: Sequence[Entry]) -> str:
    number = {
        status: sum(entry.status == status for entry in entries)
        for status in ("holds", "refused", "unbuilt", "fails")
    }
    rows = sum(entry.laws.get("L4") == Verdict.HOLDS.value for entry in entries)
    beams = sum("beams" in entry.generates for entry in entries)
    lines = [
        f"Of **{len(entries)}** types (one per class), **{number['holds']}** hold L1, L2, L3 and "
        f"L5, {rows} of them L4 too. With the sense on, {beams} decode with beams.",
        f"Refused when attached: {number['refused']}. Not built: {number['unbuilt']}. "
        f"Failing: {number['fails']}.",
    ]
    return "\n".join(lines)


def _tables(entries: Sequence[Entry]) -> list[str]:
    lines = ["", f"| type | reads | {' | '.join(LAWS)} | generates | limits |"]
    lines.append("|---|---|" + "---|" * (len(LAWS) + 2))
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
        _plain("; ".join(notes)),
    ]
    return f"| {' | '.join(cells)} |"


def _plain(text: str, most: int = 200) -> str:
    """One table cell's text."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= most else line[: most - 3] + "..."
