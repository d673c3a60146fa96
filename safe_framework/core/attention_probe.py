"""Look at what text attends to in a sample: recorded while a model answers, if it is asked to.

Off, nothing of this runs and no operation is added. On, shares are copied as they are computed,
so that no bit of an output changes either.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.attention.cross_attention import observed
from safe_framework.core.injection import ActiveModality
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import IGNORED

_Shares = list[Tensor]  # one for each time a layer ran, (rows, heads, length, tokens)


@attrs.frozen(eq=False)
class AttentionRecord:
    """What one sample of one call was attended to.

    A share is the part of a position's attention that goes to a token of the sample, from 0 to 1.
    An adapter may leave a part of it to nothing. Layers and heads are those of the fusion
    adapter; a layer with fewer heads than another has NaN in their place.

    Attributes:
        modality: of the sample.
        row: of the call that it came with.
        layers: fused layers, in the order of the first axis below.
        mean: share of a token, over all positions and tokens, (layers, heads).
        max: largest share of a token at any position, (layers, heads).
        entropy: of a position's shares in nats, mean over positions; what goes to nothing counts
            as one more token, (layers, heads).
        heard: share of all tokens together, mean over positions; the rest goes to nothing,
            (layers, heads).
        over_tokens: share of each token, mean over positions, (layers, heads, tokens).
        answer: shares at the positions that choose the answer's tokens, (layers, heads, answer,
            tokens).
    """

    modality: str
    row: int
    layers: tuple[int, ...]
    mean: Tensor
    max: Tensor
    entropy: Tensor
    heard: Tensor
    over_tokens: Tensor
    answer: Tensor


class AttentionProbe:
    """The records of a model's latest samples.

    Calls of several threads may record at once: each fills records of its own.

    Attributes:
        enabled: whether calls are recorded.
        limit: how many samples are kept; older ones are dropped.
    """

    def __init__(self) -> None:
        self.enabled, self.limit = False, 10
        self._records: deque[AttentionRecord] = deque(maxlen=self.limit)

    def configure(self, enabled: bool, limit: int) -> None:
        """Switch recording on or off; what was recorded stays, as far as ``limit`` allows.

        Raises:
            SafeError: ``limit`` is below 1.
        """
        if limit < 1:
            raise SafeError(f"`limit` must be at least 1, not {limit}", hint="disable it instead")
        self.enabled, self.limit = enabled, limit
        self._records = deque(self._records, maxlen=limit)

    @property
    def records(self) -> tuple[AttentionRecord, ...]:
        """The latest samples, oldest first."""
        return tuple(self._records)

    def restore(self, enabled: bool, limit: int, records: Sequence[AttentionRecord]) -> None:
        """Put back what ``enabled``, ``limit`` and ``records`` were."""
        self.configure(enabled, limit)
        self._records = deque(records, maxlen=limit)

    def clear(self) -> None:
        """Forget what was recorded."""
        self._records.clear()

    def recording(
        self, modalities: Sequence[ActiveModality], inputs: Mapping[str, Any], generating: bool
    ) -> AbstractContextManager[None]:
        """Record, if it is enabled, what the modalities are attended to within the block.

        Args:
            modalities: of one call.
            inputs: of the base in this call, from which its padding and labels are taken.
            generating: whether the last position of each step chooses a token of the answer.
        """
        return self._recording(modalities, inputs, generating) if self.enabled else nullcontext()

    @contextmanager
    def _recording(
        self, modalities: Sequence[ActiveModality], inputs: Mapping[str, Any], generating: bool
    ) -> Iterator[None]:
        recorders = [_Recorder(one) for one in modalities]
        for recorder in recorders:
            recorder.modality.around = recorder
        try:
            yield
        finally:
            for recorder in recorders:
                recorder.modality.around = None
        for recorder in recorders:
            if recorder.seen:
                self._records.extend(recorder.records(inputs, generating))
            else:
                warnings.warn(_unseen(recorder.modality), stacklevel=4)


def _unseen(modality: ActiveModality) -> str:
    return (
        f"nothing was recorded of modality `{modality.name}`: its fusion adapter "
        f"`{type(modality.fusion).__qualname__}` does not attend with safe_framework.attention"
    )


class _Recorder:
    """Collects the shares of one modality in one call."""

    def __init__(self, modality: ActiveModality) -> None:
        self.modality = modality
        self.seen: dict[int, _Shares] = {}
        self.start, self.acting = modality.shown

    def __call__(self, layer: int) -> AbstractContextManager[None]:
        """Within the block, the adapter works at ``layer``."""
        heads: list[Tensor] = []
        return self._observing(layer, heads)

    @contextmanager
    def _observing(self, layer: int, heads: list[Tensor]) -> Iterator[None]:
        with observed(heads.append):
            yield
        if not self.seen:
            self.start, self.acting = self.modality.shown
        if heads:  # an adapter may attend more than once: side by side, as so many more heads
            self.seen.setdefault(layer, []).append(torch.cat(heads, dim=1))

    def records(self, inputs: Mapping[str, Any], generating: bool) -> Iterator[AttentionRecord]:
        """One for each sample; where a sample has copies, as beams are, of the first."""
        rows = self.modality.rows.tolist()
        for number, row in enumerate(rows):
            first = next(iter(self.seen.values()))[0]
            copy = number * (len(first) // len(rows))
            mask = self.modality.memory.mask[number].cpu()
            length = self.start + first.shape[2]
            words = _words(inputs, row, length)[self.start :]
            if self.acting is not None:
                words = words & self.acting[number]
            answer = None if generating else _answer(inputs, row, length)[self.start :]
            stacks = [
                _of_row([step[copy][..., mask] for step in steps], words, answer)
                for steps in self.seen.values()
            ]
            yield _record(self.modality.name, row, tuple(self.seen), stacks)


def _words(inputs: Mapping[str, Any], row: int, length: int) -> Tensor:
    """Which positions of a row are no padding, (length,)."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == length:
        return mask[row].bool().cpu()
    return torch.ones(length, dtype=torch.bool)


