"""The Hugging Face Trainer, taught what SAFE needs: steps in parts, rates, small checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from safe_framework._recipe import TrainingSpec
from safe_framework.adapter import adapter_tensors, copy_tensors, own_copy
from safe_framework.errors import SafeError
from safe_framework.model import SafeModel
from safe_framework.retention_store import Progress
from safe_framework.training import processes
from safe_framework.training.align import Alignment
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.caches import Caches
from safe_framework.training.checkpoints import mark_complete
from safe_framework.training.holding import average_gradients
from safe_framework.training.mix import run_order
from safe_framework.training.monitor.watch import Watch
from safe_framework.training.objective import Objective, totals_of
from safe_framework.training.optimizer import make_optimizer
from safe_framework.training.order import FixedOrder
from safe_framework.training.parts import Part, rows_of_part
from safe_framework.training.retention import CounterfactualRetention

WEIGHTS = "adapter.safetensors"


def arguments(spec: TrainingSpec, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a recipe's ``[training]``.

    Raises:
        SafeError: a step cannot be shared out evenly, or the tracker is not installed.
    """
    accumulation = spec.gradient_accumulation_steps
    rows = rows_of_part("batch_size", spec.batch_size, processes.count(), accumulation)
    if spec.report_to != "none" and find_spec(spec.report_to) is None:
        raise SafeError(
            f"`report_to` names {spec.report_to}, which is not installed",
            hint=f"pip install {spec.report_to}",
        )
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.max_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        use_cpu=processes.device().type == "cpu",
        bf16=spec.precision == "bfloat16",
        lr_scheduler_type=_SCHEDULES[spec.schedule],
        warmup_steps=spec.warmup_steps,
        max_grad_norm=spec.max_grad_norm,
        save_steps=spec.save_steps,
        save_total_limit=2,
        logging_steps=min(10, spec.max_steps),
        logging_nan_inf_filter=False,
        seed=spec.seed,
        report_to=spec.report_to,
        project="safe-framework",
        run_name=folder.absolute().parent.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    made._n_gpu = min(made.n_gpu, 1)  # hooks do not reach the threads of DataParallel
    return made


