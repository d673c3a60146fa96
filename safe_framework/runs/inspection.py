"""What a finished run can still be asked: how far to open its gate, and what it attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_framework.data.examples import Example
from safe_framework.data.recipe_data import split_by_modality
from safe_framework.errors import DataError
from safe_framework.evaluation.attention import (
    AttentionSummary,
    read_attention,
    summarize_attention,
    write_attention,
)
from safe_framework.evaluation.sweep import (
    BUDGET,
    GATES,
    HELD_OUT,
    TEST,
    VALIDATION,
    GateSweep,
    read_sweeps,
    sweep,
    write_sweep,
)
from safe_framework.runs.finished import RunFolder
from safe_framework.runs.report import write_report
from safe_framework.runs.report.extras import ReportInputs
from safe_framework.runs.report.samples import shown_samples
from safe_framework.runs.run import REPORT, run_versions
from safe_framework.training.monitor.event_log import FILE as MONITOR
from safe_framework.training.monitor.event_log import read_events
from safe_framework.training.splits import split_data
from safe_framework.utils.progress import ProgressCallback


def sweep_gate(
    run: RunFolder,
    modality: str | None = None,
    *,
    gates: Sequence[float] = GATES,
    budget: float = BUDGET,
    most_texts: int = 64,
    progress: ProgressCallback | None = None,
) -> GateSweep:
    """Move the gate of a run's modality over data that were not trained on.

    A gate that is chosen on the test rows makes the gain told of there too good. So they are asked
    only where the recipe names no ``validation`` and its monitor held no training rows out.

    Args:
        run: finished.
        modality: whose gate; the one that was evaluated if None.
        gates: strengths to try.
        budget: least share of unchanged next tokens.
        most_texts: spread evenly over the held-out texts, since every gate reads all of them.
        progress: called with a label, how many are done and of how many.

    Raises:
        DataError: there is nothing to measure on.
    """
    name = run.modality_or_default(modality)
    if most_texts < 1:
        raise DataError(f"at least one text is needed, not {most_texts}")
    split, examples = rows_to_choose_on(run, name)
    texts_of, foreign_of = (
        f"{key}_{VALIDATION if f'{key}_{VALIDATION}' in run.data.sources else TEST}"
        for key in ("retention", "foreign")
    )
    spec, texts = run.recipe.evaluation, run.data.texts(texts_of, run.encoders)
    count = min(most_texts, len(texts))
    return sweep(
        run.model,
        modality=name,
        test=examples,
        texts=[texts[index * len(texts) // count] for index in range(count)],
        foreign=run.data.samples(foreign_of, name, run.encoders[name]),
        gates=gates,
        budget=budget,
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        resamples=spec.bootstrap,
        seed=run.recipe.training.seed,
        split=split,
        progress=progress,
    )


def rows_to_choose_on(run: RunFolder, modality: str) -> tuple[str, list[Example]]:
    """The rows to choose a gate on that have a sample of ``modality``, and what they are."""
    recipe, encoders = run.recipe, run.encoders
    if VALIDATION in run.data.sources:
        split, found = VALIDATION, run.data.examples(VALIDATION, encoders)
    elif recipe.monitor is not None:
        every = run.data.examples("train", encoders)
        split, found = HELD_OUT, [*split_data(recipe, every, run.data, encoders).held_out]
    else:
        return TEST, run.examples(modality)
    return split, split_by_modality(found, modality)[0]


def attention_of_samples(
    run: RunFolder, progress: ProgressCallback | None = None
) -> tuple[AttentionSummary, ...]:
    """What the samples that the report shows are attended to."""
    name = run.evaluation.modality
    shown = {row.place for row in shown_samples(run.evaluation.answers)}
    examples = [example for example in run.examples(name) if example.place in shown]
    tokens = run.evaluation.max_new_tokens
    return summarize_attention(run.model, name, examples, max_new_tokens=tokens, progress=progress)


def report_on(
    run: RunFolder,
    *,
    output: Path | None = None,
    measure: bool = True,
    most_texts: int = 64,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write a finished run's report, with its gate sweep, attention and certificate.

    Args:
        run: finished.
        output: the page; the run's ``report.html`` if None.
        measure: measure the gate sweep and the attention if they have not been, and keep them as
            JSON in the run's folder; otherwise the page says how to.
        most_texts: of a gate sweep.
        progress: called with a label, how many are done and of how many.

    Raises:
        DataError: Matplotlib is not installed, or data are missing.
    """
    folder, name = run.folder, run.evaluation.modality
    if measure and name not in read_sweeps(folder):
        write_sweep(folder, sweep_gate(run, most_texts=most_texts, progress=progress))
    if measure and read_attention(folder) is None:
        write_attention(folder, attention_of_samples(run, progress))
    page = output or folder / REPORT
    write_report(
        page,
        run.evaluation_with_samples(),
        curves=run.log(),
        recipe_text=run.recipe.text,
        versions=run_versions(),
        title=Path(run.recipe.source).stem,
        events=read_events(folder / MONITOR),
        extras=ReportInputs.of(folder),
    )
    return page
