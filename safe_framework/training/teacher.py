"""The base's logits on fixed retention texts, computed once.

What is kept is the input of the output embeddings, a vocabulary's width smaller than the
logits. Where the base does something to the logits behind its output embeddings, nothing is
kept and the base runs each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.model import SafeModel
from safe_framework.training.batches import attention_mask, pad_right

_GROUP = 16


class Teacher:
    """Gives the base's logits on rows of text.

    Args:
        model: whose base, with every modality off, is the teacher.
        rows: token ids of each text.
        pad: id that fills rows up.
    """

    def __init__(self, model: SafeModel, rows: Sequence[Sequence[int]], pad: int) -> None:
        self.model, self.rows, self.pad = model, rows, pad
        self._kept: dict[int, Tensor] = {}
        self._caches = _is_plain_head(model, rows[0])

    @torch.no_grad()
    def logits(self, chosen: Sequence[int]) -> Tensor:
        """The base's logits on the chosen texts, (batch, length, vocabulary)."""
        if not self._caches:
            return self._run([self.rows[i] for i in chosen])[0]
        self.keep(chosen)
        padded = nn.utils.rnn.pad_sequence([self._kept[i] for i in chosen], batch_first=True)
        logits: Tensor = _head(self.model.base)(padded.to(self.model.device))
        return logits

    @torch.no_grad()
    def keep(self, chosen: Sequence[int]) -> None:
        """Run the base on the chosen texts that have not been kept yet, where any are kept."""
        for i in chosen if self._caches else ():
            if i not in self._kept:
                self._keep(i // _GROUP)

    def _keep(self, group: int) -> None:
        """Keep a fixed group of texts, whatever is asked for first.

        A row's last bits depend on the rows beside it; a resumed run must find the same ones.
        """
        rows = self.rows[group * _GROUP : (group + 1) * _GROUP]
        hidden = self._run(rows)[1]
        for place, (row, states) in enumerate(zip(rows, hidden, strict=True)):
            self._kept[group * _GROUP + place] = states[: len(row)].clone()

    def _run(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return run_base(self.model, pad_right(rows, self.pad), attention_mask(rows))


def run_base(model: SafeModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the base, and what went into its output embeddings."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = _head(model.base).register_forward_pre_hook(look)
    try:
        with model.off():
            out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    finally:
        handle.remove()
    return out.logits, seen[-1] if seen else out.logits


def _head(base: nn.Module) -> nn.Module:
    head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]
    return head


@torch.no_grad()
def _is_plain_head(model: SafeModel, row: Sequence[int]) -> bool:
    """Whether the logits are nothing but the output embeddings of what went into them."""
    ids = torch.tensor([list(row)])
    logits, hidden = run_base(model, ids, torch.ones_like(ids))
    if hidden.shape[:2] != logits.shape[:2] or hidden is logits:
        return False
    return torch.equal(_head(model.base)(hidden), logits)
