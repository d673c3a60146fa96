"""Where in a call's text a modality acts: ``attend``.

``"all"``: at every position. ``"answer"``: from the last position of the prompt on, which chooses
the answer's first token, so that all that comes before it is the base's bit for bit (law L8).
``"after"``: from the markers of its sample on. A batch may say it for each row itself, by
``NAME__from``, whatever the option says.

A decoder beside an encoder reads nothing but the answer, so there ``"answer"`` is all of its text;
the prompt is the encoder's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.config.schema import Attend
from safe_framework.core.layer_discovery import (
    LayerStack,
    decodes_separately,
    in_encoder,
    positions_read,
)
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import FROM, IGNORED, PRESENT


@attrs.define(eq=False)
class ActingPositions:
    """From which position on a modality acts in one call, as the base reads its text.

    A base reads its text at once, in chunks, behind what lies in a cache, or again and again as it
    grows. Each fused layer sees the same, and is counted for itself.

    Attributes:
        first: column of each row's text at which it begins to act, (batch,), on the CPU.
        length: how many columns the call's text has.
        cached: how many of them lie in a cache, and will not be read.
    """

    first: Tensor
    length: int
    cached: int = 0
    _read: dict[int, int] = attrs.field(factory=dict, init=False)

    def within(self, layer: int, columns: int, *, keeps: bool) -> Tensor | None:
        """The first acting column of each row among those that a layer is given now, (batch,).

        Args:
            layer: that is about to be called.
            columns: of its hidden states; what a base puts behind a text comes on top.
            keeps: whether it was handed a cache, so that nothing is read twice.

        Returns:
            None where it acts on all of them, as on every token behind the text.
        """
        read = self._read.get(layer, self.cached)
        if read < self.length:
            self._read[layer] = read + columns
            return self._shifted(-read)
        return None if keeps or columns < self.length else self._shifted(0)

    def read(self) -> ActingPositions:
        """The same once the whole text was read."""
        return attrs.evolve(self, cached=self.length)

    def _shifted(self, by: int) -> Tensor | None:
        first = (self.first + by).clamp_min(0)
        return first if bool(first.any()) else None


def acting_positions(
    attend: Attend,
    given: Tensor | None,
    inputs: Mapping[str, Any],
    *,
    separate_decoder: bool,
    cached: int = 0,
    places: Tensor | None = None,
    rows: Tensor | None = None,
    name: str = "",
) -> ActingPositions | None:
    """Where a modality acts in one call; None for everywhere.

    Args:
        attend: as the modality says.
        given: ``NAME__from`` of the call, (batch,); None where it says nothing.
        inputs: of the base, by keyword.
        separate_decoder: whether the fused layers read a text of their own, beside the prompt.
        cached: how many columns of the text lie in a cache.
        places: rows and columns of the modality's markers, (positions, 2); None without any.
        rows: of the samples that are present, (present,).
        name: of the modality, for messages.

    Raises:
        SampleError: the place of a sample is wanted, and the text does not have it; or ``given``
            does not have a number for each row.
    """
    text = _text(inputs)
    if separate_decoder or text is None or (attend == "all" and given is None):
        return None
    batch, length = text.shape[:2]
    if given is not None:
        first = given.cpu().long()
        if first.shape != (batch,):
            raise SampleError(
                f"`{name}__{FROM}` has shape {tuple(first.shape)} for {batch} texts",
                hint="give the first position at which it acts for each text",
            )
    elif attend == "answer":
        first = _prompt_ends(inputs, batch, length)
    else:
        first = _first_places(places, rows, batch, name)
    return ActingPositions(first, length, cached)


def text_columns(inputs: Mapping[str, Any]) -> int | None:
    """How many columns a call's text has; None without one."""
    text = _text(inputs)
    return None if text is None else text.shape[1]


def prompt_ends(
    inputs: Mapping[str, Any], given: Tensor | None = None, *, separate_decoder: bool = False
) -> tuple[Tensor, int]:
    """The last position of each row's prompt, (batch,), and the length of the text that has it.

    Of a decoder beside an encoder that is its first position, which chooses the first token.

    Args:
        inputs: of the base, by keyword.
        given: ``NAME__from`` of the call, (batch,); None where it says nothing. A row of which
            nothing is prompt, but all may be answer, is read whole.
        separate_decoder: whether the layers read a text of their own, beside the prompt.

    Raises:
        SampleError: the call has no text.
    """
    text = _text(inputs)
    if text is None:
        raise SampleError(
            "the call has no text, so that nothing says whether it is about a sample",
            hint="give `input_ids`, or a gate that is a number",
        )
    batch, length = text.shape[:2]
    if separate_decoder:
        return torch.zeros(batch, dtype=torch.long), 1
    last = _prompt_ends(inputs, batch, length)
    if given is not None:
        named = given.cpu().long().clamp(0, length - 1)
        last = torch.where(named > 0, named, last)
    return last, length


