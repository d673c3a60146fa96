"""The headline numbers, tables of results, the confusion matrix and the certificate, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from safe_framework.evaluation.metrics import Estimate, interval
from safe_framework.evaluation.results import OTHER, Evaluation, Wordings
from safe_framework.evaluation.summary import Headline, Row, Section
from safe_framework.runs.report.html import ACCENT, INK, PAPER, WRONG, Markup, element, figure
from safe_framework.utils.formatting import percent
from safe_framework.verification.certificate import Certificate, Law, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def headline_cards(three: Sequence[Headline]) -> list[Markup]:
    """The numbers that a reader takes away, large."""
    return [
        element(
            "section",
            element("h2", headline.name),
            element("p", *_number(headline.number), class_="number"),
            element("p", headline.meaning),
            element("p", headline.context, class_="soft"),
            class_="headline",
        )
        for headline in three
    ]


def _number(number: str) -> list[str]:
    """A number with its unit set smaller; words as they are."""
    value, space, unit = number.partition(" ")
    if not space or not value[-1].isdigit():
        return [number]
    return [value, element("span", f" {unit}", class_="unit")]


def tables(groups: Sequence[Section]) -> list[Markup]:
    """One table for each group of results."""
    return [
        table(group.title, _titles(group), [_cells(row) for row in group.rows]) for group in groups
    ]


def _titles(group: Section) -> tuple[str, ...]:
    intervals = any(row.interval for row in group.rows)
    return "", "result", "95 % interval" if intervals else "", ""


def per_class(found: Mapping[str, Estimate]) -> Markup:
    """Accuracy on each expected answer."""
    rows = [
        (name, percent(estimate.value), interval(estimate), f"{estimate.n} examples")
        for name, estimate in found.items()
    ]
    return table("Accuracy by answer", ("answer", "accuracy", "95 % interval", ""), rows)


def kind_tables(evaluation: Evaluation) -> list[Markup]:
    """Picture questions and questions with both senses by kind, in every way they were asked."""
    name, found = evaluation.modality, list[Markup]()
    if evaluation.seeing and evaluation.seeing.kinds:
        kinds = {"all": evaluation.seeing.scores, **evaluation.seeing.kinds}
        ways = ("absent", "irrelevant", "unchanged beside it", "its own")
        head = ["", "n", "base", *(f"{name}: {way}" for way in ways)]
        rows = [
            [
                kind,
                str(one.base.n),
                percent(one.base.value),
                percent(one.absent.accuracy.value),
                percent(one.overall.accuracy.value),
                percent(one.overall.unchanged.value),
                percent(one.relevant.accuracy.value) if one.relevant else "",
            ]
            for kind, one in kinds.items()
        ]
        found.append(table(f"VQA accuracy by {evaluation.by}", head, rows))
    if evaluation.both_senses and evaluation.both_senses.kinds:
        scores = {"all": evaluation.both_senses.scores, **evaluation.both_senses.kinds}
        given = list(evaluation.both_senses.scores.baselines)
        head = ["", "n", "both", *(way.replace("sample", name) for way in given)]
        rows = [
            [
                kind,
                str(one.accuracy.n),
                percent(one.accuracy.value),
                *(percent(one.baselines[way].accuracy.value) for way in given),
            ]
            for kind, one in scores.items()
        ]
        found.append(table(f"Questions with both senses by {evaluation.by}", head, rows))
    return found


def form_table(found: Wordings | None) -> list[Markup]:
    """How rows were answered in every form that was kept from training."""
    rows = [
        (form.form, kind, percent(form.score), str(form.n))
        for kind, one in (found.kinds if found else {}).items()
        for form in one.forms
    ]
    if not rows:
        return []
    head = ("form", "kind", "right", "n")
    forms = table("Right answers by form, none of which was trained on", head, rows)
    return [element("details", element("summary", "Every held-out form"), forms)]


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first column names its rows."""
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(_head(name) for name in head))),
            element("tbody", *(_row(cells) for cells in rows)),
        ),
        class_="wide",
    )


def _head(name: str) -> Markup:
    return element("th", name, scope="col") if name else element("td")


def _row(cells: Sequence[str]) -> Markup:
    name, *rest = cells
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in rest))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.value,
        row.interval,
        row.note if row.met is None else _note_with_verdict(row),
    )


def _note_with_verdict(row: Row) -> Markup:
    verdict = element("span", "met", class_="right")
    if not row.met:
        verdict = element("span", "not met", class_="wrong")
    return element("span", verdict, f" · {row.note}")


_MAX_ROWS = 30  # more rows than this cannot be read
_CELL = 0.27  # inches
_LETTER = 0.075  # inches
_LABEL = 24  # letters

Counts = Mapping[str, Mapping[str, int]]


def confusion_matrix(confusion: Counts) -> Markup:
    """A row for each expected answer, a column for each of them and one for the others."""
    rows = _commonest(confusion)
    shown = {name: _merged(confusion[name], rows) for name in rows}
    columns = [*rows, OTHER] if any(row[OTHER] for row in shown.values()) else rows
    total = sum(sum(row.values()) for row in shown.values())
    right = sum(row[name] for name, row in shown.items())
    left_out = len(confusion) - len(rows)
    margin = _LETTER * min(_LABEL, max(len(name) for name in columns)) + 0.4
    return figure(
        partial(_draw, shown=shown, columns=columns),
        name="confusion",
        width=_CELL * len(columns) + margin,
        height=_CELL * len(rows) + margin,
        alt=f"Confusion matrix of {len(rows)} expected answers: {right} of {total} right. "
        + _worst(shown),
        caption="Rows are expected answers, columns given ones; a stronger colour is a larger "
        "share of its row."
        + (f" The {_MAX_ROWS} commonest; {left_out} left out." if left_out else ""),
    )


def _commonest(confusion: Counts) -> list[str]:
    sizes = {name: sum(row.values()) for name, row in confusion.items()}
    return sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:_MAX_ROWS])


def _merged(row: Mapping[str, int], columns: Sequence[str]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for name, count in row.items():
        merged[name if name in columns else OTHER] += count
    return merged


def _worst(shown: Mapping[str, Counter[str]]) -> str:
    wrong = [
        (count, expected, given)
        for expected, row in shown.items()
        for given, count in row.items()
        if given != expected
    ]
    if not wrong:
        return "There is no mistake."
    count, expected, given = max(wrong, key=lambda entry: entry[0])
    return f"The commonest mistake: {given} for {expected} ({count})."


def _draw(picture: Figure, shown: Mapping[str, Counter[str]], columns: Sequence[str]) -> None:
    axes = picture.add_subplot()
    for y, (expected, row) in enumerate(shown.items()):
        total = sum(row.values())
        for name, count in row.items():
            _cell(axes, columns.index(name), y, count, count / total, name == expected)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(shown)), [_short(name) for name in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cell(axes: Axes, x: int, y: int, count: int, share: float, right: bool) -> None:
    from matplotlib.patches import Rectangle

    colour = ACCENT if right else WRONG
    axes.add_patch(
        Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, alpha=0.15 + 0.85 * share)
    )
    ink = PAPER if share > 0.5 else INK
    axes.text(x, y, str(count), ha="center", va="center_baseline", color=ink, fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


_CLASSES = {Verdict.HOLDS: "right", Verdict.FAILS: "wrong", Verdict.NOT_APPLICABLE: "soft"}


def certificate_section(certificate: Certificate | None) -> list[Markup]:
    """What ``safe verify`` found of this adapter, or how to get a certificate."""
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
