"""A certificate as a person reads it in the terminal: one line a law, then what went wrong."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from safe_framework.evaluation.base_drift_changed_wording import sentence
from safe_framework.verification.certificate import Certificate, Law, Verdict

_MARKS = {
    Verdict.HOLDS: Text("✓", "green"),
    Verdict.NOT_APPLICABLE: Text("-", "yellow"),
    Verdict.WAIVED: Text("✗", "bold yellow"),
    Verdict.FAILS: Text("✗", "bold red"),
}
_SHOWN = 5
"""Findings of one law that are shown; all are in ``certificate.json``."""


def summary(certificate: Certificate) -> Group:
    """What to print."""
    senses = ", ".join(certificate.modalities)
    title = Text(f"{_base(certificate)} with {senses}", "bold")
    parts: list[Text | Table] = [title, _laws(certificate)]
    if certificate.base_changed is not None:
        parts.append(Text(sentence(certificate.base_changed), "bold red"))
    for law in certificate.failures:
        parts += [Text(f"{law.key} {law.name} fails".strip(), "bold red"), *_findings(law)]
    return Group(*parts, Text(_counts(certificate)), Text(_place(certificate), "dim"))


def _base(certificate: Certificate) -> str:
    return certificate.base["model"] or certificate.base["class"]


def _laws(certificate: Certificate) -> Table:
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
    shown = [Text(f"  {finding}") for finding in law.findings[:_SHOWN]]
    more = len(law.findings) - len(shown)
    return [*shown, Text(f"  and {more} more")] if more else shown


def _counts(certificate: Certificate) -> str:
    verdicts = [law.verdict for law in certificate.laws]
    counts = {
        "hold": verdicts.count(Verdict.HOLDS),
        "not applicable": verdicts.count(Verdict.NOT_APPLICABLE),
        "waived": verdicts.count(Verdict.WAIVED),
        "fail": verdicts.count(Verdict.FAILS),
    }
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{told}; {len(certificate.comparisons)} calls compared; {certificate.seconds:.1f} s"


def _place(certificate: Certificate) -> str:
    libraries = [f"{name} {number}" for name, number in certificate.versions.items()]
    facts = (certificate.device, certificate.dtype, certificate.attention, *libraries)
    return ", ".join(filter(None, facts))
