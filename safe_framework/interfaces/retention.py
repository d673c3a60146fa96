"""The interface of what protects the base model's knowledge while a modality is trained.

A ``RetentionRegularizer`` is given a ``Comparison`` of what the model and its base predict at the
same positions, and a ``RetentionStore`` for what it computes once, before the first step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import torch
from torch import Tensor, nn

from safe_framework.errors import DataError
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.tensors import cpu_copy

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


class RetentionRegularizer(ABC):  # noqa: B024  # each method has a default: override any
    """A penalty, a constraint on updates, or both; override only what is needed.

    A retention batch is text (and images) of the base's own domain that carries an irrelevant
    sample of the new modality: *counterfactual* retention. With the modality absent the output
    is the base's by construction, and there is nothing to learn.

    Attributes:
        counterfactual: the kinds of irrelevant sample it wants beside retention texts, of
            ``"silent"``, ``"noise"``, ``"shuffled"`` and ``"foreign"``; empty if it needs no
            such text.
        every_step: whether it wants a batch of them at each step, for ``penalty``; if not, they
            are given to ``begin`` alone, and a step costs no forward pass more.
        lets_the_base_change: whether it can defend a base that is trained too, as in stage B.
        temperatures: at which ``penalty_of`` takes a divergence: what the base has to say at them
            is computed before the first step, where it is kept.

    Laws:
        zero_at_base: the penalty is 0 where the outputs are the base's, and the parameter
            penalty is 0 where training starts.
        nonnegative: a penalty is never below 0.
        one_penalty: ``penalty_of`` a comparison is the ``penalty`` of its logits.
        mask_respected: positions whose mask is False have no effect.
        base_untouched: neither ``begin`` nor ``constrain`` changes the base.
    """

    counterfactual: tuple[str, ...] = ()
    every_step: bool = True
    lets_the_base_change: bool = True
    temperatures: tuple[float, ...] = ()

    def begin(
        self, model: SafeModel, examples: Sequence[Mapping[str, Tensor]], store: RetentionStore
    ) -> None:
        """Called once before the first step, and again when a killed run goes on.

        Args:
            model: about to be trained, in eval mode, its gates as they will be in the end.
            examples: every retention text once, alone and without padding, beside an irrelevant
                sample, the kinds of ``counterfactual`` in turn: arguments of ``model``. Each is
                made when it is read.
            store: what is computed here from the start of training goes through it, since a run
                that goes on no longer has that start.
        """
        return None

    def penalty(
        self,
        logits: Annotated[Tensor, "batch length vocabulary"],
        base_logits: Annotated[Tensor, "batch length vocabulary"],
        mask: Annotated[Tensor, "batch length"],
    ) -> Tensor | None:
        """A scalar to add to the loss, or None: a mean over the positions that count.

        A step may be computed in parts, by several devices: each part counts by how many such
        positions it has.

        Args:
            logits: of the SAFE model with the irrelevant sample and its gate open.
            base_logits: of the base on the same text, without gradient.
            mask: True at the positions that count.

        Training gives the words of all its texts as one row; they are to be taken one by one.
        """
        return None

    def penalty_of(self, comparison: Comparison) -> Tensor | None:
        """What training asks for: ``penalty`` of a comparison's logits, if not overridden.

        Override it, beside ``penalty``, where all that is needed of the logits is a divergence:
        ``comparison.divergence(T)`` does not make them.

        Args:
            comparison: of the words of a step's texts, where all of them count.
        """
        return self.penalty(comparison.logits, comparison.base_logits, comparison.mask)

    def parameter_penalty(self) -> Tensor | None:
        """A scalar to add to the loss at each step that depends on the parameters alone."""
        return None

    def constrain(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after each optimizer step; may change the trainable parameters in place."""
        return None


class Comparison(ABC):
    """The words of a step's texts, as the model sees them and as its base does."""

    @property
    @abstractmethod
    def logits(self) -> Annotated[Tensor, "batch length vocabulary"]:
        """The model's."""

    @property
    @abstractmethod
    def base_logits(self) -> Annotated[Tensor, "batch length vocabulary"]:
        """The base's, without gradient."""

    @property
    @abstractmethod
    def mask(self) -> Annotated[Tensor, "batch length"]:
        """True at the positions that count."""

    @abstractmethod
    def divergence(self, temperature: float) -> Tensor:
        """``mean KL(softmax(base / T) || softmax(ours / T))`` over positions that count, in nats.

        Args:
            temperature: T, above 0.
        """


@attrs.frozen(eq=False)
class LogitComparison(Comparison):
    """A comparison of logits that are at hand, (batch, length, vocabulary)."""

    logits: Tensor
    base_logits: Tensor
    mask: Tensor

    def divergence(self, temperature: float) -> Tensor:
        """As the formula has it, in float32."""
        ours = (self.logits[self.mask].float() / temperature).log_softmax(-1)
        base = (self.base_logits[self.mask].float() / temperature).log_softmax(-1)
        return nn.functional.kl_div(ours, base, log_target=True, reduction="batchmean")


class RetentionStore:
    """One safetensors file that is computed once, at the start of training.

    Args:
        path: of the file.
        made_for: gives what the content depends on, as fingerprints by name; a file that was
            made for anything else is refused. Only asked when the store is used.
        start: fingerprint of the adapter at the start of training; None where a run goes on from
            a later step: then the file must be there.
        progress: called with a label, how much is done and of how much.
    """

    def __init__(
        self,
        path: Path,
        made_for: Callable[[], Mapping[str, str]],
        *,
        start: str | None,
        progress: ProgressCallback = no_progress,
    ) -> None:
        self.path, self.made_for, self.start = path, made_for, start
        self.progress = progress

    def once(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The file's tensors on the CPU, computed and written if there is no file yet.

        Raises:
            DataError: the file was made for something else, or a run goes on without it.
        """
        from safetensors.torch import load_file

        facts = dict(self.made_for())
        if not self.path.exists():
            if self.start is None:
                raise DataError(
                    f"`{self.path}` is missing, without which its run cannot go on",
                    hint="start anew with --no-resume",
                )
            self._write(compute(), facts)
        self._refuse_stale(facts)
        return load_file(self.path)

    def _write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        from safetensors.torch import save_file

        copies = {name: cpu_copy(tensor) for name, tensor in tensors.items()}
        metadata = {**facts, "start": self.start or ""}
        atomic_write(self.path, lambda part: save_file(copies, part, metadata=metadata))

    def _refuse_stale(self, facts: Mapping[str, str]) -> None:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            held = file.metadata() or {}
        wanted = {**facts} if self.start is None else {**facts, "start": self.start}
        if other := [name for name, value in wanted.items() if held.get(name) != value]:
            raise DataError(
                f"`{self.path}` is stale: it was made for another {' and another '.join(other)}",
                hint="start anew with --no-resume",
            )
