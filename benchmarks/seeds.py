"""Several seeds as one number with an interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from safe_framework.evaluation.metrics import Estimate

# Student's t for a 95 % interval, by degrees of freedom; 1.96 beyond.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def over_seeds(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """The mean of several runs with that mean's interval; one run keeps its own."""
    values = [estimate.value for estimate in estimates]
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return {"mean": mean, "low": estimates[0].low, "high": estimates[0].high, "runs": values}
    factor = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    half = factor * statistics.stdev(values) / count**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": values}
