"""Tells the terminal and the installed hooks how training goes."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from safe_framework.hooks import hook_manager
from safe_framework.utils.progress import WorkProgress

LABEL = "training"


class ProgressReport(TrainerCallback):
    """Moves the progress bar with every step and passes logged metrics to hooks.

    Args:
        progress: the bars.
        label: of the bar.
    """

    def __init__(self, progress: WorkProgress, label: str = LABEL) -> None:
        self.progress, self.label, self.note = progress, label, ""
        self.hooks = hook_manager()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.progress(self.label, state.global_step, state.max_steps, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the two losses and call the hooks."""
        if "task_loss" in logs:
            self.note = f"task {logs['task_loss']:.3f}  retention {logs['retention_loss']:.3f}"
        if state.is_world_process_zero:
            self.hooks.hook.safe_training_step(step=state.global_step, metrics=dict(logs))
