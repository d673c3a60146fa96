"""The first stage of a run: each projector is shown its frames, and aligned if asked to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from safe_framework.config.schema import Recipe, TrainingSpec
from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.data.frame_cache import stack
from safe_framework.data.frame_cache_unencoded import Row, inputs_of
from safe_framework.errors import DataError
from safe_framework.interfaces.types import Frames
from safe_framework.training.alignment import Aligned, Alignment, align
from safe_framework.training.batches import TokenizedExample, carry
from safe_framework.utils.progress import WorkProgress

_CHUNK = 32


def prepare_projectors(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[TokenizedExample],
    alignment: Alignment,
    progress: WorkProgress,
) -> None:
    """Show each projector its training frames, and align it with the answers if asked to.

    Where the encoder trains, the projector is shown what it gives before the first step, and
    alignment trains both.
    """
    torch.manual_seed(recipe.training.seed)
    for name in model.modalities:
        modality = model.modality(name)
        having = [example for example in examples if name in example.frames]
        if not having:
            raise DataError(
                f"no training row has a sample of modality `{name}`",
                hint=f"add a field `{name}` to the rows that have one",
            )
        rows = [example.frames[name] for example in having]
        first = _first_frames(modality, rows, model.device)
        modality.projector.fit(first)
        aligned = _aligned(modality, rows, first, model.device, recipe.training)
        answers = [example.text for example in having]
        align(aligned, alignment, answers, recipe.training, progress)


def frames_of(modality: Modality, rows: Sequence[Row], device: torch.device) -> Frames:
    """Frames of some rows as one batch; those of an encoder that trains are computed now."""
    batch = carry(modality.name, rows, modality.encoder.dim)
    inputs = inputs_of(modality.name, batch)
    return modality.encode({key: value.to(device) for key, value in inputs.items()})


@torch.no_grad()
def _first_frames(modality: Modality, rows: Sequence[Row], device: torch.device) -> Frames:
    """Frames of all rows, as they are before the first step."""
    if not modality.encoder_trains:
        return frames_of(modality, rows, device)
    modality.encoder.eval()
    single: list[Frames] = []
    for start in range(0, len(rows), _CHUNK):
        some = frames_of(modality, rows[start : start + _CHUNK], device)
        single += [some.rows(torch.tensor([row])) for row in range(len(some.mask))]
    stacked = stack(single, modality.encoder.dim)
    return Frames(stacked.values.to(device), stacked.mask.to(device))


def _aligned(
    modality: Modality,
    rows: Sequence[Row],
    first: Frames,
    device: torch.device,
    spec: TrainingSpec,
) -> Aligned:
    """What alignment trains, and how it comes by frames."""
    rates: dict[nn.Module, float] = {modality.projector: spec.align_learning_rate}
    if not modality.encoder_trains:
        return Aligned(modality.projector, first.rows, rates)
    rate = spec.encoder_learning_rate
    rates[modality.encoder] = spec.align_learning_rate if rate is None else rate

    def read(chosen: torch.Tensor) -> Frames:
        """The frames of chosen rows."""
        return frames_of(modality, [rows[row] for row in chosen.tolist()], device)

    return Aligned(modality.projector, read, rates, batch=spec.batch_size)
