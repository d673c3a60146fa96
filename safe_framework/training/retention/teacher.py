"""The base's predictions on fixed retention texts, from the inputs of its output embeddings.

These are smaller than the logits, and computed once. Where the base does something to the logits
behind its output embeddings, or nothing is to be stored, it runs each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import FINAL, on_device, output_head, run_until
from safe_framework.core.prompt_rows import (
    PromptEncoder,
    PromptRow,
    Rows,
    as_rows,
    read_positions,
)
from safe_framework.training.compute.activation_cache import Activations, ActivationStore
from safe_framework.training.compute.chunked_vocabulary import (
    SoftmaxStatistics,
    softmax_statistics,
    supports_chunked_loss,
)
from safe_framework.utils.progress import ProgressCallback

_LOG_SUM, _EMBEDDING = "log_sum", "embedding"


class Teacher:
    """The base as the teacher: its predictions at every token of some texts, row after row.

    Args:
        model: whose base, with every modality off, is the teacher.
        pad: id of padding.
        states: activations of the texts; without ``FINAL`` among them, the base runs.
        prompts: makes batches of texts with pictures; the model's own if None.
    """

    def __init__(
        self,
        model: SafeModel,
        pad: int,
        states: ActivationStore | None = None,
        prompts: PromptEncoder | None = None,
    ) -> None:
        self.model, self.pad = model, pad
        self.prompts = prompts or PromptEncoder.of(model)
        self.states = states if states is not None and FINAL in states.kinds else None
        self._softmax_stores: dict[float, ActivationStore] = {}

    def precompute(
        self, rows: Rows, temperatures: Iterable[float], progress: ProgressCallback
    ) -> None:
        """Compute what divergences on the texts at the temperatures need."""
        stored = self.states is not None and supports_chunked_loss(output_head(self.model.base))
        for temperature in set(temperatures) if stored else ():
            self._softmax_store(temperature).precompute(
                rows, "reading the base's answers", progress
            )

    @torch.no_grad()
    def logits(self, rows: Rows) -> Tensor:
        """The base's logits on rows of one call, (tokens, vocabulary)."""
        if self.states is not None:
            logits: Tensor = output_head(self.model.base)(self.hidden(rows).unsqueeze(0))[0]
            return logits
        given = on_device(self.prompts.collate(rows, self.pad), self.model.device)
        with self.model.off():
            whole: Tensor = self.model(**given).logits
        return whole[read_positions(rows).to(whole.device)]

    def hidden(self, rows: Rows) -> Tensor:
        """The input of the output embeddings, (tokens, hidden)."""
        if self.states is not None:
            return _concatenate(self.states.of(rows), FINAL, self.model)
        final = run_until(self.model, self.prompts.collate(rows, self.pad), final=True)[FINAL]
        return final[read_positions(rows).to(final.device)]

    def softmax(self, rows: Rows, hidden: Tensor, temperature: float) -> SoftmaxStatistics:
        """The softmax over the vocabulary, as a divergence needs it.

        Args:
            rows: the texts.
            hidden: the input of the output embeddings there, as ``hidden`` gives it.
            temperature: by which logits are divided.
        """
        if self.states is None:
            return softmax_statistics(hidden, self._head, temperature)
        stored = self._softmax_store(temperature).of(rows)
        return SoftmaxStatistics(
            *(_concatenate(stored, kind, self.model) for kind in (_LOG_SUM, _EMBEDDING))
        )

    @property
    def _head(self) -> nn.Linear:
        head = output_head(self.model.base)
        assert isinstance(head, nn.Linear)  # or no divergence is taken of what enters it
        return head

    def _softmax_store(self, temperature: float) -> ActivationStore:
        def compute(state: Activations) -> dict[str, Tensor]:
            """What is stored of some texts."""
            hidden = state[FINAL].to(self.model.device)
            found = softmax_statistics(hidden, self._head, temperature)
            return {_LOG_SUM: found.log_sum, _EMBEDDING: found.embedding}

        if temperature not in self._softmax_stores:
            assert self.states is not None
            name = f"expected at {temperature}"
            self._softmax_stores[temperature] = self.states.derive(name, compute)
        return self._softmax_stores[temperature]


class TeacherPredictions:
    """A teacher's predictions on some texts; where nothing is stored, the base runs only once.

    Args:
        teacher: of the texts.
        rows: the texts, all with pictures or all without.
    """

    def __init__(self, teacher: Teacher, rows: Sequence[PromptRow | Sequence[int]]) -> None:
        self.teacher, self.rows = teacher, as_rows(rows)

    @cached_property
    def hidden(self) -> Tensor:
        """The input of the output embeddings, (tokens, hidden)."""
        return self.teacher.hidden(self.rows)

    @property
    def logits(self) -> Tensor:
        """(tokens, vocabulary)."""
        return self.teacher.logits(self.rows)

    def softmax(self, temperature: float) -> SoftmaxStatistics:
        """Of the hidden states."""
        return self.teacher.softmax(self.rows, self.hidden, temperature)


def _concatenate(states: Sequence[Mapping[str, Tensor]], kind: str, model: SafeModel) -> Tensor:
    return torch.cat([state[kind] for state in states]).to(model.device)