def _answer(inputs: Mapping[str, Any], row: int, length: int) -> Tensor:
    """Which positions choose a token that is a label; the last one if there are no labels."""
    found = torch.zeros(length, dtype=torch.bool)
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.shape[1] == length:
        found[:-1] = (labels[row, 1:] != IGNORED).cpu()
    if not found.any():
        found[_words(inputs, row, length).nonzero().max()] = True
    return found


def _of_row(steps: _Shares, words: Tensor, answer: Tensor | None) -> tuple[Tensor, Tensor]:
    """One layer's shares at a row's positions and at its answer, each (heads, ..., tokens).

    Args:
        steps: shares of the prompt, then of each step of decoding, (heads, length, tokens).
        words: positions of the prompt that are no padding.
        answer: positions that choose the answer; None for the last of each step.
    """
    prompt, *later = steps
    last = [step[:, -1:] for step in later]
    everywhere = torch.cat([prompt[:, words], *last], dim=1)
    if answer is not None:
        return everywhere, prompt[:, answer]
    return everywhere, torch.cat([prompt[:, -1:], *last], dim=1)


def _record(
    modality: str, row: int, layers: tuple[int, ...], stacks: Sequence[tuple[Tensor, Tensor]]
) -> AttentionRecord:
    shares = torch.stack(
        [everywhere for everywhere, _ in stacks]
    )  # (layers, heads, length, tokens)
    heard = shares.sum(-1)
    whole = torch.cat([shares, (1 - heard).clamp_min(0).unsqueeze(-1)], dim=-1)
    return AttentionRecord(
        modality=modality,
        row=row,
        layers=layers,
        mean=shares.mean((2, 3)),
        max=shares.amax((2, 3)),
        entropy=torch.special.entr(whole).sum(-1).mean(-1),
        heard=heard.mean(-1),
        over_tokens=shares.mean(2),
        answer=_stacked([chosen for _, chosen in stacks]),
    )


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """(layers, heads, ...): the heads that a layer lacks are NaN."""
    return torch.nn.utils.rnn.pad_sequence(list(layers), batch_first=True, padding_value=math.nan)