def real_columns(inputs: Mapping[str, Any], length: int) -> Tensor | None:
    """Which columns of a text are no padding, (batch, length), on the CPU; None where all are.

    Args:
        inputs: of the base, by keyword.
        length: of the text. A mask that is longer also covers what lies in a cache.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < length:
        return None
    return mask[:, mask.shape[1] - length :].cpu().bool()


def check_attend(
    attend: Attend, base: nn.Module, stack: LayerStack, example: Mapping[str, Any], *, marked: bool
) -> None:
    """Refuse what ``attend`` cannot mean for a base or a modality.

    Args:
        attend: as it was asked for.
        base: of the model.
        stack: its layers that are fused.
        example: keyword arguments of one of its calls.
        marked: whether the modality has markers.

    Raises:
        SafeError: an encoder's text is fused, all of which is the prompt; the base's layers read
            other positions than the text's; or the text would have no place of a sample.
    """
    if attend == "all":
        return
    if in_encoder(base, stack.of(base)):
        raise SafeError(
            f'`attend = "{attend}"` has no meaning in an encoder, which reads the prompt alone, '
            "and every position of it with all others",
            hint='say `attend = "all"`, or fuse into the decoder: `side = "decoder"`',
        )
    if attend == "after" and not marked:
        raise SafeError(
            '`attend = "after"` needs the place of a sample in the text',
            hint="set `markers = true`, so that the text has one",
        )
    text = None if decodes_separately(base) else _text(example)
    if text is not None and (read := positions_read(base, stack, example)) != text.shape[1]:
        raise SafeError(
            f"the layers of `{type(base).__name__}` read {read} positions of a text of "
            f"{text.shape[1]}, so where its answer begins is not known",
            hint='say `attend = "all"`',
        )


def whole_text_columns(
    attends: Mapping[str, Attend], batch: Mapping[str, Any]
) -> dict[str, Tensor]:
    """``NAME__from`` of texts without a prompt: all of such a text is what the model might write.

    Args:
        attends: of each modality.
        batch: of texts with samples of some.
    """
    found = {}
    for name in answering(attends):
        if (present := batch.get(f"{name}__{PRESENT}")) is not None:
            found[f"{name}__{FROM}"] = torch.zeros(len(present), dtype=torch.long)
    return found


def answering(attends: Mapping[str, Attend]) -> list[str]:
    """The modalities that act from the end of the prompt on."""
    return [name for name, attend in attends.items() if attend == "answer"]


def answer_starts(labels: Tensor, otherwise: Tensor) -> Tensor:
    """The position that predicts each row's first label, (batch,).

    Args:
        labels: ids, -100 where nothing is to be predicted, (batch, length).
        otherwise: what stands for a row without any, (batch,).
    """
    wanted = (labels != IGNORED).cpu()
    first = wanted.int().argmax(1) - 1
    return torch.where(wanted.any(1), first.clamp_min(0), otherwise)


def _text(inputs: Mapping[str, Any]) -> Tensor | None:
    named = (inputs.get(key) for key in ("input_ids", "inputs", "inputs_embeds"))
    return next((one for one in named if isinstance(one, Tensor) and one.ndim > 1), None)


def _prompt_ends(inputs: Mapping[str, Any], batch: int, length: int) -> Tensor:
    """The last position of each row's prompt: before its first label, or before its padding."""
    last = torch.full((batch,), length - 1)
    if (real := real_columns(inputs, length)) is not None:
        counted = length - 1 - real.flip(1).int().argmax(1)
        last = torch.where(real.any(1), counted, last)
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.shape == (batch, length):
        return answer_starts(labels, last)
    return last


def _first_places(places: Tensor | None, rows: Tensor | None, batch: int, name: str) -> Tensor:
    """The column of the first marker of each row that has a sample."""
    first = torch.full((batch,), torch.iinfo(torch.long).max)
    if places is not None:
        at = places.cpu()
        first.scatter_reduce_(0, at[:, 0], at[:, 1], "amin")
    unknown = first == torch.iinfo(torch.long).max
    lost = [row for row in _listed(rows) if bool(unknown[row])]
    if lost:
        raise SampleError(
            f"row {lost[0]} has a sample of `{name}`, and its text no place of it, from which on "
            'it would act (`attend = "after"`)',
            hint="make the batch with this model's `processor`",
        )
    return first.masked_fill(unknown, 0)


def _listed(rows: Tensor | None) -> Iterable[int]:
    return [] if rows is None else rows.tolist()
