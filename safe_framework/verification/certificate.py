"""What was found, its form on disk (``certificate.json``), and the summary that is printed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import attrs
from rich.console import Group
from rich.table import Table
from rich.text import Text

from safe_framework.evaluation.base_drift import BaseChanged, describe_change
from safe_framework.utils.files import atomic_write
from safe_framework.utils.json_records import json_converter, to_json

FORMAT = 1


class Verdict(Enum):
    """What a check says of a law."""

    HOLDS = "holds"
    NOT_APPLICABLE = "not applicable"
    WAIVED = "waived"
    FAILS = "fails"


@attrs.frozen
class Law:
    """One law, and what became of it.

    Attributes:
        key: of docs/laws.md, such as ``"L2"``.
        name: what it demands, in a few words.
        verdict: whether it holds here.
        detail: what was compared, or why the law does not apply.
        findings: each way in which it fails, and where.
    """

    key: str
    name: str
    verdict: Verdict
    detail: str
    findings: tuple[str, ...] = ()


@attrs.frozen
class Comparison:
    """One call of the model with its modalities off, against the same call of the unwrapped base.

    Attributes:
        call: name of the call.
        off: in which way the modalities were off.
        mode: of gradients: ``"no_grad"``, ``"inference"`` or ``"grad"``.
        same: whether every bit was the same.
        note: the first difference, or the error that both raised.
        operations: how many both ran, where they were traced.
        trace: SHA-256 of the operations, where they were traced.
    """

    call: str
    off: str
    mode: str
    same: bool
    note: str = ""
    operations: int | None = None
    trace: str | None = None


@attrs.frozen
class Certificate:
    """What ``verify`` found of one model.

    Attributes:
        format: version of this layout.
        made: when, in UTC.
        versions: of Python and of the libraries that compute.
        device: where the base is.
        dtype: of its weights.
        attention: its attention implementation.
        calls: how many were asked for: ``"full"`` or ``"quick"``.
        inputs: ``"given"`` by the caller, or ``"made up"``.
        base: class, name and fingerprints of the base and its tokenizer.
        modalities: gate, fused layers and fingerprint of each.
        laws: each law with its verdict.
        comparisons: each call that was compared with the unwrapped base.
        seconds: how long it took.
        base_changed: what fine-tuning did to the base; None where L1 and L2 were asked.
        accepted: how the base differs from the one that the adapter was made for, where it was
            loaded all the same.
    """

    format: int
    made: str
    versions: Mapping[str, str]
    device: str
    dtype: str
    attention: str
    calls: str
    inputs: str
    base: Mapping[str, str]
    modalities: Mapping[str, Mapping[str, str]]
    laws: tuple[Law, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float
    base_changed: BaseChanged | None = None
    accepted: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether no law fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Law, ...]:
        """The laws that fail."""
        return tuple(law for law in self.laws if law.verdict is Verdict.FAILS)

    def to_json(self) -> str:
        """The content of ``certificate.json``."""
        return to_json(self, _CONVERTER)

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what ``to_json`` wrote."""
        return _CONVERTER.loads(text, cls)

    def write(self, path: Path) -> Path:
        """Write it to ``path``, in one step."""
        return atomic_write(path, self.to_json())


_CONVERTER = json_converter(omitted_if_default={Certificate: ("base_changed", "accepted")})


def law_result(key: str, name: str, detail: str, findings: list[str]) -> Law:
    """A law that holds if there are no findings."""
    verdict = Verdict.FAILS if findings else Verdict.HOLDS
    return Law(key, name, verdict, detail, tuple(findings))


def not_applicable(key: str, name: str, why: str) -> Law:
    """A law that cannot be asked of this model."""
    return Law(key, name, Verdict.NOT_APPLICABLE, why)


_MARKS = {
    Verdict.HOLDS: Text("✓", "green"),
    Verdict.NOT_APPLICABLE: Text("-", "yellow"),
    Verdict.WAIVED: Text("✗", "bold yellow"),
    Verdict.FAILS: Text("✗", "bold red"),
}
_MAX_FINDINGS = 5
"""Of one law that are printed; all are in ``certificate.json``."""


def summary(certificate: Certificate) -> Group:
    """What to print: one line a law, then what went wrong."""
    modalities = ", ".join(certificate.modalities)
    title = Text(f"{_base(certificate)} with {modalities}", "bold")
    parts: list[Text | Table] = [title, _law_table(certificate)]
    if certificate.base_changed is not None:
        parts.append(Text(describe_change(certificate.base_changed), "bold red"))
    if certificate.accepted:
        differing = "; ".join(certificate.accepted)
        parts.append(Text(f"the base is not quite the adapter's: {differing}", "yellow"))
    for law in certificate.failures:
        parts += [Text(f"{law.key} {law.name} fails".strip(), "bold red"), *_findings(law)]
    return Group(*parts, Text(_counts(certificate)), Text(_environment(certificate), "dim"))


def _base(certificate: Certificate) -> str:
    return certificate.base["model"] or certificate.base["class"]


def _law_table(certificate: Certificate) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for law in certificate.laws:
        unasked = (Verdict.NOT_APPLICABLE, Verdict.WAIVED)
        why = f"{law.verdict.value}: " if law.verdict in unasked else ""
        detail = law.verdict.value if law.verdict is Verdict.FAILS else f"{why}{law.detail}"
        table.add_row(_MARKS[law.verdict], *map(Text, (law.key, law.name, detail)))
    return table


def _findings(law: Law) -> list[Text]:
    shown = [Text(f"  {finding}") for finding in law.findings[:_MAX_FINDINGS]]
    more = len(law.findings) - len(shown)
    return [*shown, Text(f"  and {more} more")] if more else shown


def _counts(certificate: Certificate) -> str:
    found = [law.verdict for law in certificate.laws]
    counts = {
        "hold": found.count(Verdict.HOLDS),
        "not applicable": found.count(Verdict.NOT_APPLICABLE),
        "waived": found.count(Verdict.WAIVED),
        "fail": found.count(Verdict.FAILS),
    }
    verdicts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{verdicts}; {len(certificate.comparisons)} calls compared; {certificate.seconds:.1f} s"


def _environment(certificate: Certificate) -> str:
    libraries = [f"{name} {number}" for name, number in certificate.versions.items()]
    facts = (certificate.device, certificate.dtype, certificate.attention, *libraries)
    return ", ".join(filter(None, facts))
