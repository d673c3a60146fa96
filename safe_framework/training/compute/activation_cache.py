"""What training keeps of the frozen base: hidden states of the task's texts and of retention's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head_capture import BELOW, FINAL, capture
from safe_framework.pretrained.location import cache_folder
from safe_framework.training.compute.activation_cache_states import TextStates
from safe_framework.training.compute.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.training.retention.teacher import has_plain_head
from safe_framework.utils.hashing import fingerprint, text_fingerprint

Rows = Sequence[Sequence[int]]
_GIB = 2**30


class Caches:
    """Makes the stores of a run, and lets its calls begin at the first fused layer.

    Args:
        model: about to be trained, in eval mode.
        keep: what shall be kept, of ``"prefix"`` and ``"teacher"``.
        example: a batch of texts beside samples, on which a call that begins at the first fused
            layer is compared with a whole one.
        pad: id that fills rows up.
        room: bytes that the states of one store may take; a larger one is not made.

    Attributes:
        prefix: None where nothing below the first fused layer is kept.
        notes: what is not kept although it was asked for, and why, for people to read.
    """

    def __init__(
        self,
        model: SafeModel,
        keep: Sequence[str],
        example: Mapping[str, Tensor],
        pad: int,
        room: float = math.inf,
    ) -> None:
        self.model, self.keep, self.pad, self.room = model, tuple(keep), pad, room
        self.notes: list[str] = []
        self.prefix = _prefix(model, example) if "prefix" in keep else None

    def task_texts(self, rows: Rows) -> TextStates | None:
        """The store of the task's texts; None where nothing is kept of them."""
        return None if self.prefix is None else self._states(rows, final=False)

    def retention_texts(self, rows: Rows) -> TextStates | None:
        """The store of retention's texts; None where nothing is kept of them."""
        final = "teacher" in self.keep and bool(rows) and has_plain_head(self.model, rows[0])
        return self._states(rows, final=final) if final or self.prefix is not None else None

    def begun(
        self, states: TextStates | None, ids: Tensor, mask: Tensor
    ) -> Sequence[Tensor] | None:
        """What enters the first fused layer, each (length of a row, hidden); None if not kept.

        Args:
            states: of the texts.
            ids: of the call, filled up on the right, (batch, length).
            mask: its attention mask.
        """
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        if self.prefix is None or states is None or not states.holds(rows):
            return None
        return [state[BELOW] for state in states.of(rows)]

    @contextmanager
    def beginning(self, begun: Sequence[Tensor]) -> Iterator[None]:
        """Within the block, a call on these texts begins at the first fused layer.

        Args:
            begun: what enters it, as ``begun`` gives it.
        """
        assert self.prefix is not None  # or nothing would have been kept
        hidden = nn.utils.rnn.pad_sequence(list(begun), batch_first=True)
        with self.prefix.given(hidden.to(self.model.device)):
            yield

    def close(self) -> None:
        """Give the base's layers the attributes that they had."""
        if self.prefix is not None:
            self.prefix.close()

    def _states(self, rows: Rows, *, final: bool) -> TextStates | None:
        layer = None if self.prefix is None else self.prefix.layer

        def compute(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            """What is kept of a batch of texts."""
            return capture(self.model, ids, mask, layer=layer, final=final)

        kinds = [BELOW] * (layer is not None) + [FINAL] * final
        states = TextStates(rows, compute, kinds, self._folder(layer, final), self.pad)
        # The teacher makes as much again of its states, for a divergence.
        itemsize = next(self.model.base.parameters()).element_size()
        size = states.words * (len(kinds) + final) * self.model.stack.hidden_size * itemsize
        if size <= self.room:
            return states
        self.notes.append(
            f"hidden states of {states.words} words would take {size / _GIB:.1f} GiB: computed "
            "anew at each step (`cache_gib` in [training] sets the limit)"
        )
        return None

    def _folder(self, layer: int | None, final: bool) -> Path:
        base: Any = self.model.base
        weights = next(base.parameters())
        about = {
            "base": fingerprint(base),
            "attention": getattr(base.config, "_attn_implementation", None),
            "dtype": str(weights.dtype),
            "device": weights.device.type,
            "versions": [torch.__version__, _transformers_version()],
            "states": {BELOW: layer, FINAL: final},
        }
        return cache_folder() / "texts" / text_fingerprint(about)[:32]


def _prefix(model: SafeModel, example: Mapping[str, Tensor]) -> FrozenPrefix | None:
    layer = first_fused_layer(model)
    if layer == 0:
        return None
    prefix = FrozenPrefix(model, layer)
    if prefix.holds(example):
        return prefix
    prefix.close()
    return None


def _transformers_version() -> str:
    from transformers import __version__

    return str(__version__)
