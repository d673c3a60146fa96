"""The Hugging Face Trainer, extended by its public names alone.

A step may be computed in shards, each part of the model has its own learning rate, and a run reads
its examples in an order that is known beforehand, so that a resumed one goes on as if nothing had
happened. A checkpoint holds the adapter's tensors and none of the base's; it counts once a marker
lies in it, which is written last, so that a kill at any moment cannot spoil it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.adapter import check_tensors
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, Rows
from safe_framework.core.relevance import AUTO
from safe_framework.errors import SafeError
from safe_framework.training import distributed
from safe_framework.training.alignment import Alignment
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.prompt_cache import PromptCache
from safe_framework.training.distributed import StepShard, average_gradients, rows_per_shard
from safe_framework.training.monitor.callback import MonitoringState
from safe_framework.training.objective import Objective, step_totals
from safe_framework.training.optimizer import make_optimizer
from safe_framework.training.questions import Questions
from safe_framework.training.retention.counterfactual import CounterfactualRetention
from safe_framework.training.sampling import training_order
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import ProgressCallback
from safe_framework.utils.tensors import cpu_copy

WEIGHTS = SAFE_WEIGHTS_NAME
"""The adapter's tensors, under the name that the Trainer looks for."""
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_COMPLETE = "complete"
_FORMAT = "2"  # of what a checkpoint holds; the first one's marker was empty
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""What transformers calls each schedule of a recipe."""


@dataclass
class SafeTrainingArguments(TrainingArguments):
    """The Trainer's arguments, with what it may do with the devices of a SafeModel.

    Attributes:
        sharded: whether devices share the base's layers.
    """

    sharded: bool = False

    @property
    def place_model_on_device(self) -> bool | None:
        """No for a base that is to be sharded: whole, it may fit on no device."""
        default: bool | None = super().place_model_on_device
        return False if self.sharded else default

    @property
    def n_gpu(self) -> int:
        """At most one in a process: hooks do not reach the threads of DataParallel."""
        return min(int(super().n_gpu), 1)


def training_arguments(
    spec: TrainingSpec, folder: Path, *, sharded: bool = False
) -> SafeTrainingArguments:
    """The Trainer's arguments for a recipe's ``[training]``.

    Args:
        spec: the recipe's ``[training]``.
        folder: where checkpoints go.
        sharded: whether devices share the base's layers.

    Raises:
        SafeError: a step cannot be divided evenly, or the tracker is not installed.
    """
    accumulation = spec.gradient_accumulation_steps
    rows = rows_per_shard("batch_size", spec.batch_size, distributed.world_size(), accumulation)
    if spec.report_to != "none" and find_spec(spec.report_to) is None:
        raise SafeError(
            f"`report_to` names {spec.report_to}, which is not installed",
            hint=f"pip install {spec.report_to}",
        )
    return SafeTrainingArguments(
        output_dir=str(folder),
        max_steps=spec.max_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        use_cpu=distributed.device().type == "cpu",
        bf16=spec.precision == "bfloat16",
        lr_scheduler_type=SCHEDULES[spec.schedule],
        warmup_steps=spec.warmup_steps,
        max_grad_norm=spec.max_grad_norm,
        save_steps=spec.save_steps or min(-(-spec.max_steps // 10), 100),
        save_total_limit=2,
        logging_steps=min(10, spec.max_steps),
        logging_nan_inf_filter=False,
        seed=spec.seed,
        report_to=spec.report_to,
        project="safe-framework",
        run_name=folder.absolute().parent.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the dataset is the run: a resumed one sees the same
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        sharded=sharded,
    )


class SafeTrainer(Trainer):
    """Trains a SafeModel's adapters on answers, and defends the base's text.

    Args:
        model: its projectors and fusion adapters are trained.
        args: as ``training_arguments`` makes them.
        examples: of the task.
        spec: the recipe's ``[training]``.
        retention: the second loss; None trains without.
        alignment: the loss that draws tokens to their answers; None trains without.
        caches: what is kept of the frozen base; None keeps nothing.
        pad: id that fills rows up.
        monitoring: the curriculum and the monitor; None trains without.
        weights: share of each dataset in the rows that are drawn; equal if None.
    """

    args: SafeTrainingArguments

    def __init__(
        self,
        model: SafeModel,
        args: SafeTrainingArguments,
        examples: Sequence[TokenizedExample],
        spec: TrainingSpec,
        *,
        retention: CounterfactualRetention | None = None,
        alignment: Alignment | None = None,
        caches: ActivationCaches | None = None,
        pad: int = 0,
        monitoring: MonitoringState | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.safe_model, self.spec, self.weights = model, spec, weights
        self.retention, self.alignment = retention, alignment
        self.examples = list(examples)
        if retention is not None and retention.kinds:
            accumulation = spec.gradient_accumulation_steps
            rows = spec.retention_batch_size
            rows_per_shard("retention_batch_size", rows, distributed.world_size(), accumulation)
        self.monitoring = monitoring or MonitoringState()
        staged = self.monitoring.curriculum is not None
        self._questions = Questions(self.examples)
        order = None if staged else self._order()
        asked = self._questions.all_of(order)
        self._rows: Rows = [example.row for example in asked]
        self._caches = caches
        self._states = caches.task_texts(self._rows) if caches else None
        starts = [example.answer_start for example in asked]
        self._prompt_cache = PromptCache.tried(model, caches, self._rows, starts)
        dims = {name: encoder.dim for name, encoder in model.encoders.items()}
        prompts = caches.prompts if caches else PromptEncoder.of(model)
        self._collate = AnswerCollator(dims, pad, prompts, self._pixels_needed, model.attends).calls
        dataset: Sequence[Any] = range(spec.max_steps * spec.batch_size)  # positions in the run
        if order is not None:
            dataset = self._questions.read_in(order)
        super().__init__(
            model=Objective(
                model, retention, alignment, spec.align_weight,
                caches=caches, states=self._states, prompt_cache=self._prompt_cache,
                scales=self.monitoring.scales,
                merges=not args.sharded, speedups=spec.speedups == "on",
            ),
            args=args,
            train_dataset=dataset,
            data_collator=positions_only if staged else self._collate,
            callbacks=[CompleteCheckpoint(self.monitoring), *self.monitoring.callbacks()],
        )  # fmt: skip
        # The shards of a step add up: older Trainers would have accelerate divide them once more.
        self.accelerator.gradient_accumulation_steps = 1
        self._shares: list[Tensor] = []
        self._micro_step = 0

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:  # type: ignore[override]  # a path alone, or nothing
        """Train, from a checkpoint if one is given.

        Raises:
            AdapterError: the checkpoint does not fit the model.
        """
        if resume_from_checkpoint is not None:
            path = Path(resume_from_checkpoint) / WEIGHTS
            check_tensors(self.safe_model.adapter_tensors(), load_file(path), path)
        return super().train(resume_from_checkpoint, **options)

    def create_accelerator_and_postprocess(self) -> None:
        """Let Accelerate not wrap a model whose layers are sharded already.

        ``prepare_model`` would make a DistributedDataParallel of it, which cannot hold the shards
        of FSDP2, and no argument of the Trainer or of Accelerate says no to that: so the method is
        replaced by itself in evaluation mode, in which it wraps nothing.
        """
        super().create_accelerator_and_postprocess()
        if self.args.sharded:
            plain = partial(self.accelerator.prepare_model, evaluation_mode=True)
            self.accelerator.prepare_model = plain

    def _order(self) -> list[int]:
        """Which example is at each position of a run without stages."""
        return training_order(
            [example.dataset for example in self.examples],
            [example.label for example in self.examples],
            self.spec.max_steps * self.spec.batch_size,
            seed=self.spec.seed,
            balance=self.spec.balance,
            weights=self.weights,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """A step's batches on this device, and what the step's means are taken over.

        With a curriculum, the batches are those of the stage that it is now. The totals are of all
        devices and all shards of the step.
        """
        batches = list(map(self._look_up, islice(epoch_iterator, num_batches)))
        totals = step_totals(batches, list(self.safe_model.modalities)).to(device)
        summed: Tensor = self.accelerator.reduce(totals, "sum")
        return batches, summed

    def _pixels_needed(self, rows: Rows) -> bool:
        return self._caches is None or self._caches.pixels_needed(self._states, rows)

    def _look_up(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The examples at a batch's positions; the batch itself where it has them already."""
        curriculum = self.monitoring.curriculum
        if curriculum is None:
            return batch
        positions = batch["positions"].tolist()
        chosen = [curriculum.example_at(each, self.spec.batch_size) for each in positions]
        pairs = zip(chosen, positions, strict=True)
        return self._collate([self._questions.of(index, position) for index, position in pairs])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A shard's part of the loss of its step, times the devices over which it is averaged."""
        devices = self.args.world_size
        shard = StepShard(
            self._micro_step * devices + self.args.process_index,
            self.spec.gradient_accumulation_steps * devices,
        )
        loss, shares = model(inputs["calls"], num_items_in_batch, self.state.global_step, shard)
        self._shares.append(shares)
        return loss * devices

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute one shard of a step."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        last = self.accelerator.sync_gradients
        self._micro_step = 0 if last else self._micro_step + 1
        if last and self.args.sharded:
            average_gradients(list(self.safe_model.trainable_parameters().values()))
        return loss

    def precompute(self, progress: ProgressCallback) -> None:
        """Compute what shall be kept of the frozen base, for all steps of the run."""
        if self._states is not None:
            cached = self._prompt_cache
            needed = [row for row in self._wanted() if cached is None or not cached.holds([row])]
            needed = [row for row in needed if self._states.contains([row])]
            self._states.precompute(needed, "reading training texts", progress)
        if self._prompt_cache is not None:
            self._prompt_cache.precompute(progress)
        if self.retention is not None:
            autocast = self.spec.precision == "bfloat16"
            self.retention.precompute(self.spec.max_steps, progress, autocast=autocast)

    def _wanted(self) -> Rows:
        """The rows that come in the run; all of them where a curriculum chooses."""
        if self.monitoring.curriculum is not None:
            return self._rows
        return [example.row for example in self._questions.read_in(self._order())]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add both losses and the gates to what the Trainer logs."""
        if "loss" in logs and self._shares:
            steps = len(self._shares) / self.spec.gradient_accumulation_steps
            summed = self.accelerator.reduce(torch.stack(self._shares).sum(0), "sum")
            task, kept = (summed / steps).tolist()
            logs |= {"task_loss": task, "retention_loss": kept}
            gates = self.safe_model.gates.items()
            logs |= {f"gate/{name}": gate for name, gate in gates if gate != AUTO}
            if self.monitoring.active:
                scales = self.monitoring.scales
                logs |= {"rate_factor": scales.rate, "retention_factor": scales.retention}
            self._shares.clear()
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with rates for projectors, fusion adapters and encoders that train."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.safe_model, self.spec, self.retention)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter's tensors, where the Trainer would write the base's too."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.safe_model.adapter_tensors()
        save_file({key: cpu_copy(tensor) for key, tensor in tensors.items()}, folder / WEIGHTS)


def positions_only(positions: Sequence[int]) -> dict[str, Tensor]:
    """A batch of positions in the run, whose examples are looked up when its step begins."""
    return {"positions": torch.tensor(positions)}


class CompleteCheckpoint(TrainerCallback):
    """Ends the writing of a checkpoint, before the monitor removes what none comes back to.

    Args:
        monitoring: adds its own files to the checkpoint.
    """

    def __init__(self, monitoring: MonitoringState) -> None:
        self.monitoring = monitoring

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the last files, and mark that all are there."""
        distributed.barrier()  # each has written its random state
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.monitoring.save(folder)
            mark_complete(folder)


def mark_complete(checkpoint: Path) -> None:
    """Record that everything in the folder has been written, and in which format."""
    atomic_write(checkpoint / _COMPLETE, _FORMAT)


def step_of(checkpoint: Path) -> int:
    """How many steps had been taken at a checkpoint that ``latest_complete`` gave."""
    return int(checkpoint.name.rpartition("-")[2])


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; broken ones are removed.

    Raises:
        SafeError: it is of another format than this version of the framework writes.
    """
    whole = {}
    for checkpoint in folder.glob("checkpoint-*"):
        if not _CHECKPOINT.fullmatch(checkpoint.name) or not checkpoint.is_dir():
            continue
        if (checkpoint / _COMPLETE).exists():
            whole[step_of(checkpoint)] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    if not whole:
        return None
    newest = whole[max(whole)]
    if (newest / _COMPLETE).read_text("utf-8") != _FORMAT:
        raise SafeError(
            f"the checkpoint `{newest}` was written by another version of safe-framework",
            hint="start anew with --no-resume",
        )
    return newest
