"""One run from recipe to report: build, train, save, evaluate, show."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console

from safe_framework.config.read import read_recipe
from safe_framework.config.schema import Recipe, stage_key
from safe_framework.core.build import build
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.fields import no_kind_error
from safe_framework.data.preview import lacking, missing_sources
from safe_framework.data.recipe_data import InMemory, RecipeData, listing, split_by_modality
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.answers import answer, eval_mode
from safe_framework.evaluation.attention import ATTENTION
from safe_framework.evaluation.base_drift import adapter_facts, describe_change
from safe_framework.evaluation.evaluate import check_pictures, evaluate
from safe_framework.evaluation.read_once import prompts_read_once
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import table
from safe_framework.evaluation.sweep import SWEEP
from safe_framework.hooks import hook_manager
from safe_framework.pretrained.location import composed_folder
from safe_framework.runs.base_check import check_base
from safe_framework.runs.options import recipe_with_rows
from safe_framework.runs.relevance import (
    Scores,
    calibrate,
    fit_heads,
    measure_relevance,
    shipped_calls,
)
from safe_framework.runs.report import write_report
from safe_framework.runs.report.curves import write_monitor_figure
from safe_framework.runs.report.extras import ReportInputs
from safe_framework.runs.report.samples import shown_samples
from safe_framework.training import distributed
from safe_framework.training.distributed import Sharding
from safe_framework.training.monitor.event_log import FILE as MONITOR
from safe_framework.training.monitor.event_log import read_events
from safe_framework.training.monitor.pareto import FOLDER as PARETO
from safe_framework.training.train import Log, train
from safe_framework.utils.console import plain_console
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.run_folder import ADAPTER, STATE
from safe_framework.utils.versions import installed_versions

CHECKPOINTS, CURVES, METRICS, REPORT, SKIPPED = (
    "checkpoints",
    "curves.json",
    "metrics.json",
    "report.html",
    "skipped_rows.jsonl",
)

FIGURE = "monitor.svg"

_MAX_PRINTED = 10  # rows that were left out, on the screen


def run_recipe(
    source: str,
    *,
    output: Path | None = None,
    resume: bool = True,
    quiet: bool = False,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Do everything that a recipe says, and write the run's folder.

    The folder gets ``adapter/``, ``metrics.json``, ``report.html`` and ``checkpoints/``, and from
    a recipe's monitor ``monitor.jsonl``, ``monitor.svg`` and ``pareto/``. A run
    that was killed goes on from its last whole checkpoint and ends at the same weights.

    Args:
        source: a recipe file, or the name of a catalogue recipe.
        output: the run's folder; ``runs/NAME`` if None.
        resume: go on with what the folder holds; otherwise start anew.
        quiet: print nothing.
        data: rows by key of ``[data]``, instead of what the recipe names there.

    Raises:
        RecipeError: the recipe has mistakes, or its base will not do.
        DataError: data are missing, or the folder holds a run of another recipe or other data.
    """
    recipe, memory = read_recipe(source, with_data=not data), InMemory()
    if data:
        recipe, memory = recipe_with_rows(recipe, data)
    check_base(recipe)
    if (missing := missing_sources(recipe)) is not None:
        raise missing  # only after training would it be found out
    for error in lacking(recipe):
        raise error
    folder = output or Path("runs") / Path(recipe.source).stem
    run(recipe, folder, resume=resume, quiet=quiet, memory=memory)
    return folder


@attrs.frozen(eq=False)
class Run:
    """What a run left.

    Attributes:
        folder: of the run: its adapter, its report and what it goes on from.
        model: the trained one.
        evaluation: what was measured; None where there was nothing to measure on.
        log: one row for each logging step.
    """

    folder: Path
    model: SafeModel
    evaluation: Evaluation | None
    log: Log

    @property
    def adapter(self) -> Path:
        """The adapter's folder, for ``load``."""
        return self.folder / ADAPTER


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
    memory: InMemory,
    model: SafeModel | None = None,
) -> Run:
    """Train, save, evaluate and report; where several processes run it, all call this.

    Args:
        recipe: what to do.
        folder: the run's.
        resume: go on with what the folder holds; otherwise start anew.
        quiet: print nothing.
        memory: what of the recipe is in memory.
        model: to train; built as the recipe says if None.

    Raises:
        DataError: data are missing, or the folder holds a run of another recipe or other data.
    """
    with distributed.distributed_context() as sharding:
        if distributed.is_main_process():
            _claim_folder(folder, recipe, resume, _run_identity(recipe, memory, model))
        distributed.barrier()
        console = plain_console(quiet=quiet or not distributed.is_main_process())
        done = _run(
            recipe, folder, console, resume=resume, sharding=sharding, memory=memory, model=model
        )
        distributed.barrier()
    return done


