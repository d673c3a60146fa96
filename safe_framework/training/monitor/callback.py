"""A run's curriculum, monitor and journal, and where the Trainer meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.data.distractors import FOREIGN, KINDS
from safe_framework.data.frame_cache import FrameCache, RawSampleStore
from safe_framework.errors import DataError, SafeError
from safe_framework.training import distributed
from safe_framework.training.batches import TokenizedExample, token_ids
from safe_framework.training.curriculum import Curriculum
from safe_framework.training.monitor.event_log import FILE, Journal
from safe_framework.training.monitor.measurement import HeldText, Ruler
from safe_framework.training.monitor.monitor import Monitor
from safe_framework.training.monitor.pareto import FOLDER, ParetoSet
from safe_framework.training.retention.counterfactual import distractor_pools
from safe_framework.training.schedules import LearningRateScaler, TrainingScales
from safe_framework.training.splits import DataSplit
from safe_framework.utils.progress import WorkProgress

_FEW = 20  # texts or examples: intervals of fewer are too narrow to be trusted


class Watch:
    """What goes on beside the losses of a run; nothing where its recipe asks for nothing.

    Args:
        journal: is told everything; None where nobody says anything.
        scales: turned by the others.
        curriculum: the stages; None without.
        monitor: None without.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        scales: TrainingScales | None = None,
        curriculum: Curriculum | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.journal, self.scales = journal, scales or TrainingScales()
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
        return [Watching(self), LearningRateScaler(self.scales)] if self.active else []

    def begin(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint, or start anew."""
        if checkpoint is None:
            if self.journal is not None:
                self.journal.clear()
            if self.monitor is not None and self.monitor.writes:
                self.monitor.pareto.clear()
            return
        for part in self._parts():
            part.restore(checkpoint)

    def keep(self, checkpoint: Path) -> None:
        """Write into a checkpoint all that a resumed run goes on with."""
        for part in self._parts():
            part.keep(checkpoint)

    def _parts(self) -> list[Journal | Curriculum | Monitor]:
        """All that has something to keep."""
        held = (self.journal, self.curriculum, self.monitor)
        return [part for part in held if part is not None] if self.active else []

    def finish(self) -> None:
        """Give the model the best adapter, if somebody knows which it is."""
        if self.monitor is not None:
            self.monitor.finish()

    def tell_stage(self, step: int) -> None:
        """Say that a stage begins."""
        if self.curriculum is not None and self.journal is not None:
            stage, rows = self.stage, len(self.curriculum.members[self.curriculum.number])
            line = (
                f"stage `{stage}` begins: {rows} rows, "
                f"rates x {self.scales.stage.rate:g}, retention x {self.scales.stage.retention:g}"
            )
            self.journal.tell("stage", step, line, stage=stage, number=self.curriculum.number)


class Watching(TrainerCallback):
    """Measures, judges and moves on at the ends of steps.

    Args:
        watch: what to call.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what training starts from.

        Raises:
            SafeError: DeepSpeed steps the optimizer, in which no rate can be turned.
        """
        refuse_deepspeed(AcceleratorState().distributed_type)
        if state.global_step == 0:
            self.watch.tell_stage(0)
            if self.watch.monitor is not None:
                self.watch.monitor.look(0, self.watch.stage, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if it is time, and stop or move on to the next stage if that is due."""
        watch, step, measured = self.watch, state.global_step, None
        if watch.monitor is not None and watch.monitor.due(step, state.max_steps):
            reading = watch.monitor.look(step, watch.stage, kwargs["optimizer"])
            measured = reading.measured if reading else None
        moved = watch.curriculum is not None and watch.curriculum.advance(step, measured)
        if moved and step < state.max_steps:
            watch.tell_stage(step)
        if watch.monitor is not None:
            if moved:
                watch.monitor.be_patient()
            watch.monitor.lose_patience(step)
            if watch.stopped:
                control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove what no resumed run can come back to."""
        if self.watch.monitor is not None and self.watch.monitor.writes:
            self.watch.monitor.pareto.prune(self.watch.monitor.readings)


def refuse_deepspeed(kind: DistributedType) -> None:
    """Refuse to watch what cannot be defended.

    Raises:
        SafeError: the processes train by DeepSpeed.
    """
    if kind == DistributedType.DEEPSPEED:
        raise SafeError(
            "[monitor] and [[curriculum]] cannot turn the rates of an optimizer of DeepSpeed's",
            hint="launch the run with DDP or FSDP2",
        )


def refuse_classes(held: Sequence[TokenizedExample]) -> None:
    """Refuse answers that are not spoken.

    Raises:
        DataError: one is read at the modality's tokens.
    """
    if any(one.classes for one in held):
        raise DataError(
            "[monitor] cannot measure classes that are read at the modality's tokens",
            hint='set `read_at = "answer"`, or name a `validation` of spoken answers in [data]',
        )


def watch_of(
    model: SafeModel,
    recipe: Recipe,
    split: DataSplit,
    held: Sequence[TokenizedExample],
    stores: Mapping[str, FrameCache | RawSampleStore],
    folder: Path,
    progress: WorkProgress,
) -> Watch:
    """What a recipe's ``[[curriculum]]`` and ``[monitor]`` ask for.

    Args:
        model: to be trained.
        recipe: says what is asked for.
        split: its data.
        held: the split's held-out examples, tokenized.
        stores: the frames of each modality.
        folder: of the run.
        progress: its console shows the events.
    """
    writes = distributed.is_main_process()
    journal = Journal(folder / FILE, progress, writes=writes)
    scales, curriculum = TrainingScales(), None
    if recipe.curriculum:
        answers = [example.answer for example in split.examples]
        curriculum = Curriculum(recipe.curriculum, split.members, answers, recipe.training, scales)
    if recipe.monitor is None:
        return Watch(journal, scales, curriculum)
    refuse_classes(held)
    _warn(recipe, split, progress)
    ruler = Ruler(
        model,
        held,
        held_texts(model, split, stores, recipe.training.seed),
        batch_size=recipe.evaluation.batch_size,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        pad=model.tokenizer.eos_token_id,
    )
    gates = {name: spec.gate.value for name, spec in recipe.modalities.items()}
    monitor = Monitor(
        recipe.monitor,
        model,
        ruler,
        journal,
        ParetoSet(folder / FOLDER, model, gates),
        scales,
        resamples=recipe.evaluation.bootstrap,
        seed=recipe.training.seed,
        writes=writes,
    )
    return Watch(journal, scales, curriculum, monitor)


def held_texts(
    model: SafeModel, split: DataSplit, stores: Mapping[str, FrameCache | RawSampleStore], seed: int
) -> list[HeldText]:
    """The held-out texts, each beside irrelevant samples, of which no one is trained on.

    The kinds take turns. Foreign samples are one, where every modality has some.
    """
    samples = {
        name: [e.samples[name] for e in split.held_out if name in e.samples]
        for name in model.modalities
    }
    there = {name: store for name, store in stores.items() if samples[name]}
    kinds = [*KINDS, *([FOREIGN] if there and all(map(split.foreign.get, there)) else [])]
    pools = distractor_pools(kinds, samples, there, seed + 1, split.foreign)
    markers = model.processor.markers
    texts = []
    for number, text in enumerate(split.texts):
        round_, turn = divmod(number, len(kinds))
        frames = {
            name: pool[kinds[turn]][round_ % len(pool[kinds[turn]])] for name, pool in pools.items()
        }
        plain = token_ids(model.tokenizer, text, (), markers)
        texts.append(HeldText(plain, token_ids(model.tokenizer, text, frames, markers), frames))
    return texts


def _warn(recipe: Recipe, split: DataSplit, progress: WorkProgress) -> None:
    """Say what the monitor cannot do well."""
    told = []
    for name, found in {"examples": split.held_out, "texts": split.texts}.items():
        if len(found) < _FEW:
            told.append(f"only {len(found)} {name}: read its intervals with care")
    asked = recipe.monitor is not None and recipe.monitor.on_forget.retention_weight != 1
    if asked and not any(one.weight for one in recipe.retention):
        told.append("no [[retention]] has a weight, so it can lower the rates alone")
    for line in told:
        progress.console.print(f"monitor: {line}", highlight=False, markup=False, soft_wrap=True)
