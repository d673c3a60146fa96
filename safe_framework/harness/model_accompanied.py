"""A model that hears the same sample in every call, as the harness takes a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Sample


class Accompanied:
    """What the harness calls in place of a transformers model.

    Args:
        model: with its gates set.
        modality: of the sample.
        sample: beside every text; None leaves the sense absent.

    Attributes:
        config: the base's.
        span: how many positions the sense puts into a text.
    """

    def __init__(self, model: SafeModel, modality: str, sample: Sample | None) -> None:
        self.safe, self.modality = model, modality
        self.config: Any = model.base.config
        self._frames = None if sample is None else model.encode(modality, [sample])
        heard = self._frames is not None and model.gates[modality] > 0
        self.span = len(model.processor.markers.spans.get(modality, ())) if heard else 0

    @property
    def device(self) -> torch.device:
        """Where the harness puts its ids."""
        return self.safe.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return next(self.safe.base.parameters()).dtype

    def num_parameters(self) -> int:
        """Of the base and of what was added to it."""
        return sum(parameter.numel() for parameter in self.safe.parameters())

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the model with a sample for each text."""
        return self.safe(*args, **inputs, **self._beside(*args, **inputs))

    def generate(self, **inputs: Any) -> Any:
        """Continue texts with a sample for each."""
        return self.safe.generate(**inputs, **self._beside(**inputs))

    def marked(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Ids and mask with the sense's markers where a text begins; untouched without any."""
        if not self.span:
            return ids, mask
        real = torch.ones_like(ids) if mask is None else mask
        batch = {"input_ids": ids.cpu(), "attention_mask": real.cpu()}
        rows = len(ids)
        given = {self.modality: [self._frames] * rows}
        batch |= self.safe.processor.markers.inserted(batch, [""] * rows, given)
        return batch["input_ids"].to(ids.device), batch["attention_mask"].to(ids.device)

    def unmarked(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits at the texts' own positions, (batch, length, vocabulary)."""
        words = self.safe.processor.markers.words(ids)
        return logits[words].view(len(ids), -1, logits.shape[-1])  # (batch, length, vocabulary)

    def _beside(self, *args: Any, **inputs: Any) -> dict[str, Tensor]:
        if self._frames is None:
            return {}
        rows = len(args[0] if args else inputs["input_ids"])
        values, mask = self._frames.values, self._frames.mask
        return {
            f"{self.modality}__present": torch.ones(rows, dtype=torch.bool),
            f"{self.modality}__frames": values.expand(rows, -1, -1),
            f"{self.modality}__frames_mask": mask.expand(rows, -1),
        }