def _run(
    recipe: Recipe,
    folder: Path,
    console: Console,
    *,
    resume: bool,
    sharding: Sharding | None,
    memory: InMemory,
    model: SafeModel | None,
) -> Run:
    """Everything that each of the processes does."""
    clock, writes = Clock(), distributed.is_main_process()
    if (count := distributed.world_size()) > 1:
        shared = ", which share the base's layers" if sharding else ""
        console.print(f"{count} processes{shared}")
    if recipe.training.note:
        console.print(recipe.training.note)
    evaluation: Evaluation | None = None
    with WorkProgress(console).showing() as progress:
        if model is None:
            _compose_if_missing(recipe, console, progress)
            with clock.timing("build"):
                model = build(recipe, device=None if sharding else distributed.device())
        data = RecipeData(recipe, progress, memory)
        examples = _read_all_data(model, data, recipe.evaluation.by)
        shown = _print_skipped(console, data, folder) if writes else 0
        with clock.timing("train"):
            log = _train(
                model, recipe, examples["train"], folder / CHECKPOINTS,
                progress=progress, resume=resume, data=data, sharding=sharding,
            )  # fmt: skip
        if writes:
            _print_skipped(console, data, folder, shown)  # of `foreign`, where training wanted it
        scores = _fit_relevance(
            model, recipe, data, examples, progress, clock, sharded=sharding is not None
        )
        model.save_pretrained(folder / ADAPTER, is_main_process=writes)
        if missing_sources(recipe) is None:
            with clock.timing("evaluate"), prompts_read_once(model):
                evaluation = evaluate_run(model, recipe, data, progress)
                found = measure_relevance(
                    model, recipe, data, evaluation, progress,
                    scores=scores.get(evaluation.modality),
                )  # fmt: skip
                evaluation = attrs.evolve(evaluation, relevance=found)
            if writes and model.base_change is not None and evaluation.base_changed is not None:
                # Only now is known how far the base went, which the adapter and its card say.
                model.base_change.drift = adapter_facts(evaluation.base_changed.drift)
                model.save_pretrained(folder / ADAPTER)
    if writes and evaluation is not None:
        evaluation = _with_costs(evaluation, folder, clock)
        _write_results(folder, recipe, evaluation, log)
        console.print(table(evaluation))
        if evaluation.base_changed is not None:
            warning = describe_change(evaluation.base_changed)
            console.print(warning, style="bold red")
        console.print(f"report   {folder / REPORT}", soft_wrap=True)
    if writes:
        console.print(f"adapter  {folder / ADAPTER}", soft_wrap=True)
    return Run(folder, model, evaluation, log)


def _compose_if_missing(recipe: Recipe, console: Console, progress: WorkProgress) -> None:
    """Make the base that ``[base.compose]`` describes, where this is the first run to need it."""
    base = recipe.base
    if base.compose is None or composed_folder(base.model).is_dir():
        return
    if distributed.is_main_process():
        from safe_framework.experimental.vision_language.train import compose_recipe

        console.print(
            f"the base `{base.model}` is made first, once, as `safe compose {recipe.source}` does"
        )
        compose_recipe(recipe, progress)
    distributed.barrier()


def _train(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    *,
    progress: WorkProgress,
    resume: bool,
    data: RecipeData,
    sharding: Sharding | None,
) -> Log:
    """Train the modalities, and the base where the recipe has ``[stage_b]``."""
    if recipe.stage_b is None:
        return train(
            model, recipe, examples, folder,
            progress=progress, resume=resume, data=data, sharding=sharding,
        )  # fmt: skip
    from safe_framework.experimental.base_finetuning.train import train_stages

    return train_stages(
        model, recipe, examples, folder, progress=progress, resume=resume, data=data
    )


