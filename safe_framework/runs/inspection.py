"""What a finished run can still be asked: how far to open its gate, and what it attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_framework.errors import DataError
from safe_framework.evaluation.answers import Progress
from safe_framework.evaluation.attention import Attended, attended, read_attention, write_attention
from safe_framework.evaluation.sweep import (
    BUDGET,
    GATES,
    GateSweep,
    read_sweeps,
    sweep,
    write_sweep,
)
from safe_framework.runs.finished import FinishedRun
from safe_framework.runs.report import write_report
from safe_framework.runs.report.extras import Extras
from safe_framework.runs.report.samples import chosen
from safe_framework.runs.run import REPORT, versions
from safe_framework.training.monitor.event_log import FILE as MONITOR
from safe_framework.training.monitor.event_log import read_events


def swept(
    run: FinishedRun,
    modality: str | None = None,
    *,
    gates: Sequence[float] = GATES,
    budget: float = BUDGET,
    most_texts: int = 64,
    progress: Progress | None = None,
) -> GateSweep:
    """Move the gate of a run's modality over its own test data.

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
    name = run.known(modality)
    if most_texts < 1:
        raise DataError(f"at least one text is needed, not {most_texts}")
    spec, texts = run.recipe.evaluation, run.data.texts("retention_test")
    count = min(most_texts, len(texts))
    return sweep(
        run.model,
        modality=name,
        test=run.examples(name),
        texts=[texts[place * len(texts) // count] for place in range(count)],
        foreign=run.foreign(name),
        gates=gates,
        budget=budget,
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        resamples=spec.bootstrap,
        seed=run.recipe.training.seed,
        progress=progress,
    )


def looked_at(run: FinishedRun, progress: Progress | None = None) -> tuple[Attended, ...]:
    """What the samples that the report shows are attended to."""
    name = run.evaluation.modality
    shown = {row.place for row in chosen(run.evaluation.answers)}
    examples = [example for example in run.examples(name) if example.place in shown]
    tokens = run.recipe.evaluation.max_new_tokens
    return attended(run.model, name, examples, max_new_tokens=tokens, progress=progress)


def report_on(
    run: FinishedRun,
    *,
    output: Path | None = None,
    measure: bool = True,
    most_texts: int = 64,
    progress: Progress | None = None,
) -> Path:
    """Write a finished run's report, with its gate sweep, attention and certificate.

    Args:
        run: finished.
        output: the page; the run's ``report.html`` if None.
        measure: measure the gate sweep and the attention if they have not been, and keep them as
            JSON beside the run; otherwise the page says how to.
        most_texts: of a gate sweep.
        progress: called with a label, how many are done and of how many.

    Raises:
        DataError: Matplotlib is not installed, or data are missing.
    """
    folder, name = run.folder, run.evaluation.modality
    if measure and name not in read_sweeps(folder):
        write_sweep(folder, swept(run, most_texts=most_texts, progress=progress))
    if measure and read_attention(folder) is None:
        write_attention(folder, looked_at(run, progress))
    page = output or folder / REPORT
    write_report(
        page,
        run.evaluation_with_samples(),
        curves=run.log(),
        recipe_text=run.recipe.text,
        versions=versions(),
        title=Path(run.recipe.source).stem,
        events=read_events(folder / MONITOR),
        extras=Extras(run.certificate(), read_sweeps(folder), read_attention(folder)),
    )
    return page
