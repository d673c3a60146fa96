"""Curriculum, monitor and event log of a run, as a callback of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.distractors import FOREIGN, KINDS
from safe_framework.data.frame_cache import FrameCache, RawSampleStore
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.answers import answer_room
from safe_framework.interfaces.samples import sample_counts
from safe_framework.training import distributed
from safe_framework.training.batches import TokenizedExample
from safe_framework.training.curriculum import Curriculum
from safe_framework.training.monitor.event_log import FILE, EventLog
from safe_framework.training.monitor.measurement import HeldOutEvaluator, HeldOutText
from safe_framework.training.monitor.monitor import Monitor
from safe_framework.training.monitor.pareto import FOLDER, ParetoSet
from safe_framework.training.retention.counterfactual import distractor_pools
from safe_framework.training.schedules import LearningRateScaler, TrainingScales
from safe_framework.training.setup import task_samples, whole_row
from safe_framework.training.splits import DataSplit
from safe_framework.utils.progress import WorkProgress

_MIN_HELD_OUT = 20  # texts or examples: intervals of fewer are too narrow to be trusted


class MonitoringState:
    """Curriculum, monitor and event log of a run, and their part of its checkpoints.

    Args:
        event_log: of the run; None without.
        scales: changed by curriculum and monitor.
        curriculum: the stages; None without.
        monitor: None without.
    """

    def __init__(
        self,
        event_log: EventLog | None = None,
        scales: TrainingScales | None = None,
        curriculum: Curriculum | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.event_log, self.scales = event_log, scales or TrainingScales()
        self.curriculum, self.monitor = curriculum, monitor

    @property
    def stage(self) -> str:
        """What the present stage is called; empty without stages."""
        return self.curriculum.name if self.curriculum else ""

    @property
    def stopped(self) -> bool:
        """Whether training was stopped before its last step."""
        return self.monitor is not None and bool(self.monitor.state.stopped)

    @property
    def active(self) -> bool:
        """Whether there is a curriculum or a monitor at all."""
        return self.curriculum is not None or self.monitor is not None

    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer has to call."""
        return [MonitorCallback(self), LearningRateScaler(self.scales)] if self.active else []

    def begin(self, checkpoint: Path | None) -> None:
        """Resume from a checkpoint, or start anew."""
        if checkpoint is None:
            if self.event_log is not None:
                self.event_log.clear()
            if self.monitor is not None and self.monitor.writes:
                self.monitor.pareto.clear()
            return
        for part in self._parts():
            part.restore(checkpoint)

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint what a resumed run needs."""
        for part in self._parts():
            part.save(checkpoint)

    def _parts(self) -> list[EventLog | Curriculum | Monitor]:
        """Everything that has state to save."""
        parts = (self.event_log, self.curriculum, self.monitor)
        return [part for part in parts if part is not None] if self.active else []

    def finish(self) -> None:
        """Load the best adapter into the model, where a monitor found one."""
        if self.monitor is not None:
            self.monitor.finish()

    def log_stage(self, step: int) -> None:
        """Log that a stage begins."""
        if self.curriculum is not None and self.event_log is not None:
            stage, rows = self.stage, len(self.curriculum.members[self.curriculum.number])
            line = (
                f"stage `{stage}` begins: {rows} rows, "
                f"rates x {self.scales.stage.rate:g}, retention x {self.scales.stage.retention:g}"
            )
            self.event_log.log("stage", step, line, stage=stage, number=self.curriculum.number)


class MonitorCallback(TrainerCallback):
    """Measures, acts on the result and advances the curriculum at the ends of steps.

    Args:
        monitoring: of the run.
    """

    def __init__(self, monitoring: MonitoringState) -> None:
        self.monitoring = monitoring

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what training starts from.

        Raises:
            SafeError: DeepSpeed steps the optimizer, in which no rate can be changed.
        """
        refuse_deepspeed(AcceleratorState().distributed_type)
        if state.global_step == 0:
            self.monitoring.log_stage(0)
            if self.monitoring.monitor is not None:
                self.monitoring.monitor.measure(0, self.monitoring.stage, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if it is time, and stop or move on to the next stage if that is due."""
        monitoring, step, values = self.monitoring, state.global_step, None
        if monitoring.monitor is not None and monitoring.monitor.is_due(step, state.max_steps):
            measurement = monitoring.monitor.measure(step, monitoring.stage, kwargs["optimizer"])
            values = measurement.values if measurement else None
        moved = monitoring.curriculum is not None and monitoring.curriculum.advance(step, values)
        if moved and step < state.max_steps:
            monitoring.log_stage(step)
        if monitoring.monitor is not None:
            if moved:
                monitoring.monitor.reset_patience()
            monitoring.monitor.check_patience(step)
            if monitoring.stopped:
                control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove adapters that no resumed run needs."""
        if self.monitoring.monitor is not None and self.monitoring.monitor.writes:
            self.monitoring.monitor.pareto.prune(self.monitoring.monitor.measurements)


def refuse_deepspeed(kind: DistributedType) -> None:
    """Refuse to monitor training whose rates cannot be changed.

    Raises:
        SafeError: the processes train by DeepSpeed.
    """
    if kind == DistributedType.DEEPSPEED:
        raise SafeError(
            "[monitor] and [[curriculum]] cannot turn the rates of an optimizer of DeepSpeed's",
            hint="launch the run with DDP or FSDP2",
        )


def refuse_classes(held_out: Sequence[TokenizedExample]) -> None:
    """Refuse answers that are not generated.

    Raises:
        DataError: one is read at the modality's tokens.
    """
    if any(one.classes for one in held_out):
        raise DataError(
            "[monitor] cannot measure classes that are read at the modality's tokens",
            hint='set `read_at = "answer"`, or name a `validation` of spoken answers in [data]',
        )


def make_monitoring(
    model: SafeModel,
    recipe: Recipe,
    split: DataSplit,
    held_out: Sequence[TokenizedExample],
    stores: Mapping[str, FrameCache | RawSampleStore],
    folder: Path,
    progress: WorkProgress,
) -> MonitoringState:
    """What a recipe's ``[[curriculum]]`` and ``[monitor]`` ask for.

    Args:
        model: to be trained.
        recipe: has the tables.
        split: its data.
        held_out: the split's held-out examples, tokenized.
        stores: the frames of each modality.
        folder: of the run.
        progress: its console shows the events.
    """
    writes = distributed.is_main_process()
    event_log = EventLog(folder / FILE, progress, writes=writes)
    scales, curriculum = TrainingScales(), None
    if recipe.curriculum:
        answers = [example.label for example in split.examples]
        curriculum = Curriculum(recipe.curriculum, split.members, answers, recipe.training, scales)
    if recipe.monitor is None:
        return MonitoringState(event_log, scales, curriculum)
    refuse_classes(held_out)
    _warn(recipe, split, progress)
    evaluator = HeldOutEvaluator(
        model,
        held_out,
        held_out_texts(model, split, stores, recipe.training.seed),
        batch_size=recipe.evaluation.batch_size,
        max_new_tokens=answer_room(model, split.held_out, recipe.evaluation.max_new_tokens),
        pad=model.tokenizer.eos_token_id,
    )
    gates = {name: spec.gate.value for name, spec in recipe.modalities.items()}
    monitor = Monitor(
        recipe.monitor,
        model,
        evaluator,
        event_log,
        ParetoSet(folder / FOLDER, model, gates),
        scales,
        resamples=recipe.evaluation.bootstrap,
        seed=recipe.training.seed,
        writes=writes,
    )
    return MonitoringState(event_log, scales, curriculum, monitor)


def held_out_texts(
    model: SafeModel, split: DataSplit, stores: Mapping[str, FrameCache | RawSampleStore], seed: int
) -> list[HeldOutText]:
    """The held-out texts, each with distractors, none of which is trained on.

    The kinds of distractor take turns; foreign samples are one, where every modality has some.
    """
    samples = task_samples(model, split.held_out)
    available = {name: store for name, store in stores.items() if samples[name]}
    kinds = [*KINDS, *([FOREIGN] if available and all(map(split.foreign.get, available)) else [])]
    pools = distractor_pools(kinds, samples, available, seed + 1, split.foreign)
    prompts, texts = PromptEncoder.of(model), []
    for number, text in enumerate(split.texts):
        round_, turn = divmod(number, len(kinds))
        frames = {
            name: pool[kinds[turn]][round_ % len(pool[kinds[turn]])] for name, pool in pools.items()
        }
        plain, marked = whole_row(prompts, text), whole_row(prompts, text, sample_counts(frames))
        texts.append(HeldOutText(plain, marked, frames))
    return texts


def _warn(recipe: Recipe, split: DataSplit, progress: WorkProgress) -> None:
    """Warn of what the monitor cannot do well."""
    warnings = []
    for name, found in {"examples": split.held_out, "texts": split.texts}.items():
        if len(found) < _MIN_HELD_OUT:
            warnings.append(f"only {len(found)} {name}: read its intervals with care")
    asked = recipe.monitor is not None and recipe.monitor.on_forget.retention_weight != 1
    if asked and not any(one.weight for one in recipe.retention):
        warnings.append("no [[retention]] has a weight, so it can lower the rates alone")
    for line in warnings:
        progress.console.print(f"monitor: {line}", highlight=False, markup=False, soft_wrap=True)
