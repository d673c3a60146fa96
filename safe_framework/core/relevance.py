"""The head that decides whether a call is about a sense's sample at all: ``gate = "auto"``.

A probe (Alain and Bengio 2017, arXiv:1610.01644) on the base's own hidden states at the last
positions of the prompt, which attention puts together (as in Bahdanau et al. 2015, arXiv:1409.0473,
with a query that is learned). What is asked stands in its words; at the last position alone, it is
mixed with what the base is about to answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from safe_framework.core.prompt_states import PromptEnd
from safe_framework.errors import AdapterError, SafeError
from safe_framework.interfaces.types import Frames

if TYPE_CHECKING:
    from safe_framework.core.modality import Modality
    from safe_framework.core.model import SafeModel

Strength = float | Literal["auto"]
"""A gate: from 0 (off) to 1, or left to a relevance head, which decides on each row."""

AUTO: Literal["auto"] = "auto"

TENSORS = ("mean", "scale", "queries", "weight", "sample_weight", "bias")
"""Names of a head's tensors."""

_SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "layer": int,
    "columns": int,
    "threshold": (int, float),
    "statement": (dict, type(None)),
}


class RelevanceHead(nn.Module):
    """A linear score of each position, summed by attention over the last positions of a prompt.

    Of standardised states ``s_t = (x_t - mean) / scale`` of the positions ``t`` that were read,
    each of its queries ``q_h`` takes ``softmax_t(q_h s_t) w_h s_t``. The score is the sum of these
    and of the bias. Where it is also given a sample, ``u z`` is added, of the standardised mean
    ``z`` of its frames. With one position it is a logistic regression on the last state.

    All that it holds are buffers in float32: it is fitted apart, and no optimizer moves it.

    Args:
        mean: of each feature of the hidden state, and of a sample behind them, (features,).
        scale: standard deviation of each feature, above 0, (features,).
        queries: (queries, hidden).
        weight: of each standardised state by query, (queries, hidden).
        bias: of the score.
        sample_weight: of each standardised feature of a sample, (sample features,); none where it
            reads the text alone.
        layer: of the base, whose output is read, from 0.
        columns: how many positions are read, the prompt's last ones.
        threshold: score above which the gate opens; 0 is a probability of one half.
        statement: what a calibration showed; None before one. Whatever JSON can hold.

    Raises:
        SafeError: sizes differ, a number is not finite, or a scale is not above 0.

    Example:
        >>> head = RelevanceHead([0.0, 1.0], [1.0, 2.0], [[0.0, 0.0]], [[3.0, 1.0]], 0.5, layer=2)
        >>> states = torch.tensor([[[1.0, 5.0]]])
        >>> head(PromptEnd(states, torch.ones(1, 1, dtype=torch.bool)))
        tensor([5.5000])
        >>> head.opens(torch.tensor([5.5, -1.0]))
        tensor([ True, False])
    """

    mean: Tensor
    scale: Tensor
    queries: Tensor
    weight: Tensor
    bias: Tensor
    sample_weight: Tensor

    def __init__(
        self,
        mean: Any,
        scale: Any,
        queries: Any,
        weight: Any,
        bias: Any,
        *,
        layer: int,
        columns: int = 1,
        sample_weight: Any = (),
        threshold: float = 0.0,
        statement: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {"mean": mean, "scale": scale, "queries": queries, "weight": weight, "bias": bias}
        for name, values in (given | {"sample_weight": sample_weight}).items():
            held = torch.as_tensor(values).detach().to(torch.float32, copy=True)
            self.register_buffer(name, held)
        self.layer, self.columns = int(layer), int(columns)
        self.threshold = float(threshold)
        self.statement = None if statement is None else dict(statement)
        self._check()

    @property
    def pooled(self) -> bool:
        """Whether it reads the pooled sample too."""
        return len(self.sample_weight) > 0

    @property
    def hidden_size(self) -> int:
        """How many features of the base's hidden state it reads."""
        return self.weight.shape[1]

    def forward(self, read: PromptEnd, samples: Tensor | None = None) -> Tensor:
        """The score of each row, (rows,), in float32.

        Args:
            read: the base's hidden states, of at most ``columns`` positions a row.
            samples: the rows' pooled samples, (rows, sample features); None where it reads none.

        Raises:
            SafeError: there are not as many features as it was fitted on.
        """
        device, hidden = self.weight.device, self.hidden_size
        found = read.states.shape[-1], 0 if samples is None else samples.shape[1]
        if found[0] != hidden or (self.pooled and found[1] != len(self.sample_weight)):
            raise SafeError(
                f"a relevance head of {hidden} features, and {len(self.sample_weight)} of a "
                f"sample, was given {found[0]} and {found[1]}",
                hint="use the head with the base and the encoder that it was fitted on",
            )
        states, mask = read.states.to(device).float(), read.mask.to(device)
        mean, scale = (
            (self.mean[:hidden], self.scale[:hidden]) if self.pooled else (self.mean, self.scale)
        )
        each = attention_scores((states - mean) / scale, mask, self.queries, self.weight)
        score = each.sum(dim=1) + self.bias
        if self.pooled and samples is not None:
            heard = (samples.to(device).float() - self.mean[hidden:]) / self.scale[hidden:]
            score = score + heard @ self.sample_weight
        return score

    def opens(self, score: Tensor) -> Tensor:
        """Whether the gate opens at these scores; one that is no number keeps it closed."""
        return score > self.threshold

    def settings(self) -> dict[str, Any]:
        """What an adapter's config holds of it, beside its tensors."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def blank(
        cls, sizes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]
    ) -> RelevanceHead:
        """A head of these ``settings``, into which an adapter's tensors are to be copied.

        Args:
            sizes: of its tensors, by name.
            settings: as ``settings`` gives them.
        """
        tensors: dict[str, Any] = {name: torch.zeros(tuple(sizes[name])) for name in TENSORS}
        return cls(**{**tensors, "scale": torch.ones(tuple(sizes["scale"]))}, **settings)

    def _check(self) -> None:
        features = len(self.mean)
        shapes = {name: tuple(getattr(self, name).shape) for name in TENSORS}
        right = (
            self.weight.ndim == 2
            and self.queries.shape == self.weight.shape
            and self.scale.shape == self.mean.shape == (features,)
            and self.sample_weight.ndim == 1
            and features == self.hidden_size + len(self.sample_weight)
            and self.bias.ndim == 0
        )
        if not right or self.columns < 1:
            raise SafeError(
                f"a relevance head has features that differ, in {self.columns} columns: {shapes}",
                hint="give queries and weights of each feature of the hidden state, and a mean and "
                "a scale of those and the sample's",
            )
        finite = all(bool(held.isfinite().all()) for held in self.buffers())
        if not finite or not bool((self.scale > 0).all()):
            raise SafeError(
                "a relevance head holds numbers that are not finite, or a scale of 0 or below",
                hint="leave constant features at a scale of 1",
            )


def attention_scores(standard: Tensor, mask: Tensor, queries: Tensor, weight: Tensor) -> Tensor:
    """What each query takes of the positions, (rows, queries).

    Args:
        standard: standardised states, (rows, columns, hidden).
        mask: which of the positions count, at least one a row, (rows, columns).
        queries: (queries, hidden).
        weight: of the states by query, (queries, hidden).
    """
    wanted, given = (standard @ torch.cat([queries, weight]).T).chunk(2, dim=-1)
    counts = mask.unsqueeze(-1)
    share = wanted.masked_fill(~counts, -torch.inf).softmax(dim=1)  # (rows, columns, queries)
    return (share * given.masked_fill(~counts, 0.0)).sum(dim=1)


def check_decidable(modality: Modality) -> None:
    """Refuse to leave a gate to a head that is not there.

    Raises:
        SafeError: the modality has none.
    """
    if modality.relevance is None:
        raise SafeError(
            f'`{modality.name}` has no relevance head, so that `gate = "auto"` cannot be decided',
            hint="fit one: `safe calibrate ADAPTER`; or set a gate from 0 to 1",
        )


def check_head(modality: Modality, head: RelevanceHead, layers: int, hidden: int) -> None:
    """Refuse a head that was fitted on other features than a modality's.

    Args:
        modality: that it is for.
        head: to be its own.
        layers: of the base.
        hidden: width of the base's hidden states.

    Raises:
        SafeError: the base has no such layer, or there are not as many features.
    """
    if not 0 <= head.layer < layers:
        raise SafeError(
            f"the relevance head of `{modality.name}` reads layer {head.layer}, but the base has "
            f"layers 0 to {layers - 1}"
        )
    samples = len(head.sample_weight)
    if head.hidden_size != hidden or samples not in (0, modality.encoder.dim):
        raise SafeError(
            f"the relevance head of `{modality.name}` reads {head.hidden_size} features of "
            f"the base and {samples} of a sample; the base has {hidden}, the encoder "
            f"{modality.encoder.dim}",
            hint="use it with the base and the encoder that it was fitted on",
        )


def checked_settings(name: str, settings: Any) -> Mapping[str, Any]:
    """What an adapter's config says of a modality's head.

    Raises:
        TypeError: it is not what ``RelevanceHead.settings`` gives.
    """
    if not isinstance(settings, Mapping) or settings.keys() != _SETTINGS.keys():
        raise TypeError(
            f"it does not say the relevance head of `{name}` as this version does; a head that an "
            "earlier one fitted is fitted anew by training again"
        )
    if not all(isinstance(settings[key], kind) for key, kind in _SETTINGS.items()):
        raise TypeError(f"it says the relevance head of `{name}` in other types")
    return settings


def blank_head(
    name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], path: object
) -> RelevanceHead:
    """A head as large as an adapter's tensors of modality ``name`` are.

    Raises:
        AdapterError: the adapter has none, though its config says so, or says something impossible.
    """
    found = {part: tensors.get(f"{name}.relevance.{part}") for part in TENSORS}
    if any(tensor is None for tensor in found.values()):
        raise AdapterError(
            f"`{path}` has no tensors of the relevance head of `{name}` that its config tells of",
            hint="copy or save the adapter again",
        )
    try:
        sizes = {part: tensor.shape for part, tensor in found.items() if tensor is not None}
        return RelevanceHead.blank(sizes, settings)
    except SafeError as error:
        raise AdapterError(f"`{path}`: {error.message}", hint=error.hint) from error


def pooled_frames(frames: Frames, rows: Tensor, count: int) -> Tensor:
    """The mean of each row's valid frames, of all its samples, (count, dim), in float32.

    Args:
        frames: of the samples, (samples, frames, dim).
        rows: the row of each sample, (samples,).
        count: of rows; one without a valid frame has zeros.
    """
    mask = frames.mask.to(torch.float32).unsqueeze(-1)  # (samples, frames, 1)
    values = torch.where(mask > 0, frames.values.float(), 0.0)
    sums = values.new_zeros(count, values.shape[2]).index_add(0, rows, values.sum(1))
    counts = values.new_zeros(count, 1).index_add(0, rows, mask.sum(1))
    return sums / counts.clamp_min(1)


@torch.no_grad()
def relevance_samples(model: SafeModel, name: str, batch: Mapping[str, Tensor]) -> Tensor:
    """The pooled sample of each row as a head reads it, (rows, features), in float32.

    Args:
        model: with the modality.
        name: of the modality.
        batch: what the model's processor made, with samples or with finished frames.
    """
    prefix = f"{name}__"
    given = {
        key.removeprefix(prefix): value.to(model.device)
        for key, value in batch.items()
        if key.startswith(prefix)
    }
    return model.modality(name).pooled(given)


def relevance_states(
    model: SafeModel, batch: Mapping[str, Any], layer: int, columns: int = 1
) -> PromptEnd:
    """The base's own hidden states at the end of each row's prompt, as a head reads them.

    Where a prompt ends is as for ``attend = "answer"``: at its last real word, or before the
    first label.

    Args:
        model: whose base reads the texts; its modalities are absent.
        batch: what the model's processor made, with samples or without.
        layer: of the base, whose output is read, from 0.
        columns: how many positions are read.
    """
    return model.prompt_states(batch, (layer,), columns)[layer]