def _fit_relevance(
    model: SafeModel,
    recipe: Recipe,
    data: RecipeData,
    examples: Mapping[str, Sequence[Example]],
    progress: WorkProgress,
    clock: Clock,
    *,
    sharded: bool,
) -> dict[str, Scores]:
    """Fit the heads of all senses that have some, and calibrate those that are to be.

    Every process does the same with the same states, which the first one computes.

    Returns:
        Of each sense with a head, what that made of the calls of its calibration.
    """
    found = dict[str, Scores]()
    if not any(spec.relevance_head for spec in recipe.modalities.values()):
        return found  # which costs nothing that is worth a line
    if sharded:
        progress.console.print(
            "no relevance heads: devices that share the base's layers cannot run its texts apart"
        )
        return found
    with distributed.main_process_first(), clock.timing("relevance"):
        names, notes = fit_heads(
            model, recipe, examples["train"], data.texts("retention"), progress=progress
        )
        for note in notes:
            progress.console.print(note)
        for name in names:
            found[name] = {}
            spec = recipe.modalities[name].relevance_head
            if spec is None or not spec.calibrate:
                continue
            given = shipped_calls(model, name, recipe, examples["test"])
            try:
                statement = calibrate(
                    model, name, given, risk=spec.risk, confidence=spec.confidence,
                    scores=found[name], progress=progress,
                )  # fmt: skip
            except SafeError as error:  # a run is not lost by what can be done later
                progress.console.print(
                    f"the gate of {name} is not calibrated: {error.message}; {error.hint}"
                )
            else:
                progress.console.print(statement["sentence"])
    return found


def evaluate_run(
    model: SafeModel, recipe: Recipe, data: RecipeData, progress: WorkProgress
) -> Evaluation:
    """Evaluate the recipe's first modality on the test rows that have a sample of it.

    Raises:
        DataError: no training row has one, or no test row.
    """
    modality = next(iter(model.modalities))
    encoders = model.encoders
    having: dict[str, list[Example]] = {}
    for key in ("train", "test"):
        having[key], lacking = split_by_modality(data.examples(key, encoders), modality)
        if lacking:
            progress.console.print(
                f"{len(lacking)} rows of `{key}` have no `{modality}`: not evaluated"
            )
    found = evaluate(
        model,
        modality=modality,
        train=having["train"],
        test=having["test"],
        texts=data.texts("retention_test", encoders),
        foreign=data.samples("foreign_test", modality, encoders[modality]),
        seed=recipe.training.seed,
        chats=data.other_chats(),
        progress=progress,
        **attrs.asdict(recipe.evaluation),
    )
    return _with_half_open(model, recipe, found, having["test"])


@torch.no_grad()
def _with_half_open(
    model: SafeModel, recipe: Recipe, evaluation: Evaluation, test: Sequence[Example]
) -> Evaluation:
    """The evaluation with answers at gate 0.5 to the rows with a picture that a report shows."""
    shown = {row.place for row in shown_samples(evaluation.answers) if row.pictured}
    examples = [example for example in test if example.place in shown]
    if not examples:
        return evaluation
    with eval_mode(model):
        given = answer(
            model,
            examples,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=recipe.evaluation.batch_size,
            gate={evaluation.modality: 0.5},
        )
    by_place = {example.place: text for example, text in zip(examples, given, strict=True)}
    answers = tuple(
        attrs.evolve(row, half_open=by_place.get(row.place)) for row in evaluation.answers
    )
    return attrs.evolve(evaluation, answers=answers)


