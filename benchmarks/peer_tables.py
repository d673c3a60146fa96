"""What the arms gave, as a table, a plot, and blocks of the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_arms import ARMS
from rich.table import Table
from seeds import over_seeds

from safe_framework.evaluation.metrics import Estimate

PERCENT = {
    "gain": "gain",
    "over shuffled": "over shuffled",
    "absent": "modality absent",
    "irrelevant": "distractor",
}
COSTS = {
    "parameters": "trained, M",
    "bytes": "to ship, MB",
    "step seconds": "core s a step",
    "prefill": "prefill",
    "decode": "decoding",
    "peak GiB": "peak GiB",
}
FACTS = {"absent": "absent is the base", "off": "off is the base", "rows": "row apart is the base"}
SCALES = {"parameters": 1e-6, "bytes": 1e-6}


def aggregated(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Every arm's estimates over its seeds, and facts that hold if every seed's do."""
    return {
        arm: {
            "estimates": {
                name: over_seeds([Estimate(**run["estimates"][name]) for run in found])
                for name in found[0]["estimates"]
            },
            "facts": {name: all(run["facts"][name] for run in found) for name in found[0]["facts"]},
            "seeds": [run["settings"]["seed"] for run in found],
        }
        for arm, found in runs.items()
    }


def rows_of(arms: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """The cells of each arm under the headings ``names``; the best of a column is not marked."""
    return [
        [ARMS[arm].title, *(_cell(found, name) for name in names)] for arm, found in arms.items()
    ]


def _cell(found: Mapping[str, Any], name: str) -> str:
    if name.startswith("fact "):
        return "yes" if found["facts"][name.removeprefix("fact ")] else "no"
    cell = found["estimates"][name]
    if name in PERCENT:
        low, high = 100 * cell["low"], 100 * cell["high"]
        # an interval of Student's t can pass the ends of what a share can be
        ends = "" if low == high else f" [{max(low, -100):.1f}, {min(high, 100):.1f}]"
        return f"{100 * cell['mean']:.1f}{ends}"
    return f"{cell['mean'] * SCALES.get(name, 1.0):.2f}"


HEADINGS = {**PERCENT, **{f"fact {name}": text for name, text in FACTS.items()}, **COSTS}


def shown(results: Mapping[str, Any]) -> list[Table]:
    """What was learned and kept, and what it cost."""
    tables = []
    kept = [*PERCENT, *(f"fact {name}" for name in FACTS)]
    for title, names in ((_title(results), kept), ("costs; latencies relative to the base", COSTS)):
        table = Table(title=title)
        table.add_column("arm")
        for name in names:
            table.add_column(HEADINGS[name], justify="right")
        for row in rows_of(results["arms"], list(names)):
            table.add_row(*row)
        tables.append(table)
    return tables


def _title(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    count = len(settings["seeds"])
    source = "bootstrap of the one run" if count == 1 else f"t over {count} seeds"
    return f"{settings['task']}, {settings['steps']} steps: mean % [95 % interval, {source}]"


def markdown(results: Mapping[str, Any], names: Sequence[str]) -> str:
    """A table under a line that names what it was made from."""
    heads = ["arm", *(HEADINGS[name] for name in names)]
    rule = ["---", *("---:" for _ in names)]
    lines = [
        "| " + " | ".join(row) + " |" for row in [heads, rule, *rows_of(results["arms"], names)]
    ]
    return f"{_title(results)}\n\n" + "\n".join(lines) + "\n"


def write_plot(results: Mapping[str, Any], path: Path) -> None:
    """Gain against retention beside distractors at gate 1, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    for arm, found in results["arms"].items():
        across, up = (found["estimates"][name] for name in ("irrelevant", "gain"))
        axes.errorbar(
            100 * across["mean"],
            100 * up["mean"],
            xerr=_reach(across),
            yerr=_reach(up),
            fmt="o" if arm.startswith("safe") else "s",
            capsize=2,
            label=ARMS[arm].title,
        )
    axes.set_xlabel("next tokens as the base's, beside a distractor, %")
    axes.set_ylabel("answers right on held-out samples, %")
    axes.set_title(f"{results['settings']['task']}: up and to the right is better")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _reach(cell: Mapping[str, float]) -> list[list[float]]:
    """How far an interval reaches down and up within 0 and 1, in percent."""
    low, high = max(cell["low"], 0.0), min(cell["high"], 1.0)
    return [[100 * (cell["mean"] - low)], [100 * (high - cell["mean"])]]


SMALL = ("gain", "absent", "irrelevant", "fact off", "bytes", "decode")


def write_docs(results: Mapping[str, Any], root: Path) -> list[Path]:
    """Put the tables between their markers: whole on one page, in short on the other.

    Returns:
        The files that had a section for them.
    """
    task = results["settings"]["task"]
    whole = markdown(results, [*PERCENT, *(f"fact {name}" for name in FACTS)])
    whole += "\n" + markdown(results, list(COSTS)).split("\n\n", 1)[1]
    written = []
    short = markdown(results, SMALL)
    for file, content in (("docs/comparison-tables.md", whole), ("docs/comparison.md", short)):
        text = (root / file).read_text("utf-8")
        block = re.compile(rf"(<!-- peers-{task} -->\n).*?(<!-- /peers-{task} -->)", re.S)
        if block.search(text):
            changed = block.sub(lambda found: f"{found[1]}{content}{found[2]}", text)  # noqa: B023  # used at once
            (root / file).write_text(changed, "utf-8")
            written.append(root / file)
    return written
