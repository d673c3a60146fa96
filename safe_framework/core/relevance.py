"""The head that decides whether a call is about a sense's sample at all: ``gate = "auto"``.

A probe (Alain and Bengio 2017, arXiv:1610.01644) on the base's own hidden state at the last
position of the prompt, where all that was asked has been read and nothing been answered: linear, or
by likeness to states that it has seen (kernel logistic regression on landmarks, as Williams and
Seeger 2000, "Using the Nystrom method to speed up kernel machines").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from safe_framework.errors import AdapterError, SafeError
from safe_framework.interfaces.types import Frames

if TYPE_CHECKING:
    from safe_framework.core.modality import Modality
    from safe_framework.core.model import SafeModel

Strength = float | Literal["auto"]
"""A gate: from 0 (off) to 1, or left to a relevance head, which decides on each row."""

AUTO: Literal["auto"] = "auto"

TENSORS = ("mean", "scale", "weight", "bias")
"""Names of a head's tensors; one with landmarks has these too."""

_IN_CACHE = 2**16  # differences at a time

_SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "layer": int,
    "sample_features": int,
    "threshold": (int, float),
    "statement": (dict, type(None)),
}


class RelevanceHead(nn.Module):
    """A logistic regression on standardised features ``s = (x - mean) / scale``: ``s w + b``.

    With landmarks ``z`` it is one on how near they are, ``k(s) w + b`` with
    ``k_j = exp(-mean((s - z_j)^2))``, the mean over features.

    The features ``x`` are the base's hidden state and, where ``pooled``, the mean of the sample's
    frames behind it. All that it holds are buffers in float32: it is fitted apart, and no optimizer
    moves it.

    Args:
        mean: of each feature, (features,).
        scale: standard deviation of each feature, above 0, (features,).
        weight: of each standardised feature, (features,), or of each landmark, (landmarks,).
        bias: of the score.
        landmarks: standardised features that others are compared with, (landmarks, features); None
            for a linear head.
        layer: of the base, whose output is read, from 0.
        sample_features: how many of the features, the last ones, are the pooled sample's.
        threshold: score above which the gate opens; 0 is a probability of one half.
        statement: what a calibration showed; None before one. Whatever JSON can hold.

    Raises:
        SafeError: sizes differ, a number is not finite, or a scale is not above 0.

    Example:
        >>> head = RelevanceHead([0.0, 1.0], [1.0, 2.0], [3.0, 1.0], 0.5, layer=2)
        >>> head(torch.tensor([[1.0, 5.0]]))
        tensor([5.5000])
        >>> head.opens(torch.tensor([5.5, -1.0]))
        tensor([ True, False])
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        mean: Any,
        scale: Any,
        weight: Any,
        bias: Any,
        *,
        layer: int,
        landmarks: Any = None,
        sample_features: int = 0,
        threshold: float = 0.0,
        statement: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, values in zip(TENSORS, (mean, scale, weight, bias), strict=True):
            values = torch.as_tensor(values).detach().to(torch.float32, copy=True)
            self.register_buffer(name, values.reshape(() if name == "bias" else (-1,)))
        self.landmarks: Tensor | None = None
        if landmarks is not None:
            del self.landmarks
            found = torch.as_tensor(landmarks).detach().to(torch.float32, copy=True)
            self.register_buffer("landmarks", found)
        self.layer, self.sample_features = int(layer), int(sample_features)
        self.threshold = float(threshold)
        self.statement = None if statement is None else dict(statement)
        self._check()

    @property
    def pooled(self) -> bool:
        """Whether the sample's pooled features follow the hidden state's."""
        return self.sample_features > 0

    @property
    def features(self) -> int:
        """How many features it reads."""
        return len(self.mean)

    def forward(self, states: Tensor, samples: Tensor | None = None) -> Tensor:
        """The score of each row, (rows,), in float32.

        Args:
            states: the base's hidden states, (rows, hidden).
            samples: the rows' pooled samples, (rows, features); None where it reads none.

        Raises:
            SafeError: there are not as many features as it was fitted on.
        """
        parts = [states, samples] if self.pooled and samples is not None else [states]
        features = torch.cat([part.float() for part in parts], dim=1)  # (rows, features)
        if features.shape[1] != self.features:
            raise SafeError(
                f"a relevance head of {self.features} features was given {features.shape[1]}",
                hint="use the head with the base and the encoder that it was fitted on",
            )
        standard = (features - self.mean) / self.scale
        if self.landmarks is not None:
            standard = self._likeness(standard, self.landmarks)
        return standard @ self.weight + self.bias

    def _likeness(self, standard: Tensor, landmarks: Tensor) -> Tensor:
        """How near each row is to each landmark, from 0 to 1, (rows, landmarks).

        Differences are taken one by one: the usual expansion of the square cancels, and a row would
        depend on how a library orders its sums. On a processor they are taken a few landmarks at a
        time, so that they stay in a core's cache; no sum is another for it.
        """
        if not len(standard):
            return standard.new_zeros(0, len(landmarks))
        count = len(landmarks)
        if standard.device.type == "cpu":
            count = max(1, _IN_CACHE // standard.shape[1])
        apart = [
            torch.stack([(row - some).square_().mean(1) for row in standard])
            for some in torch.split(landmarks, count)
        ]
        return torch.exp(-torch.cat(apart, dim=1))

    def opens(self, score: Tensor) -> Tensor:
        """Whether the gate opens at these scores; one that is no number keeps it closed."""
        return score > self.threshold

    def settings(self) -> dict[str, Any]:
        """What an adapter's config holds of it, beside its tensors."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def blank(cls, features: int, settings: Mapping[str, Any], landmarks: int = 0) -> RelevanceHead:
        """A head of these ``settings``, into which an adapter's tensors are to be copied."""
        zeros, ones = torch.zeros(features), torch.ones(features)
        if not landmarks:
            return cls(zeros, ones, zeros, 0.0, **settings)
        seen = torch.zeros(landmarks, features)
        return cls(zeros, ones, torch.zeros(landmarks), 0.0, landmarks=seen, **settings)

    def _check(self) -> None:
        sizes = {len(getattr(self, name)) for name in ("mean", "scale")}
        if self.landmarks is None:
            sizes.add(len(self.weight))
        elif self.landmarks.shape != (len(self.weight), len(self.mean)):
            raise SafeError(
                f"a relevance head has landmarks of shape {tuple(self.landmarks.shape)}, weights "
                f"of {len(self.weight)} and {len(self.mean)} features",
                hint="give one weight for each landmark, and each as many features as `mean` has",
            )
        if len(sizes) > 1 or not 0 <= self.sample_features < max(sizes):
            raise SafeError(
                f"a relevance head has `mean`, `scale` and `weight` of {sorted(sizes)} features, "
                f"{self.sample_features} of them the sample's",
                hint="give one number for each feature, those of the hidden state first",
            )
        finite = all(bool(held.isfinite().all()) for held in self.buffers())
        if not finite or not bool((self.scale > 0).all()):
            raise SafeError(
                "a relevance head holds numbers that are not finite, or a scale of 0 or below",
                hint="leave constant features at a scale of 1",
            )


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
    samples = head.sample_features
    if head.features - samples != hidden or samples not in (0, modality.encoder.dim):
        raise SafeError(
            f"the relevance head of `{modality.name}` reads {head.features - samples} features of "
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
        raise TypeError(f"it does not say the relevance head of `{name}`")
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
    mean, seen = (tensors.get(f"{name}.relevance.{part}") for part in ("mean", "landmarks"))
    if mean is None:
        raise AdapterError(
            f"`{path}` has no tensors of the relevance head of `{name}` that its config tells of",
            hint="copy or save the adapter again",
        )
    try:
        count = 0 if seen is None else len(seen)
        return RelevanceHead.blank(mean.numel(), settings, count)
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


def relevance_states(model: SafeModel, batch: Mapping[str, Any], layer: int) -> Tensor:
    """The base's own hidden state at the last position of each row's prompt, as a head reads it.

    Where a prompt ends is as for ``attend = "answer"``: at its last real word, or before the
    first label.

    Args:
        model: whose base reads the texts; its modalities are absent.
        batch: what the model's processor made, with samples or without.
        layer: of the base, whose output is read, from 0.

    Returns:
        (rows, hidden), in float32.
    """
    return model.prompt_states(batch, (layer,))[layer]
