"""Seconds a training step, seconds to an accuracy, and memory: a plain loop against ours.

    python benchmarks/training.py --output runs/training.json

Three arms train `one-question` with the same losses: ``plain`` runs the encoder, the teacher and
the whole base at every step (plain_loop.py), ``uncached`` is our trainer with ``cache = []``, and
``cached`` is our trainer as it is. Each measurement is a process of its own, and the arms take
turns, so that a slow minute of the machine falls on all of them. The first steps are not counted.
What a cached run computes before its first step is apart, as ``reading``: it is paid once for
a base and its texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from plain_loop import MODALITY, PlainLoop
from rich.console import Console
from rich.table import Table
from speed_turns import now, peak_gib
from transformers import TrainerCallback

from safe_framework.config.read import read_recipe
from safe_framework.config.schema import Attend, Recipe
from safe_framework.core.build import build
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import token_ids
from safe_framework.data.recipe_data import RecipeData
from safe_framework.evaluation.answers import answer
from safe_framework.evaluation.metrics import exact_match
from safe_framework.runs.run import run_versions
from safe_framework.training import distributed
from safe_framework.training.alignment import prepare_projectors
from safe_framework.training.train import prepare_training
from safe_framework.utils.progress import WorkProgress

ARMS = ("plain", "uncached", "cached")
FUSED = {
    "middle": (15, 20, 25),
    "start of the upper third": (20, 24, 28),
    "within the upper third": (24, 26, 28),
}
WARM_UP = 3
EVERY = 10  # steps between two looks at the accuracy


def recipe_of(arm: str, fused: Sequence[int], seed: int, attend: Attend) -> Recipe:
    """`one-question` with other fused layers, where it acts, and what its arm keeps."""
    recipe = read_recipe("one-question")
    modality = recipe.modalities[MODALITY]
    options = {**modality.fusion.options, "layers": list(fused)}
    fusion = attrs.evolve(modality.fusion, options=options)
    modality = attrs.evolve(modality, fusion=fusion, attend=attend)
    training = attrs.evolve(recipe.training, seed=seed, save_steps=recipe.training.max_steps)
    if arm != "cached":
        training = attrs.evolve(training, cache=(), group_by_length=False)
    return attrs.evolve(recipe, modalities={MODALITY: modality}, training=training)


class StepTimer:
    """Takes the time of each step, and looks at the accuracy between steps.

    Args:
        model: being trained.
        data: of its recipe.
        until: the accuracy at which to stop; None stops after ``steps``.
        steps: the most to take.
    """

    def __init__(self, model: SafeModel, data: RecipeData, until: float | None, steps: int) -> None:
        self.model, self.until, self.steps = model, until, steps
        self.test = data.examples("test", {MODALITY: model.modality(MODALITY).encoder})
        self.seconds: list[float] = []
        self.curve: list[tuple[int, float, float]] = []
        self.start = now()

    def step(self, number: int) -> bool:
        """Note a finished step; whether it was the last one wanted."""
        self.seconds.append(now() - self.start)
        done = number >= self.steps
        if self.until is not None and (number % EVERY == 0 or done):
            accuracy = self._accuracy()
            self.curve.append((number, sum(self.seconds), accuracy))
        self.start = now()
        return done

    def _accuracy(self) -> float:
        self.model.eval()
        answers = answer(self.model, self.test, gate={MODALITY: 1.0})
        self.model.train()
        return float(exact_match(answers, [example.answer for example in self.test]).mean())


class TimerCallback(TrainerCallback):
    """Gives a timer the trainer's steps."""

    def __init__(self, timer: StepTimer) -> None:
        self.timer = timer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.timer.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when the timer has seen enough."""
        control.should_training_stop = self.timer.step(state.global_step)


def measure(
    arm: str, fused: Sequence[int], steps: int, until: float | None, seed: int, attend: Attend
) -> dict[str, Any]:
    """One arm in this process."""
    recipe = recipe_of(arm, fused, seed, attend)
    model, data = build(recipe, device=distributed.device()), RecipeData(recipe)
    examples = data.examples("train", {MODALITY: model.modality(MODALITY).encoder})
    timer = StepTimer(model, data, until, steps)
    progress, reading = WorkProgress(Console(quiet=True)), 0.0
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare_training(model, recipe, examples, Path(folder), progress, data)
        trainer = ready.trainer
        prepare_projectors(model, recipe, trainer.examples, ready.alignment, progress)
        if arm == "plain":
            rows = data.texts("retention")
            texts = [token_ids(model.tokenizer, row.text, (), None) for row in rows]
            foreign = data.samples("foreign", MODALITY, model.modality(MODALITY).encoder)
            _run(
                PlainLoop(
                    model, recipe, examples, trainer.examples, ready.alignment, texts, foreign
                ),
                timer,
            )
        else:
            reading = _seconds(lambda: trainer.precompute(progress))
            trainer.add_callback(TimerCallback(timer))
            trainer.train()
        ready.caches.close()
    return {
        "seconds": timer.seconds, "curve": timer.curve, "reading": reading, "peak_gib": peak_gib(),
    }  # fmt: skip


def _run(loop: PlainLoop, timer: StepTimer) -> None:
    timer.start = now()
    for number in loop.steps():
        if timer.step(number):
            return


def _seconds(work: Callable[[], None]) -> float:
    start = now()
    work()
    return now() - start


def child(
    arm: str, fused: Sequence[int], steps: int, until: float | None, seed: int, attend: Attend
) -> Any:
    """One arm in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = ["--arm", arm, "--fused", *map(str, fused), "--steps", str(steps)]
        words += ["--seeds", str(seed), "--attend", attend, "--output", file.name]
        if until is not None:
            words += ["--until", str(until)]
        subprocess.run([sys.executable, __file__, *words], check=True)
        return json.loads(Path(file.name).read_text("utf-8"))


