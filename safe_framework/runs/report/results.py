"""The headline numbers, the table of results and the versions, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_framework.evaluation.metrics import Estimate
from safe_framework.runs.report.html_markup import Markup, element
from safe_framework.evaluation.summary import Headline, Row, Section
from safe_framework.utils.formatting import interval, percent


def cards(three: Sequence[Headline]) -> list[Markup]:
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
    return row.name, row.value, row.interval, row.note if row.met is None else _judged(row)


def _judged(row: Row) -> Markup:
    verdict = element("span", "met", class_="right")
    if not row.met:
        verdict = element("span", "not met", class_="wrong")
    return element("span", verdict, f" · {row.note}")
