"""Measure a new sense and show it: a table and ``metrics.json``; ``report`` makes the page."""

from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.metrics import Estimate
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.table import table

__all__ = ["Estimate", "Evaluation", "evaluate", "table"]