def median_step(found: Mapping[str, Any]) -> float:
    """Seconds a step, without the first ones."""
    return statistics.median(found["seconds"][WARM_UP:])


def speeds(
    rounds: int, steps: int, seed: int, attend: Attend, report: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds a step of every arm, at each depth of fusion, with ratios round by round."""
    results: dict[str, Any] = {}
    for depth, fused in FUSED.items():
        found: dict[str, list[Any]] = {arm: [] for arm in ARMS}
        for number in range(rounds):
            for arm in ARMS:
                found[arm].append(child(arm, fused, steps, None, seed, attend))
                report(f"{depth}, round {number + 1}, {arm}: {median_step(found[arm][-1]):.2f} s")
        results[depth] = {"fused": list(fused), "arms": _compared(found)}
    return results


def _compared(found: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    medians = {arm: [median_step(one) for one in runs] for arm, runs in found.items()}
    return {
        arm: {
            "seconds": statistics.median(medians[arm]),
            "rounds": medians[arm],
            "times_faster": [
                plain / own for plain, own in zip(medians["plain"], medians[arm], strict=True)
            ],
            "peak_gib": max(run["peak_gib"] for run in runs),
            "reading": max(run["reading"] for run in runs),
        }
        for arm, runs in found.items()
    }


def shown(results: Mapping[str, Any]) -> Table:
    """Every arm at every depth of fusion."""
    table = Table(title="median over rounds; in brackets the least and the most")
    for name in ("fused at", "arm", "s a step", "times faster than plain", "peak GiB", "reading s"):
        table.add_column(name, justify="left" if name in ("fused at", "arm") else "right")
    for depth, result in results.items():
        for arm, found in result["arms"].items():
            ratios = found["times_faster"]
            table.add_row(
                f"{depth} {result['fused']}",
                arm,
                f"{found['seconds']:.2f} [{min(found['rounds']):.2f}, {max(found['rounds']):.2f}]",
                f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
                f"{found['peak_gib']:.2f}",
                f"{found['reading']:.1f}",
            )
    return table


def reaching(
    until: float, seeds: Sequence[int], attend: Attend, report: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of training until an accuracy is reached, and the accuracy in the end."""
    recipe = read_recipe("one-question")
    fused = recipe.modalities[MODALITY].fusion.options["layers"]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            run = child(arm, fused, recipe.training.max_steps, until, seed, attend)
            reached = next((s for _, s, accuracy in run["curve"] if accuracy >= until), None)
            final = run["curve"][-1][2]
            found[arm].append(
                {"seed": seed, "seconds": reached, "final": final, "curve": run["curve"]}
            )
            report(f"seed {seed}, {arm}: {until:.0%} after {reached} s, {final:.1%} in the end")
    return {"fused": list(fused), "until": until, "arms": found}


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="of every measurement")
    parser.add_argument("--until", type=float, default=None, help="accuracy to be reached")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--attend", choices=("answer", "all"), default="answer")
    parser.add_argument("--output", type=Path, default=Path("runs/training.json"))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--fused", type=int, nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    if chosen.arm:
        found = measure(
            chosen.arm, chosen.fused, chosen.steps, chosen.until, chosen.seeds[0], chosen.attend
        )
        chosen.output.write_text(json.dumps(found), "utf-8")
        return
    console = Console(width=120)
    results = speeds(chosen.rounds, chosen.steps, chosen.seeds[0], chosen.attend, console.print)
    console.print(shown(results))
    content = {"speeds": results, "versions": run_versions()}
    if chosen.until is not None:
        content["reaching"] = reaching(chosen.until, chosen.seeds, chosen.attend, console.print)
    chosen.output.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