class Clock:
    """Seconds spent in each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to ``part``."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def run_versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    return installed_versions("safe-framework", "torch", "transformers", "peft", "accelerate")


def _read_all_data(model: SafeModel, data: RecipeData, by: str | None) -> dict[str, list[Example]]:
    """Read everything now, so that a bad row stops the run before it has trained."""
    encoders = model.encoders
    data.texts("retention")
    texts = data.texts("retention_test", encoders)
    first = next(iter(encoders))
    data.samples("foreign_test", first, encoders[first])
    examples = {key: data.examples(key, encoders) for key in ("train", "test")}
    check_pictures(model, split_by_modality(examples["test"], first)[0])
    fields = [one.fields for one in examples["test"]] + [one.fields for one in texts]
    if by is not None and not any(by in held for held in fields):
        raise no_kind_error(by)
    return examples


def _print_skipped(console: Console, data: RecipeData, folder: Path, shown: int = 0) -> int:
    """Say which rows are left out after the first ``shown``, and list all in the run's folder."""
    rows = listing(data.skipped)
    if rows:
        atomic_write(folder / SKIPPED, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        (folder / SKIPPED).unlink(missing_ok=True)
    if len(rows) > shown:
        counts = ", ".join(f"{len(errors)} of `{key}`" for key, errors in data.skipped.items())
        console.print(f"left out {counts}: {folder / SKIPPED}", soft_wrap=True)
        for row in rows[shown : shown + _MAX_PRINTED]:
            console.print(f"  {row['problem']}", soft_wrap=True)
    return len(rows)


def _claim_folder(folder: Path, recipe: Recipe, resume: bool, mine: dict[str, Any]) -> None:
    """Make the folder this recipe's own, or refuse to mix two runs in it."""
    state = folder / STATE
    if not resume:
        _remove_checkpoints(folder / CHECKPOINTS)
        shutil.rmtree(folder / PARETO, ignore_errors=True)
        for name in (MONITOR, FIGURE, *_MEASURED):
            (folder / name).unlink(missing_ok=True)
    elif state.exists() and not _is_same_run(held := json.loads(state.read_text("utf-8")), mine):
        same_recipe, same_base = (held.get(key) == mine.get(key) for key in ("recipe", "base"))
        other = "other training data" if same_base else "another base"
        what = other if same_recipe else "another recipe"
        raise DataError(
            f"`{folder}` holds a run of {what}",
            hint="start anew there with --no-resume, or choose another folder with --output "
            "(in Python, `resume=False` or `output=...`)",
        )
    source = str((recipe.folder / Path(recipe.source).name).absolute())
    atomic_write(state, json.dumps({**mine, "source": source}) + "\n")


def _is_same_run(held: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether it is the same run; where its recipe lies may have changed."""
    return {key: held.get(key) for key in mine} == mine


def _remove_checkpoints(checkpoints: Path) -> None:
    """Remove the checkpoints, such that a kill never leaves some that look whole."""
    aside = checkpoints.with_name(f".{checkpoints.name}-old")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed here
    if checkpoints.exists():
        checkpoints.replace(aside)
        shutil.rmtree(aside)


def _run_identity(recipe: Recipe, memory: InMemory, model: SafeModel | None) -> dict[str, Any]:
    """What a run's weights depend on: the recipe, what it names, and what is in memory."""
    data = RecipeData(recipe, memory=memory)
    keys = [*data.trained_on(), *map(stage_key, range(len(recipe.curriculum)))]
    keys += ["validation", "retention_validation", "foreign_validation"] if recipe.monitor else []
    trained_on = {key: data.digest(key) for key in keys if key in data.sources}
    if recipe.stage_b is not None and recipe.stage_b.start is not None:
        from safe_framework.experimental.base_finetuning.train import start_digest

        trained_on["start"] = start_digest(recipe.folder / recipe.stage_b.start)
    own = {} if model is None else {"base": model.base_identity()["weights"]}
    return {"recipe": text_fingerprint(recipe.text), "data": trained_on, **own}


def _with_costs(evaluation: Evaluation, folder: Path, clock: Clock) -> Evaluation:
    files = (file for file in (folder / ADAPTER).rglob("*") if file.is_file())
    size = sum(file.stat().st_size for file in files)
    seconds = {f"{part}_seconds": spent for part, spent in clock.seconds.items()}
    return attrs.evolve(evaluation, costs={"adapter_bytes": size, **seconds})


_MEASURED = (SWEEP, ATTENTION)
"""What other commands measured on a finished run."""


def _measures_as_before(folder: Path, evaluation: Evaluation) -> bool:
    """Whether the run was evaluated before with the same results: every answer, every number."""
    path = folder / METRICS
    if not path.is_file():
        return False
    found = [json.loads(text) for text in (path.read_text("utf-8"), evaluation.to_json())]
    for one in found:
        one.pop("costs", None)  # seconds
    before, now = found
    return bool(before == now)


def _write_results(
    folder: Path, recipe: Recipe, evaluation: Evaluation, log: list[dict[str, Any]]
) -> None:
    if not _measures_as_before(folder, evaluation):
        for name in _MEASURED:  # on another adapter, or on other rows
            (folder / name).unlink(missing_ok=True)
    atomic_write(folder / METRICS, evaluation.to_json())
    atomic_write(folder / CURVES, json.dumps(log) + "\n")
    events = read_events(folder / MONITOR)
    write_monitor_figure(folder / FIGURE, events)
    write_report(
        folder / REPORT,
        evaluation,
        curves=log,
        events=events,
        recipe_text=recipe.text,
        versions=run_versions(),
        title=Path(recipe.source).stem,
        extras=ReportInputs.of(folder),
    )
    hook_manager().hook.safe_run_finished(
        run_folder=folder, metrics=json.loads(evaluation.to_json())
    )
