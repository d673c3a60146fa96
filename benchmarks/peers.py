"""SAFE beside other ways to give the same frozen base the same modality.

    python benchmarks/peers.py --task one-question --seeds 0 1 2 --jobs 2 --output runs/peers

Base, encoder, frames, data, order of batches, steps and seeds are the same for all. Each arm and
seed is a process of its own that writes one file; finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peer_arms import ARMS, USUAL, recipe_of
from peer_tables import HEADINGS, aggregated, markdown, shown, write_docs, write_plot
from rich.console import Console

ROOT = Path(__file__).parents[1]
EWC_WEIGHT = 1000.0  # at 100 the penalty of 8 steps was a thousandth of the task's loss
PEER_OPTIONS = ("ewc_weight", "rate_factor")


def settings_of(chosen: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """What a run's numbers depend on."""
    steps = recipe_of(chosen.task, ARMS[arm], seed, chosen.steps).training.max_steps
    settings = {"task": chosen.task, "arm": arm, "seed": seed, "steps": steps}
    settings["texts"] = chosen.texts
    if ARMS[arm].retention == "ewc":
        settings["ewc_weight"] = chosen.ewc_weight
    if ARMS[arm].base is not None:
        settings["rate_factor"] = chosen.rate_factor
    return settings


def measure(settings: dict[str, Any], console: Console) -> dict[str, Any]:
    """Train one arm in this process, and measure it."""
    import torch
    from peer_measures import as_json, measures
    from peer_training import train_peer, train_safe

    from safe_framework.data.recipe_data import RecipeData
    from safe_framework.runs.run import run_versions
    from safe_framework.utils.progress import WorkProgress

    arm = ARMS[settings["arm"]]
    recipe = recipe_of(settings["task"], arm, settings["seed"], settings["steps"])
    data, start = RecipeData(recipe), time.process_time()
    torch.manual_seed(settings["seed"])
    with WorkProgress(console).showing() as progress:
        if arm.base is None:
            with tempfile.TemporaryDirectory() as folder:
                trained = train_safe(recipe, data, Path(folder) / "checkpoints", progress)
        else:
            options = {name: settings[name] for name in PEER_OPTIONS if name in settings}
            trained = train_peer(arm, recipe, data, progress, **options)
        middle = time.process_time()
        found = as_json(measures(trained, recipe, data, settings["texts"], progress))
    seconds = {"training": middle - start, "measuring": time.process_time() - middle}
    return {
        "settings": settings,
        **found,
        "losses": list(trained.losses),
        "penalties": list(trained.penalties),
        "seconds": seconds,
        "versions": run_versions(),
    }


def path_of(chosen: argparse.Namespace, arm: str, seed: int) -> Path:
    """The file of one arm and seed."""
    folder: Path = chosen.output / Path(chosen.task).stem
    return folder / f"{arm}-{seed}.json"


def missing(chosen: argparse.Namespace) -> list[tuple[str, int]]:
    """The arms and seeds that have not been run.

    Raises:
        SystemExit: a file is of other settings.
    """
    found = []
    for seed in chosen.seeds:
        for arm in chosen.arms:
            path = path_of(chosen, arm, seed)
            if not path.exists():
                found.append((arm, seed))
            elif json.loads(path.read_text("utf-8"))["settings"] != settings_of(chosen, arm, seed):
                raise SystemExit(f"`{path}` is of other settings: choose another --output")
    return found


def child(chosen: argparse.Namespace, arm: str, seed: int) -> int:
    """Run one arm and seed in a process of its own, with one thread; its exit status."""
    words = ["--task", chosen.task, "--arms", arm, "--seeds", str(seed), "--here"]
    words += ["--output", str(chosen.output), "--ewc-weight", str(chosen.ewc_weight)]
    words += ["--rate-factor", str(chosen.rate_factor)]
    for name in ("steps", "texts"):
        if getattr(chosen, name) is not None:
            words += [f"--{name}", str(getattr(chosen, name))]
    log = path_of(chosen, arm, seed).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        return subprocess.run(
            [sys.executable, __file__, *words],
            env={**os.environ, **threads},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def run_here(chosen: argparse.Namespace) -> None:
    """Run the one arm and seed that were chosen, and write its file whole."""
    (arm,), (seed,) = chosen.arms, chosen.seeds
    path = path_of(chosen, arm, seed)
    found = measure(settings_of(chosen, arm, seed), Console(width=120))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    unfinished.replace(path)


def run_missing(chosen: argparse.Namespace, console: Console) -> None:
    """Run what is missing, some side by side.

    Raises:
        SystemExit: an arm failed; the others have been run.
    """
    todo, failed = missing(chosen), []

    def run(one: tuple[str, int]) -> None:
        start = time.perf_counter()
        code = child(chosen, *one)
        took = f"{(time.perf_counter() - start) / 60:.1f} min"
        console.print(f"{one[0]}, seed {one[1]}: {'failed' if code else 'done'} after {took}")
        if code:
            failed.append(path_of(chosen, *one).with_suffix(".log"))

    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(run, todo))
    if failed:
        raise SystemExit("some arms failed: see " + ", ".join(map(str, sorted(failed))))


def results_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """All finished runs that were chosen, over their seeds."""
    runs = {
        arm: [json.loads(path_of(chosen, arm, s).read_text("utf-8")) for s in chosen.seeds]
        for arm in chosen.arms
    }
    first = next(iter(runs.values()))[0]
    settings = {
        "task": Path(chosen.task).stem,
        "steps": first["settings"]["steps"],
        "seeds": chosen.seeds,
        "texts": chosen.texts,
        **{name: getattr(chosen, name) for name in PEER_OPTIONS},
    }
    return {"settings": settings, "arms": aggregated(runs), "versions": first["versions"]}


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="one-question", help="a recipe")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(USUAL))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every arm; the recipe's own if left")
    parser.add_argument("--texts", type=int, help="held-out retention texts; all if left")
    parser.add_argument("--ewc-weight", type=float, default=EWC_WEIGHT)
    parser.add_argument("--rate-factor", type=float, default=1.0, help="on the peers' rates")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--output", type=Path, default=Path("runs/peers"))
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, print and write."""
    chosen = parsed(words)
    if chosen.here:
        run_here(chosen)
        return
    console = Console(width=170)
    run_missing(chosen, console)
    results = results_of(chosen)
    for table in shown(results):
        console.print(table)
    folder = chosen.output / Path(chosen.task).stem
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    (folder / "table.md").write_text(markdown(results, list(HEADINGS)), "utf-8")
    write_plot(results, folder / "gain_and_retention.svg")
    if chosen.write_docs:
        for file in write_docs(results, ROOT):
            console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
