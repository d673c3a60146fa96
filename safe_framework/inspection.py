"""What a finished run can still be asked: how far to open its gate."""

from __future__ import annotations

from collections.abc import Sequence

from safe_framework.errors import DataError
from safe_framework.evaluation.answers import Progress
from safe_framework.evaluation.sweep import BUDGET, GATES, sweep
from safe_framework.evaluation.sweep_results import GateSweep
from safe_framework.finished import FinishedRun


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
