"""Elastic weight consolidation of the adapter: what matters to retention may not move.

``sum_i F_i (theta_i - theta*_i)^2``, Kirkpatrick et al. 2017 (arXiv:1612.00796), where ``F`` is
the diagonal of the Fisher information of the *trainable* parameters: the base's own are frozen,
so a penalty on them would be 0. ``F_i`` is the mean over positions of the squared gradient of
``log p(word)``, taken for each text alone and with words drawn from the model's own answer; the
square of a batch's gradient, or the gradient at given words, is another quantity (Kunstner et al.
2019, arXiv:1905.12558). Half of the penalty is then, to second order and but for what the diagonal
leaves out, the divergence from the model at the anchor.

The anchor ``theta*`` is the adapter as it is before the first step: where its retention was last
verified. In a fresh run that is the silent start, where the model is the base. There every
parameter in front of a zero-initialised output has no influence yet, so its ``F`` is 0 and it
moves freely: only the last projections are held. So this is a cheap companion of distillation
in a fresh run (a step costs no forward pass more), and most useful when a trained and verified
adapter is trained further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from safe_framework import RetentionRegularizer

if TYPE_CHECKING:
    from safe_framework import RetentionStore, SafeModel

_LABEL = "Fisher information"


class FisherRegularizer(RetentionRegularizer):
    """Pull parameters back to the start, by how much retention texts depend on each.

    Args:
        examples: retention texts that it is estimated on; all of them if there are fewer.
        counterfactual: kinds of irrelevant sample that they carry in turn.
        seed: of the words that are drawn.
    """

    every_step = False

    def __init__(
        self,
        *,
        examples: int = 128,
        counterfactual: Sequence[Literal["silent", "noise", "shuffled", "foreign"]] = (
            "silent",
            "noise",
            "shuffled",
        ),
        seed: int = 0,
    ) -> None:
        if examples < 1:
            raise ValueError(f"`examples` must be at least 1, not {examples}")
        if not counterfactual:
            raise ValueError("`counterfactual` must name at least one kind of sample")
        self.examples, self.seed = examples, seed
        self.counterfactual = tuple(counterfactual)
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def begin(
        self, model: SafeModel, examples: Sequence[Mapping[str, Tensor]], store: RetentionStore
    ) -> None:
        """Estimate the information and take the anchor, or read both."""
        chosen = range(min(self.examples, len(examples)))
        parameters = model.trainable_parameters()

        def compute() -> dict[str, Tensor]:
            """The mean squared gradient of each parameter, over the chosen texts."""
            information = [torch.zeros_like(p, dtype=torch.float32) for p in parameters.values()]
            positions, draw = 0, torch.Generator().manual_seed(self.seed)
            for number in chosen:
                gradients, length = _gradients(model, examples[number], parameters, draw)
                for total, gradient in zip(information, gradients, strict=True):
                    total.addcmul_(gradient, gradient)
                positions += length
                store.progress(_LABEL, number + 1, len(chosen))
            found = {
                f"fisher.{name}": total / positions
                for name, total in zip(parameters, information, strict=True)
            }
            return found | {f"anchor.{name}": p.detach() for name, p in parameters.items()}

        kept = store.once(compute)
        self._held = [
            (p, kept[f"fisher.{name}"].to(p.device), kept[f"anchor.{name}"].to(p.device))
            for name, p in parameters.items()
        ]

    def parameter_penalty(self) -> Tensor:
        """The weighted squared distance from the anchor."""
        parts = [(held * (p - anchor).float().square()).sum() for p, held, anchor in self._held]
        return torch.stack(parts).sum() if parts else torch.zeros(())


def _gradients(
    model: SafeModel,
    example: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    draw: torch.Generator,
) -> tuple[list[Tensor], int]:
    """One text's gradients of the log-likelihood of words that the model itself would say.

    Given the text, words at different positions are drawn independently, so that the square of
    their summed gradient is in expectation the sum of their squares.
    """
    with torch.enable_grad():
        logits: Tensor = model(**example).logits[0].float()  # (length, vocabulary)
        chances = logits.detach().cpu().softmax(-1)
        words = torch.multinomial(chances, 1, generator=draw).squeeze(1).to(logits.device)
        surprise = nn.functional.cross_entropy(logits, words, reduction="sum")
        found = torch.autograd.grad(surprise, list(parameters.values()), materialize_grads=True)
    return [gradient.float() for gradient in found], len(logits)
