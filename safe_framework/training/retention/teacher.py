"""What the base says of fixed retention texts, from what went into its output embeddings.

That is a vocabulary's width smaller than the logits, and computed once. Where the base does
something to the logits behind its output embeddings, or nothing shall be kept, it runs each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import FINAL, capture, head_of, on_device
from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.training.compute.activation_cache import Progress, State, TextStates
from safe_framework.training.compute.chunked_vocabulary import Expected, expected, takes_hidden

Rows = Sequence[Sequence[int]]
_LOG_SUM, _EMBEDDING = "log_sum", "embedding"


class Teacher:
    """Gives what the base makes of rows of text, at every word, row after row.

    Args:
        model: whose base, with every modality off, is the teacher.
        pad: id that fills rows up.
        states: what is kept of the texts; without ``FINAL`` among it, the base runs.
    """

    def __init__(self, model: SafeModel, pad: int, states: TextStates | None = None) -> None:
        self.model, self.pad = model, pad
        self.states = states if states is not None and FINAL in states.kinds else None
        self._expected: dict[float, TextStates] = {}

    def warm(self, rows: Rows, temperatures: Iterable[float], progress: Progress) -> None:
        """Compute what shall be kept for divergences of the texts at the temperatures."""
        keeps = self.states is not None and takes_hidden(head_of(self.model.base))
        for temperature in set(temperatures) if keeps else ():
            self._kept(temperature).warm(rows, "reading the base's answers", progress)

    @torch.no_grad()
    def logits(self, rows: Rows) -> Tensor:
        """The base's logits, (words, vocabulary)."""
        if self.states is not None:
            logits: Tensor = head_of(self.model.base)(self.hidden(rows).unsqueeze(0))[0]
            return logits
        batch = {"input_ids": pad_right(rows, self.pad), "attention_mask": attention_mask(rows)}
        given = on_device(batch, self.model.device)
        with self.model.off():
            whole: Tensor = self.model(**given).logits
        return whole[given["attention_mask"].bool()]

    def hidden(self, rows: Rows) -> Tensor:
        """What goes into the output embeddings, (words, hidden)."""
        if self.states is not None:
            return _joined(self.states.of(rows), FINAL, self.model)
        mask = attention_mask(rows)
        final = capture(self.model, pad_right(rows, self.pad), mask, final=True)[FINAL]
        return final[mask.bool().to(final.device)]

    def expected(self, rows: Rows, hidden: Tensor, temperature: float) -> Expected:
        """The softmax over the vocabulary, as a divergence needs it.

        Args:
            rows: token ids of the texts.
            hidden: what goes into the output embeddings there, as ``hidden`` gives it.
            temperature: by which logits are divided.
        """
        if self.states is None:
            return expected(hidden, self._head, temperature)
        kept = self._kept(temperature).of(rows)
        return Expected(*(_joined(kept, kind, self.model) for kind in (_LOG_SUM, _EMBEDDING)))

    @property
    def _head(self) -> nn.Linear:
        head = head_of(self.model.base)
        assert isinstance(head, nn.Linear)  # or no divergence is taken of what enters it
        return head

    def _kept(self, temperature: float) -> TextStates:
        def compute(state: State) -> dict[str, Tensor]:
            """What is kept of some texts."""
            hidden = state[FINAL].to(self.model.device)
            found = expected(hidden, self._head, temperature)
            return {_LOG_SUM: found.log_sum, _EMBEDDING: found.embedding}

        if temperature not in self._expected:
            assert self.states is not None
            name = f"expected at {temperature}"
            self._expected[temperature] = self.states.derived(name, compute)
        return self._expected[temperature]


class TaughtWords:
    """What a teacher says of some texts; a base that keeps nothing runs once for all of it.

    Args:
        teacher: of the texts.
        rows: their token ids.
    """

    def __init__(self, teacher: Teacher, rows: Rows) -> None:
        self.teacher, self.rows = teacher, rows

    @cached_property
    def hidden(self) -> Tensor:
        """What goes into the output embeddings, (words, hidden)."""
        return self.teacher.hidden(self.rows)

    @property
    def logits(self) -> Tensor:
        """(words, vocabulary)."""
        return self.teacher.logits(self.rows)

    def expected(self, temperature: float) -> Expected:
        """Of the hidden states."""
        return self.teacher.expected(self.rows, self.hidden, temperature)


def _joined(states: Sequence[Mapping[str, Tensor]], kind: str, model: SafeModel) -> Tensor:
    return torch.cat([state[kind] for state in states]).to(model.device)
