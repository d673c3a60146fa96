"""Where an answer in a chat ends: at the word by which the base's template ends a turn.

The base's own generation settings may not know that word, and then a model would talk on, in the
user's name too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from safe_framework.core.layer_discovery import decodes_separately

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


class TurnEnd:
    """The word by which a chat's turns end.

    Args:
        ids: of the word.
        known: the ids that end a text, by the base's own generation settings.
    """

    def __init__(self, ids: Sequence[int], known: Sequence[int] = ()) -> None:
        self.ids, self.known = tuple(ids), tuple(known)

    @classmethod
    def of(cls, model: SafeModel, prompts: Sequence[str] | None = None) -> TurnEnd | None:
        """Of a model's chats; None where its base has no template, or a prompt is in no chat.

        Args:
            model: with its tokenizer.
            prompts: that are continued; None for messages, which the template renders.
        """
        chat = model.processor.chat
        if chat is None or decodes_separately(model.base):
            return None
        if prompts is not None and not all(map(chat.opens, prompts)):
            return None
        base: Any = model.base
        ends = base.generation_config.eos_token_id
        known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return cls(chat.stop, known)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What ``generate`` is told besides what it is given; nothing where it knows, or is told.

        Args:
            given: the call's own options.
        """
        if given.keys() & {"eos_token_id", "generation_config"} or self._known:
            return {}
        if len(self.ids) == 1:
            return {"eos_token_id": [*self.known, *self.ids]}
        own = given.get("stopping_criteria") or ()
        return {"stopping_criteria": StoppingCriteriaList([*own, _EndsWith(self.ids)])}

    @property
    def _known(self) -> bool:
        return len(self.ids) == 1 and self.ids[0] in self.known

    def cut(self, ids: Tensor) -> Tensor:
        """New ids up to the end of the turn; all where it does not end."""
        listed, width = ids.tolist(), len(self.ids)
        for start in range(len(listed) - width + 1):
            if tuple(listed[start : start + width]) == self.ids:
                return ids[:start]
        return ids


class _EndsWith(StoppingCriteria):
    """Stops a row that ends with some ids."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = torch.tensor(ids)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        last = input_ids[:, -len(self.ids) :]
        if last.shape[1] < len(self.ids):
            return torch.zeros(len(last), dtype=torch.bool, device=last.device)
        return (last == self.ids.to(last.device)).all(1)