_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class SafeTrainer(Trainer):
    """Trains a SafeModel's adapters on answers, and defends the base's text.

    Args:
        model: its projectors and fusion adapters are trained.
        args: as ``arguments`` makes them.
        examples: of the task.
        spec: the recipe's ``[training]``.
        retention: the second loss; None trains without.
        alignment: the loss that draws tokens to their answers; None trains without.
        caches: what is kept of the frozen base; None keeps nothing.
        pad: id that fills rows up.
        sharded: whether devices share the base's layers, so that Accelerate wraps nothing.
        watch: the curriculum and the monitor; None trains without.
        weights: share of each dataset in the rows that are drawn; equal if None.
    """

    def __init__(
        self,
        model: SafeModel,
        args: TrainingArguments,
        examples: Sequence[TokenizedExample],
        spec: TrainingSpec,
        *,
        retention: CounterfactualRetention | None = None,
        alignment: Alignment | None = None,
        caches: Caches | None = None,
        pad: int = 0,
        sharded: bool = False,
        watch: Watch | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.weights = weights
        self.safe_model, self.spec, self.sharded = model, spec, sharded
        self.retention, self.alignment = retention, alignment
        self.examples = list(examples)
        if retention is not None and retention.kinds:
            accumulation = spec.gradient_accumulation_steps
            rows = spec.retention_batch_size
            rows_of_part("retention_batch_size", rows, processes.count(), accumulation)
        self._rows = [[*e.prompt, *e.spelled] for e in self.examples]
        self._states = caches.task_texts(self._rows) if caches else None
        dims = {name: model.modality(name).encoder.dim for name in model.modalities}
        self.watch = watch or Watch()
        self._collate = AnswerCollator(dims, pad)
        staged = self.watch.curriculum is not None
        super().__init__(
            model=Objective(
                model, retention, alignment, spec.align_weight,
                caches=caches, states=self._states, dials=self.watch.dials, joins=not sharded,
            ),
            args=args,
            train_dataset=range(spec.max_steps * spec.batch_size) if staged else self.examples,
            data_collator=places_only if staged else self._collate,
            callbacks=self.watch.callbacks(),
        )  # fmt: skip
        self._shares: list[Tensor] = []
        self._micro_step = 0

    def create_accelerator_and_postprocess(self) -> None:
        """Let Accelerate not wrap a model whose layers are shared out already."""
        super().create_accelerator_and_postprocess()
        if self.sharded:
            plain = partial(self.accelerator.prepare_model, evaluation_mode=True)
            self.accelerator.prepare_model = plain

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave a base that is to be shared out where it is: whole, it may fit on no device."""
        if not self.sharded:
            super()._move_model_to_device(model, device)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor:
        """What the means of a step are taken over, on all devices and in all its parts."""
        totals = totals_of(batch_samples, list(self.safe_model.modalities)).to(device)
        summed: Tensor = self.accelerator.reduce(totals, "sum")
        return summed

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | int | None]:
        """A step's batches; with a curriculum, those of the stage that it is now."""
        found: tuple[list[dict[str, Any]], Tensor | int | None] = super().get_batch_samples(
            map(self._looked_up, epoch_iterator), num_batches, device
        )
        return found

    def _looked_up(self, batch: dict[str, Any]) -> dict[str, Any]:
        curriculum = self.watch.curriculum
        if curriculum is None:
            return batch
        places = batch["places"].tolist()
        chosen = [curriculum.example_at(place, self.spec.batch_size) for place in places]
        return self._collate([self.examples[one] for one in chosen])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A part's share in the loss of its step, times the devices over which it is averaged."""
        devices = self.args.world_size
        part = Part(
            self._micro_step * devices + self.args.process_index,
            self.spec.gradient_accumulation_steps * devices,
        )
        batch = dict(inputs)
        answers = batch.pop("answers")
        loss, shares = model(batch, answers, num_items_in_batch, self.state.global_step, part)
        self._shares.append(shares)
        return loss * devices

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute one part of a step."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        last = self.accelerator.sync_gradients
        self._micro_step = 0 if last else self._micro_step + 1
        if last and self.sharded:
            average_gradients(list(self.safe_model.trainable_parameters().values()))
        return loss

    def warm(self, progress: Progress) -> None:
        """Compute what shall be kept of the frozen base, for all steps of the run."""
        if self._states is not None:
            staged = self.watch.curriculum is not None  # which rows come is not known yet
            chosen = range(len(self._rows)) if staged else self._get_train_sampler()
            needed = [self._rows[place] for place in chosen]
            self._states.warm(needed, "reading training texts", progress)
        if self.retention is not None:
            autocast = self.spec.precision == "bfloat16"
            self.retention.warm(self.spec.max_steps, progress, autocast=autocast)

    def _get_train_sampler(self, train_dataset: Any = None) -> FixedOrder:
        """The order of the whole run, so that a resumed run sees what an unbroken one does."""
        count = self.spec.max_steps * self.spec.batch_size
        if self.watch.curriculum is not None:
            return FixedOrder(range(count))
        examples, spec = self.examples, self.spec
        order = run_order(
            [example.dataset for example in examples],
            [example.text for example in examples],
            count,
            seed=spec.seed,
            balance=spec.balance,
            weights=self.weights,
        )
        return FixedOrder(order)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add both losses and the gates to what the Trainer logs."""
        if "loss" in logs and self._shares:
            steps = len(self._shares) / self.spec.gradient_accumulation_steps
            summed = self.accelerator.reduce(torch.stack(self._shares).sum(0), "sum")
            task, kept = (summed / steps).tolist()
            logs |= {"task_loss": task, "retention_loss": kept}
            logs |= {f"gate/{name}": gate for name, gate in self.safe_model.gates.items()}
            if self.watch.active:
                dials = self.watch.dials
                logs |= {"rate_factor": dials.rate, "retention_factor": dials.retention}
            self._shares.clear()
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with rates for projectors, fusion adapters and encoders that train."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.safe_model, self.spec, self.retention)
        return self.optimizer

    def _save(
        self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = adapter_tensors(self.safe_model)
        save_file({key: own_copy(tensor) for key, tensor in tensors.items()}, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        place = Path(resume_from_checkpoint) / WEIGHTS
        copy_tensors(adapter_tensors(self.safe_model), load_file(place), place)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        processes.wait()  # each has written its random state
        if self.args.should_save:
            self.watch.keep(folder)
            mark_complete(folder)


def places_only(places: Sequence[int]) -> dict[str, Tensor]:
    """A batch of places in the run, whose examples are looked up when its step begins."""
    return {"places": torch.tensor(places)}
