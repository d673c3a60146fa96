"""The base's logits on fixed retention texts, from what went into its output embeddings.

That is a vocabulary's width smaller than the logits, and computed once. Where the base does
something to the logits behind its output embeddings, or nothing shall be kept, it runs each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safe_framework.model import SafeModel
from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.training.capture import FINAL, capture, head_of, on_device
from safe_framework.training.states import TextStates


class Teacher:
    """Gives the base's logits on rows of text.

    Args:
        model: whose base, with every modality off, is the teacher.
        pad: id that fills rows up.
        states: what is kept of the texts; without ``FINAL`` among it, the base runs.
    """

    def __init__(self, model: SafeModel, pad: int, states: TextStates | None = None) -> None:
        self.model, self.pad, self.states = model, pad, states

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The base's logits at every word, row after row, (words, vocabulary)."""
        if self.states is not None and FINAL in self.states.kinds:
            final = torch.cat([state[FINAL] for state in self.states.of(rows)])
            logits: Tensor = head_of(self.model.base)(final.to(self.model.device).unsqueeze(0))[0]
            return logits
        batch = {"input_ids": pad_right(rows, self.pad), "attention_mask": attention_mask(rows)}
        given = on_device(batch, self.model.device)
        with self.model.off():
            whole: Tensor = self.model(**given).logits
        return whole[given["attention_mask"].bool()]


@torch.no_grad()
def has_plain_head(model: SafeModel, row: Sequence[int]) -> bool:
    """Whether the logits are nothing but the output embeddings of what went into them.

    Args:
        model: whose base is asked.
        row: token ids of any text.
    """
    ids = torch.tensor([list(row)], device=model.device)
    mask = torch.ones_like(ids)
    hidden = capture(model, ids, mask, final=True).get(FINAL)
    if hidden is None or hidden.shape[:2] != ids.shape:
        return False
    with model.off():
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return torch.equal(head_of(model.base)(hidden), logits)
