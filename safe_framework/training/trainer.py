"""The Hugging Face Trainer, taught what SAFE needs: two losses, rate groups, small checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from safe_framework._recipe import TrainingSpec
from safe_framework.adapter import adapter_tensors, copy_tensors, own_copy
from safe_framework.model import SafeModel
from safe_framework.retention_store import Progress
from safe_framework.training.align import Alignment
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.caches import Caches
from safe_framework.training.checkpoints import mark_complete
from safe_framework.training.losses import answer_loss, check_finite, trainable_groups
from safe_framework.training.mix import run_order
from safe_framework.training.retention import CounterfactualRetention

WEIGHTS = "adapter.safetensors"


def arguments(spec: TrainingSpec, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a recipe's ``[training]``."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.max_steps,
        per_device_train_batch_size=spec.batch_size,
        lr_scheduler_type=_SCHEDULES[spec.schedule],
        warmup_steps=spec.warmup_steps,
        max_grad_norm=spec.max_grad_norm,
        save_steps=spec.save_steps,
        save_total_limit=2,
        logging_steps=min(10, spec.max_steps),
        logging_nan_inf_filter=False,
        seed=spec.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


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
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.weights = weights
        self.safe_model, self.spec = model, spec
        self.retention, self.alignment = retention, alignment
        self._examples = list(examples)
        self.caches, self._rows = caches, [[*e.prompt, *e.spelled] for e in self._examples]
        self._states = caches.task_texts(self._rows) if caches else None
        dims = {name: model.modality(name).encoder.dim for name in model.modalities}
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._examples,
            data_collator=AnswerCollator(dims, pad),
        )
        self.model_accepts_loss_kwargs = False  # our losses are means already
        self._parts: list[tuple[float, float]] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss plus retention's, plus alignment's if it is on."""
        step = self.state.global_step
        answers: Sequence[str] = inputs.pop("answers")  # type: ignore[assignment]  # the one list
        with self._beginning(inputs):
            task = answer_loss(model, self.safe_model.base, inputs)
        check_finite(task, "task loss", step)
        kept = torch.zeros((), device=task.device)
        if self.retention is not None:
            kept = self.retention.loss(model, step, task.device)
            check_finite(kept, "retention loss", step)
        self._parts.append((float(task.detach()), float(kept.detach())))
        if self.alignment is None or not self.spec.align_weight:
            return task + kept
        pulled = self.alignment.batch_loss(self.safe_model, inputs, answers)
        return task + kept + self.spec.align_weight * pulled

    def warm(self, progress: Progress) -> None:
        """Compute what shall be kept of the frozen base, for all steps of the run."""
        if self._states is not None:
            needed = [self._rows[place] for place in self._get_train_sampler()]
            self._states.warm(needed, "reading training texts", progress)
        if self.retention is not None:
            self.retention.warm(self.spec.max_steps, progress)

    def _beginning(self, inputs: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        if self.caches is None:
            return nullcontext()
        return self.caches.beginning(self._states, inputs["input_ids"], inputs["attention_mask"])

    def _get_train_sampler(self, train_dataset: Any = None) -> FixedOrder:
        """The order of the whole run, so that a resumed run sees what an unbroken one does."""
        count = self.spec.max_steps * self.args.train_batch_size * self.args.world_size
        examples, spec = self._examples, self.spec
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
        if "loss" in logs and self._parts:
            task, kept = torch.tensor(self._parts).mean(0).tolist()
            logs |= {"task_loss": task, "retention_loss": kept}
            logs |= {f"gate/{name}": gate for name, gate in self.safe_model.gates.items()}
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with rates for projectors, fusion adapters and encoders that train."""
        if self.optimizer is None:
            spec = self.spec
            groups = trainable_groups(
                self.safe_model,
                spec.projector_learning_rate,
                spec.fusion_learning_rate,
                spec.weight_decay,
                spec.encoder_learning_rate,
            )
            optimizer = torch.optim.AdamW(groups)
            if self.retention is not None:
                _constrain_after_steps(optimizer, self.retention)
            self.optimizer = optimizer
        return self.optimizer

    def _save(
        self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None
    ) -> None:
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
        mark_complete(folder)


class FixedOrder(Sampler[int]):
    """Draws places in an order that is known beforehand."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def _constrain_after_steps(
    optimizer: torch.optim.Optimizer, retention: CounterfactualRetention
) -> None:
    def constrain(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for entry in retention.methods:
            entry.method.constrain(stepped)

    optimizer.register_step_post_hook(constrain)
