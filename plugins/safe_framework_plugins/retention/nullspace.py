"""Training in the null space of what retention texts put into each linear layer.

Adam-NSCL (Wang et al. 2021, arXiv:2103.07113): if a linear layer's weights change only along
input directions that retention texts never use, its outputs on them stay what they were, and so
do the inputs of the next one. With the mean ``C`` of ``x x^T`` over the inputs ``x`` (uncentred; a
trainable bias makes ``x`` end in a 1), the free directions ``N`` are the eigenvectors of ``C``
whose root mean square is at most ``threshold`` of the whole input's. After each optimizer step
``W = W_start + (W - W_start) N N^T``: the *step* is projected, with Adam's scaling and weight decay
in it, and not the gradient, which Adam would rotate out of the null space again. Projecting the
sum of all steps is the same as projecting each, without their rounding adding up.

Constrained is every trainable ``nn.Linear`` that retention texts run through: layers of a
projector, and both factors of low-rank pairs. A pair that is still silent (PEFT's ``lora_B`` at
zero) starts with the rows of ``lora_A`` in the null space, which changes no output; otherwise the
few inputs of ``lora_B`` would leave it nothing to learn (as Liang and Li 2024, arXiv:2404.00228).
What is trainable and no such layer (norms, scores, marker vectors, convolutions) is held at its
start (``others = "hold"``), since it would move the inputs of what is constrained.

The null space is only as large as retention leaves it. Texts fill every direction at the query
of a cross-attention, so it does not move; beside many noises they fill its context too, and then
nothing can be learned; beside ``"shuffled"`` samples, which are the task's own, a projector, which
sees the sample alone, can learn nothing either. Hence the default of silence alone, or a wider
``threshold``. Retention beside other samples is not protected: add ``distillation`` for it. In a
recipe, name ``nullspace`` before ``fisher``, which takes the start as it finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor, nn

from safe_framework import RetentionRegularizer

if TYPE_CHECKING:
    from safe_framework import RetentionStore, SafeModel

_LABEL = "null space"


@attrs.define(eq=False)
class _Seen:
    """The inputs of one layer: the sum of ``x x^T``, how many, and their energy at first."""

    total: Tensor
    count: int = 0
    energy: float = 0.0


class NullSpaceRegularizer(RetentionRegularizer):
    """Change linear layers only where retention texts do not look.

    Args:
        threshold: the share of an input's root mean square up to which a direction counts as
            unused; about the relative change of an output that is allowed.
        counterfactual: kinds of irrelevant sample that retention texts carry in turn.
        others: what happens to trainable parameters that are no linear layer's: ``"hold"`` or
            ``"free"``.
    """

    every_step = False
    lets_the_base_change = False  # what is no linear layer of a sense is held

    def __init__(
        self,
        *,
        threshold: float = 1e-5,
        counterfactual: Sequence[Literal["silent", "noise", "shuffled", "foreign"]] = ("silent",),
        others: Literal["hold", "free"] = "hold",
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be from 0 up to 1, not {threshold}")
        if not counterfactual:
            raise ValueError("`counterfactual` must name at least one kind of sample")
        self.threshold, self.others = threshold, others
        self.counterfactual = tuple(counterfactual)
        self._free: list[tuple[list[nn.Parameter], list[Tensor], Tensor]] = []
        self._still: list[tuple[nn.Parameter, Tensor]] = []

    def begin(
        self, model: SafeModel, examples: Sequence[Mapping[str, Tensor]], store: RetentionStore
    ) -> None:
        """Find the free directions of every layer, or read them; project silent pairs."""
        layers = _trainable_linears(model)
        kept = store.once(lambda: self._measure(model, layers, examples, store))
        start = {
            name: kept[f"start.{name}"].to(p.device)
            for name, p in model.trainable_parameters().items()
        }
        moving: set[str] = set()
        for name, layer in layers.items():
            if f"free.{name}" not in kept:  # no retention text ran through it
                continue
            names = [f"{name}.{part}" for part in _parts(layer)]
            owned = [getattr(layer, part) for part in _parts(layer)]
            free = kept[f"free.{name}"].to(owned[0].device, owned[0].dtype)
            self._free.append((owned, [start[one] for one in names], free))
            moving.update(names)
        rest = {n: p for n, p in model.trainable_parameters().items() if n not in moving}
        self._still = [(p, start[n]) for n, p in rest.items() if self.others == "hold"]
        with torch.no_grad():
            for name, p in model.trainable_parameters().items():
                p.copy_(start[name])

    @torch.no_grad()
    def constrain(self, optimizer: torch.optim.Optimizer) -> None:
        """Take back what the step changed along directions that retention uses."""
        for owned, start, free in self._free:
            change = _joined([p - origin for p, origin in zip(owned, start, strict=True)])
            allowed = change @ free @ free.mT  # (outputs, inputs)
            for p, origin, part in zip(owned, start, _split(allowed, owned), strict=True):
                p.copy_(origin + part)
        for p, origin in self._still:
            p.copy_(origin)

    @torch.no_grad()
    def _measure(
        self,
        model: SafeModel,
        layers: Mapping[str, nn.Linear],
        examples: Sequence[Mapping[str, Tensor]],
        store: RetentionStore,
    ) -> dict[str, Tensor]:
        seen = {name: _Seen(_square(layer)) for name, layer in layers.items()}
        hooks = [layer.register_forward_pre_hook(_adding(seen[n])) for n, layer in layers.items()]
        try:
            for number, example in enumerate(examples, start=1):
                model(**example)
                store.progress(_LABEL, number, len(examples))
        finally:
            for hook in hooks:
                hook.remove()
        start = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
        used = {name: one for name, one in seen.items() if one.count}
        kept: dict[str, Tensor] = {}
        for name, one in used.items():  # a pair's A comes before its B
            one.energy = one.energy or one.total.trace().item()
            free = _free_directions(one, self.threshold)
            kept[f"free.{name}"] = free.float()
            partner = name.replace(".lora_A.", ".lora_B.")
            if partner != name and partner in used and not layers[partner].weight.any():
                weight = start[f"{name}.weight"].cpu().double()
                used[partner].energy = (weight @ one.total @ weight.mT).trace().item()
                weight = weight @ free @ free.mT
                used[partner].total = weight @ one.total @ weight.mT
                start[f"{name}.weight"] = weight.to(layers[name].weight)
        return kept | {f"start.{name}": tensor for name, tensor in start.items()}


def _trainable_linears(model: SafeModel) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in model.modalities.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }


def _parts(layer: nn.Linear) -> list[str]:
    trained = layer.bias is not None and layer.bias.requires_grad
    return ["weight", "bias"] if trained else ["weight"]


def _square(layer: nn.Linear) -> Tensor:
    size = layer.in_features + len(_parts(layer)) - 1
    return torch.zeros(size, size, dtype=torch.float64)


def _adding(seen: _Seen) -> Any:
    def add(layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
        """Add a call's inputs to the layer's covariance."""
        inputs = given[0].detach().cpu().double().flatten(0, -2)  # (positions, inputs)
        if len(inputs.mT) < len(seen.total):  # a trained bias is the weight of a constant 1
            inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        seen.total += inputs.mT @ inputs
        seen.count += len(inputs)

    return add


def _free_directions(seen: _Seen, threshold: float) -> Tensor:
    """Orthonormal columns, (inputs, free)."""
    energies, directions = torch.linalg.eigh(seen.total)
    free: Tensor = directions[:, energies <= threshold**2 * seen.energy]
    return free


def _joined(parts: list[Tensor]) -> Tensor:
    """Weight and bias as one matrix, (outputs, inputs)."""
    return torch.cat([part if part.ndim == 2 else part.unsqueeze(1) for part in parts], dim=1)


def _split(joined: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    """The inverse of ``_joined``."""
    if len(like) == 1:
        return [joined]
    return [joined[:, :-1], joined[:, -1]]
