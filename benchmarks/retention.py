"""What each retention method gives and costs on `one-question`, over several seeds.

    python benchmarks/retention.py --seeds 0 1 2 --output runs/retention

Every arm is `one-question` with other ``[[retention]]`` tables, measured on its test clips and on
texts and foreign sounds that no arm trained on. Finished runs are not repeated, broken ones go on.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from null_space_change import null_space_change
from rich.console import Console
from rich.table import Table
from seeds import over_seeds

from safe_framework.config.read import read_recipe
from safe_framework.evaluation.metrics import Estimate
from safe_framework.evaluation.results import Evaluation
from safe_framework.runs.run import METRICS, run_recipe, run_versions
from safe_framework.utils.run_folder import STATE

DISTILLATION = "the recipe's own table"
NULL_SPACE = '[[retention]]\nuse = "nullspace"\n'
WIDER = """[[retention]]
use = "nullspace"
threshold = 1e-3
counterfactual = ["silent", "noise"]
"""
FISHER = '[[retention]]\nuse = "fisher"\nweight = 100.0\n'  # at 1.0 it is a thousandth of the loss
ARMS: Mapping[str, Sequence[str]] = {
    "none": (),
    "distillation": (DISTILLATION,),
    "fisher": (FISHER,),
    "nullspace": (NULL_SPACE,),
    "together": (NULL_SPACE, FISHER, DISTILLATION),  # the null space first: it sets the start
    "wider": (WIDER,),
}
USUAL = ("none", "distillation", "fisher", "nullspace", "together")
KINDS = ("silent", "noise", "shuffled", "foreign")


def recipe_text(tables: Sequence[str], seed: int, max_steps: int | None) -> str:
    """`one-question` with other retention tables, in whatever folder."""
    recipe = read_recipe("one-question")
    before, own, after = re.split(r"(?=^\[\[retention\]\])|(?=^\[data\])", recipe.text, flags=re.M)
    text = before + "\n".join(own.rstrip() + "\n" if t is DISTILLATION else t for t in tables)
    text += "\n" + after.replace('"../data/', f'"{recipe.folder.parent / "data"}/')
    text = text.replace("[training]", f"[training]\nseed = {seed}", 1)
    return (
        text if max_steps is None else re.sub(r"max_steps = \d+", f"max_steps = {max_steps}", text)
    )


def finished(folder: Path, text: str, name: str) -> Path:
    """The folder of a whole run of a recipe, run now if it is not there."""
    recipe, run = folder / f"{name}.toml", folder / name
    if recipe.exists() and recipe.read_text("utf-8") != text and (run / STATE).exists():
        raise SystemExit(f"`{run}` holds a run of another recipe: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text, "utf-8")
    if not (run / METRICS).exists():
        run_recipe(str(recipe), output=run)
    return run


def numbers(run: Path) -> dict[str, Estimate]:
    """Gain, agreement and divergence of one run."""
    found = Evaluation.from_json((run / METRICS).read_text("utf-8"))
    kinds = found.retention.counterfactual
    return {
        "gain": found.gain.accuracy,
        "over shuffled": found.gain.over_shuffled,
        **{kind: kinds[kind].agreement for kind in KINDS},
        **{f"KL {kind}": kinds[kind].kl for kind in KINDS},
    }


def shown(results: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: int) -> Table:
    """Gain and agreements of every arm, in percent."""
    source = "bootstrap of the one run" if seeds == 1 else f"t over {seeds} seeds"
    table = Table(title=f"mean % [95 % interval, {source}]; agreement with the base at gate 1")
    table.add_column("retention")
    for name in ("gain", *KINDS):
        table.add_column(name, justify="right")
    for arm, found in results.items():
        cells = [found[name] for name in ("gain", *KINDS)]
        table.add_row(
            arm,
            *(
                f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
                for cell in cells
            ),
        )
    return table


def changes_shown(changes: Mapping[str, Mapping[str, float]], steps: int) -> Table:
    """How far each constrained layer's outputs on retention inputs moved."""
    table = Table(title=f"nullspace: change of outputs on retention inputs after {steps} steps")
    for name in ("layer", "free directions", "relative change"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for layer, found in changes.items():
        directions = f"{found['free']:.0f} of {found['inputs']:.0f}"
        table.add_row(layer, directions, f"{found['relative']:.1e}")
    return table


def main() -> None:
    """Read the command line, run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(USUAL))
    parser.add_argument("--output", type=Path, default=Path("runs/retention"))
    parser.add_argument("--max-steps", type=int, help="of every run; the recipe's own if left")
    parser.add_argument(
        "--change-steps", type=int, default=200, help="of the null space's run; 0: none"
    )
    chosen = parser.parse_args()
    runs: dict[str, list[dict[str, Estimate]]] = {arm: [] for arm in chosen.arms}
    for seed in chosen.seeds:
        for arm in chosen.arms:
            text = recipe_text(ARMS[arm], seed, chosen.max_steps)
            runs[arm].append(numbers(finished(chosen.output, text, f"{arm}-{seed}")))
    results = {
        arm: {name: over_seeds([one[name] for one in found]) for name in found[0]}
        for arm, found in runs.items()
    }
    console = Console(width=140)
    changes: dict[str, dict[str, float]] = {}
    if chosen.change_steps:
        seed, steps = chosen.seeds[0], chosen.change_steps
        text = recipe_text(ARMS["nullspace"], seed, steps)
        own = text == recipe_text(ARMS["nullspace"], seed, chosen.max_steps)
        name = f"nullspace-{seed}" if own else f"nullspace-{steps}-steps-{seed}"
        changes = null_space_change(finished(chosen.output, text, name))
        console.print(changes_shown(changes, steps))
    console.print(shown(results, len(chosen.seeds)))
    content = {
        "seeds": chosen.seeds,
        "arms": results,
        "changes": changes,
        "versions": run_versions(),
    }
    (chosen.output / "results.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
