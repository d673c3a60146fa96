"""Compare a model with its base at the words of some texts, by the shortest way that is exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from safe_framework.comparison import Comparison, HiddenComparison, LogitComparison
from safe_framework.model import SafeModel
from safe_framework.retention import RetentionRegularizer
from safe_framework.training.capture import head_of
from safe_framework.training.losses import hidden_at, logits_at
from safe_framework.training.states import Progress
from safe_framework.training.teacher import TaughtWords, Teacher, has_plain_head
from safe_framework.vocabulary_losses import takes_hidden


class Comparing:
    """Runs a model, and sets what it says beside what a teacher says.

    Args:
        model: about to be trained, in eval mode.
        teacher: of the texts.
        row: any of them.

    Attributes:
        plain: whether the base's logits are its output embeddings of something, and the model
            shows them something at each position. If not, logits are compared.
    """

    def __init__(self, model: SafeModel, teacher: Teacher, row: Sequence[int]) -> None:
        self.model, self.teacher = model, teacher
        self.plain = teacher.states is not None or has_plain_head(model, row)

    def warm(
        self,
        rows: Sequence[Sequence[int]],
        methods: Iterable[RetentionRegularizer],
        progress: Progress,
    ) -> None:
        """Compute what shall be kept of the base, for these methods and texts."""
        if self._shared_head() is not None:
            temperatures = [t for method in methods for t in method.temperatures]
            self.teacher.warm(rows, temperatures, progress)

    def compare(
        self,
        wrapped: nn.Module,
        batch: Mapping[str, Tensor],
        places: Tensor,
        rows: Sequence[Sequence[int]],
    ) -> Comparison:
        """The model and the teacher, at every word of the texts, row after row.

        Args:
            wrapped: the model, possibly wrapped for distributed training.
            batch: of its call.
            places: True at the words in it, (batch, length).
            rows: token ids of the texts.
        """
        base, words = self.model.base, TaughtWords(self.teacher, rows)
        head = self._shared_head()
        if head is not None:
            hidden = hidden_at(wrapped, base, batch, places)
            if hidden is not None:
                return HiddenComparison(hidden, head, words)
            self.plain = False
        logits = logits_at(wrapped, base, batch, places).unsqueeze(0)
        mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        return LogitComparison(logits, words.logits().unsqueeze(0), mask)

    def _shared_head(self) -> nn.Linear | None:
        """The output embeddings, if what enters them can be compared instead of logits."""
        head = head_of(self.model.base)
        return head if self.plain and takes_hidden(head) else None
