"""The certificate in a report: every law with its verdict, or how to get one."""

from __future__ import annotations

from safe_framework.verification.certificate import Certificate, Law, Verdict
from safe_framework.runs.report.html_markup import Markup, element
from safe_framework.runs.report.results import table

_CLASSES = {Verdict.HOLDS: "right", Verdict.FAILS: "wrong", Verdict.NOT_APPLICABLE: "soft"}


def proof(certificate: Certificate | None) -> list[Markup]:
    """What ``safe verify`` found of this adapter."""
    if certificate is None:
        command = element("code", "safe verify ADAPTER")
        return [element("p", "There is none yet: ", command, " writes one.", class_="soft")]
    held = "Every law that applies holds." if certificate.holds else "A law is broken."
    same = sum(comparison.same for comparison in certificate.comparisons)
    text = (
        f" {same} of {len(certificate.comparisons)} calls with the sense off gave every bit of the "
        f"bare base's, on {certificate.device} in {certificate.dtype}, {certificate.made}."
    )
    verdict = element("span", held, class_="right" if certificate.holds else "wrong")
    rows = [(law.key, law.name, _verdict(law), _detail(law)) for law in certificate.laws]
    laws = table("Laws", ("law", "what it demands", "verdict", "how it was asked"), rows)
    return [
        element("p", verdict, text),
        element("details", element("summary", "Every law"), laws),
    ]


def _verdict(law: Law) -> Markup:
    return element("span", law.verdict.value, class_=_CLASSES[law.verdict])


def _detail(law: Law) -> str:
    return "; ".join((law.detail, *law.findings[:3]))
