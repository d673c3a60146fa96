"""Speed as ratios: what a modality costs a base while it is off and while it is active.

    python benchmarks/speed.py --write-docs

Arms take turns within one process, so that a slow minute of the machine falls on all of them;
each number is the median of the rounds' ratios, with its quartiles. Numbers for the page are to be
taken on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from rich.console import Console
from speed_auto import auto_rows
from speed_measures import (
    calls_of,
    certificate,
    decode,
    encoding,
    in_child,
    loading,
    memory,
    memory_of,
    operation_rows,
    prefill,
    starting,
    step_rows,
)
from speed_model import MODALITY, recipe_of, waken
from speed_pictures import picture_rows, seeing_model
from speed_rows import MARKS, Row, page, replaced, shown

from safe_framework.core.build import build
from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.runs.run import run_versions

PAGE = Path(__file__).with_name("speed.md")
GROUPS = (
    "off",
    "prefill",
    "decode",
    "auto",
    "pictures",
    "memory",
    "loading",
    "starting",
    "certificate",
)


def measured(
    wanted: Sequence[str], lengths: Sequence[int], rounds: int, report: Callable[[Any], None]
) -> dict[str, list[Row]]:
    """The rows of each wanted group, reported as soon as they are known."""
    found: dict[str, list[Row]] = {}
    recipe = recipe_of()
    loads = loading(recipe, max(3, rounds // 2)) if "loading" in wanted else []
    model = waken(build(recipe))
    groups: Mapping[str, Callable[[], list[Row]]] = {
        "off": lambda: operation_rows(calls_of(model, MODALITY, 128)),
        "prefill": lambda: _prefills(model, lengths, rounds),
        "decode": lambda: _decodings(model, lengths, max(3, rounds // 2)),
        "auto": lambda: auto_rows(model, _second(), lengths, rounds),
        "pictures": lambda: picture_rows(seeing_model(), sorted(lengths)[:2], rounds),
        "memory": lambda: memory(max(lengths), lambda arm, n: in_child(arm, n, __file__)),
        "loading": lambda: loads,
        "starting": lambda: starting(max(3, rounds // 3)),
        "certificate": lambda: certificate(model),
    }
    for name in wanted:
        with torch.no_grad():
            found[name] = groups[name]()
        report(shown(name, found[name]))
    return found


def _second() -> Waveform:
    """A second of sound."""
    return Waveform(np.zeros(16_000, np.float32), 16_000)


def _prefills(model: SafeModel, lengths: Sequence[int], rounds: int) -> list[Row]:
    rows = encoding(model, MODALITY, _second(), rounds)
    for length in lengths:
        fewer = max(3, rounds * 128 // max(length, 128))
        rows += prefill(calls_of(model, MODALITY, length), fewer)
    return rows


def _decodings(model: SafeModel, lengths: Sequence[int], rounds: int) -> list[Row]:
    rows = step_rows(calls_of(model, MODALITY, min(lengths)))
    for length in lengths:
        rows += decode(calls_of(model, MODALITY, length), rounds, steps=12)
    return rows


def machine() -> dict[str, Any]:
    """What the numbers depend on besides versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def write(
    rows: Mapping[str, Sequence[Row]],
    load: float,
    output: Path,
    marks: tuple[str, str] | None,
) -> None:
    """Keep the rows as JSON, and as tables in the page.

    Args:
        rows: by group.
        load: the machine's load average before they were measured.
        output: the JSON file.
        marks: around the page's tables; None leaves the page as it is.
    """
    result = {
        "machine": machine() | {"load": [load, os.getloadavg()[0]]},
        "versions": run_versions(),
        "groups": {name: [attrs.asdict(row) for row in found] for name, found in rows.items()},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if marks is not None:
        PAGE.write_text(replaced(PAGE.read_text("utf-8"), page(result, marks), marks), "utf-8")


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=21, help="at 128 tokens; fewer at more")
    parser.add_argument("--output", type=Path, default=Path("runs/speed.json"))
    parser.add_argument("--write-docs", action="store_true", help="put the table into speed.md")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory_of:
        print(json.dumps(memory_of(chosen.memory_of, chosen.lengths[0])))
        return
    console, before = Console(width=120), os.getloadavg()[0]
    rows = measured(chosen.groups, chosen.lengths, chosen.rounds, console.print)
    write(rows, before, chosen.output, MARKS if chosen.write_docs else None)


if __name__ == "__main__":
    main()
