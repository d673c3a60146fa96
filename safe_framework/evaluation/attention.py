"""What the answers to a few test samples attended to, over the sample's own timeline.

A projector may pool all frames into each of its tokens, so a token has no time of its own.
What it depends on is measured instead: each stretch of the frames is left out in turn, and the
token that changes most depends on it most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.attention_probe import AttentionRecord
from safe_framework.data.audio import Waveform
from safe_framework.data.long_sounds import LongSound
from safe_framework.evaluation.answers import answer, eval_mode
from safe_framework.interfaces.samples import each_of
from safe_framework.interfaces.types import Frames
from safe_framework.utils.files import atomic_write
from safe_framework.utils.json_records import json_converter, read_json, to_json
from safe_framework.utils.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example
    from safe_framework.interfaces.samples import Sample

ATTENTION = "attention.json"
_STRETCHES = 16


@attrs.frozen
class AttentionSummary:
    """What one row's sample was attended to while it was answered; several one after another.

    Numbers of a layer and head are means over the text; those that a head lacks are NaN there and
    None here.

    Attributes:
        place: of the example, where it was read.
        modality: of the sample.
        layers: fused layers of the base.
        mean: share of a token, by layer and head.
        max: largest share of a token.
        entropy: of a position's shares, in nats.
        heard: share of all tokens together; the rest goes to nothing.
        timeline: for each layer, then each head, what the answer's tokens attended to of each
            stretch of the sample.
        seconds: how long the sample is, or several together; None where it is no sound.
    """

    place: str
    modality: str
    layers: tuple[int, ...]
    mean: list[list[float | None]]
    max: list[list[float | None]]
    entropy: list[list[float | None]]
    heard: list[list[float | None]]
    timeline: list[list[list[float | None]]]
    seconds: float | None = None


@torch.no_grad()
def summarize_attention(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 8,
    stretches: int = _STRETCHES,
    progress: ProgressCallback | None = None,
) -> tuple[AttentionSummary, ...]:
    """Answer each example with the gate at 1, and say what its sample was attended to.

    The model's own probe is left as it was. An adapter that does not attend with
    ``safe_framework.attention`` gives nothing, with a warning.

    Args:
        model: with ``modality`` attached.
        modality: whose samples to look at.
        examples: each with a sample of it.
        max_new_tokens: limit of an answer's length.
        stretches: into how many parts a sample is cut, if it has as many frames.
        progress: called with a label, how many are done and of how many.
    """
    show, found = progress or no_progress, list[AttentionSummary]()
    probe = model.attention_probe
    before = probe.enabled, probe.limit, probe.records
    model.configure_attention_probe(enabled=True, limit=len(model.modalities))
    try:
        with eval_mode(model):
            for number, example in enumerate(examples, start=1):
                probe.clear()
                answer(model, [example], max_new_tokens=max_new_tokens, gate={modality: 1.0})
                held = each_of(example.samples[modality])
                parts = _block_diagonal(
                    [dependence(model, modality, one, stretches) for one in held]
                )
                own = [record for record in probe.records if record.modality == modality]
                found += [_summary(example, record, parts) for record in own]
                show("attention", number, len(examples))
    finally:
        probe.restore(*before)
    return tuple(found)


@torch.no_grad()
def dependence(
    model: SafeModel, modality: str, sample: Sample, stretches: int = _STRETCHES
) -> Annotated[Tensor, "tokens stretches"]:
    """How much each token of a sample depends on each stretch of its frames.

    The length of a token's change when the stretch is left out, as a part of the token's changes
    over all stretches; what depends on nothing depends on all of them alike.

    Args:
        model: in eval mode.
        modality: of the sample.
        sample: to be encoded.
        stretches: how many; fewer where there are fewer frames.
    """
    frames = model.encode(modality, [sample])
    tokens = model.modality(modality).tokens
    real = frames.mask[0].nonzero().flatten()
    parts = torch.tensor_split(real, min(stretches, len(real)))
    whole = tokens(frames)
    kept = whole.mask[0]
    if len(parts) == 1:  # nothing would be left
        return torch.ones(int(kept.sum()), 1)
    mask = frames.mask.repeat(len(parts), 1)
    for row, part in enumerate(parts):
        mask[row, part] = False
    without = tokens(Frames(frames.values.expand(len(parts), -1, -1), mask))
    moved = (without.values - whole.values).norm(dim=-1)[:, kept].T.float().cpu()
    moved = torch.where(moved.sum(1, keepdim=True) > 0, moved, 1.0)
    return moved / moved.sum(1, keepdim=True)


def _block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    """(tokens, stretches) of all samples, whose tokens depend on no stretch of another."""
    found: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]  # torch's own
    return found


def _summary(example: Example, record: AttentionRecord, parts: Tensor) -> AttentionSummary:
    held = each_of(example.samples[record.modality])
    sounds = [one for one in held if isinstance(one, (Waveform, LongSound))]
    seconds = sum(one.seconds for one in sounds) if len(sounds) == len(held) else None
    return AttentionSummary(
        place=example.place,
        modality=record.modality,
        layers=record.layers,
        mean=_listed(record.mean),
        max=_listed(record.max),
        entropy=_listed(record.entropy),
        heard=_listed(record.heard),
        timeline=_listed(record.answer.mean(2) @ parts),
        seconds=seconds,
    )


def _listed(values: Tensor) -> list[Any]:
    if values.ndim > 1:
        return [_listed(part) for part in values]
    return [None if value != value else round(value, 6) for value in values.tolist()]


_CONVERTER = json_converter()


def write_attention(folder: Path, found: Sequence[AttentionSummary]) -> Path:
    """Write what was attended to into the folder of a run."""
    return atomic_write(folder / ATTENTION, to_json(list(found), _CONVERTER, indent=None))


def read_attention(folder: Path) -> tuple[AttentionSummary, ...] | None:
    """What ``write_attention`` wrote; None where it was not asked for.

    Raises:
        DataError: the file is there and cannot be read.
    """
    path = folder / ATTENTION
    if not path.is_file():
        return None
    found = read_json(
        path,
        list[AttentionSummary],
        _CONVERTER,
        problem="cannot be read",
        hint="delete it: `safe report` measures it again",
    )
    return tuple(found)
