"""What peers do to keep the base's answers: EWC, LwF, or SAFE's counterfactual distillation.

Each adds its gradient to that of the task, in a backward pass of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from peer_arms import Arm
from peer_models import PrefixModel
from torch import Tensor, nn

from safe_framework.config.plugins import regularizers
from safe_framework.config.schema import Recipe
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.data.recipe_data import RecipeData
from safe_framework.interfaces.retention import RetentionRegularizer
from safe_framework.interfaces.types import Frames
from safe_framework.training.batches import modality_columns
from safe_framework.training.retention.counterfactual import SampleStores, distractor_pools
from safe_framework.training.sampling import TextOrder, generator

FISHER_TEXTS = 48


class PeerRetention(ABC):
    """A second loss."""

    @abstractmethod
    def backward(self, step: int) -> float:
        """Add the gradient of a step's penalty, and return the penalty."""


class ElasticWeights(PeerRetention):
    """EWC (Kirkpatrick et al. 2017, arXiv:1612.00796) on what LoRA does to the base's weights.

    ``weight / 2 * sum(F * (s B A)^2) / words``: F is the diagonal Fisher information of the base's
    own weights on retention texts, and ``s B A`` is how far LoRA moves them, so this is what EWC
    asks of a base that is trained itself. Fisher information of A and B would not do: B starts at
    zero, and A's is zero with it.

    Args:
        model: with LoRA.
        fisher: as ``fisher_of`` finds it before LoRA is added.
        weight: of the penalty.
    """

    def __init__(self, model: PrefixModel, fisher: Mapping[str, Tensor], weight: float) -> None:
        self.weight, self.layers = weight, []
        for name, module in model.language.named_modules():
            if hasattr(module, "lora_A"):
                self.layers.append((fisher[name], module))
        if not self.layers:
            raise ValueError("`model` has no LoRA to hold")

    def backward(self, step: int) -> float:
        """One layer at a time, since a change is as large as the layer."""
        total = 0.0
        for fisher, module in self.layers:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            moved = module.scaling["default"] * up @ down
            penalty = 0.5 * self.weight * (fisher * moved.square()).sum()
            penalty.backward()
            total += penalty.item()
        return total


def fisher_of(base: Any, texts: Sequence[Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Diagonal Fisher information of each inner linear's weight, a word, in nats.

    From per-text gradients of the log-likelihood of words drawn from the base itself, so it is the
    Fisher information and not what the texts' own words make of it.
    """
    head = base.get_output_embeddings()
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    found = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    draw, words = torch.Generator().manual_seed(seed), 0
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    for text in texts[:FISHER_TEXTS]:
        ids = torch.tensor([text], device=head.weight.device)
        logits = base(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        drawn = torch.multinomial(logits.detach().exp().cpu(), 1, generator=draw).to(logits.device)
        gradients = torch.autograd.grad(logits.gather(1, drawn).sum(), weights)
        for name, gradient in zip(found, gradients, strict=True):
            found[name] += gradient.square()
        words += len(text)
    for weight in weights:
        weight.requires_grad_(False)
    return {name: total / words for name, total in found.items()}


Batch = tuple[Sequence[Sequence[int]], Sequence[Frames] | None]


class Distilled(PeerRetention):
    """Distil towards the base without LoRA, on retention texts.

    Text alone is LwF (Li and Hoiem 2016, arXiv:1606.09282), which knows of no new modality; with an
    irrelevant sample beside each text it is the method of SAFE's recipe.

    Args:
        model: whose change, if it has one, can be disabled.
        method: gives the penalty; its weight comes from the same recipe.
        weight: of the penalty.
        batch: the texts of a step, and a sample's frames beside each, or None.
        pad: id that fills rows up.
    """

    def __init__(
        self,
        model: PrefixModel,
        method: RetentionRegularizer,
        weight: float,
        batch: Callable[[int], Batch],
        pad: int,
    ) -> None:
        self.model, self.method, self.weight = model, method, weight
        self.batch, self.pad = batch, pad

    def backward(self, step: int) -> float:
        """The base is asked anew: its answers are not kept."""
        texts, frames = self.batch(step)
        mask = attention_mask(texts)
        plain = {"input_ids": pad_right(texts, self.pad), "attention_mask": mask}
        given = dict(plain)
        if frames is not None:
            dim = self.model.modality(self.model.name).encoder.dim
            given |= modality_columns(self.model.name, frames, dim)
        plain, given, mask = send_to_device((plain, given, mask), self.model.device)
        with torch.no_grad(), self.model.off():
            wanted = self.model(**plain, use_cache=False).logits
        logits = self.model(**given, use_cache=False).logits
        penalty = self.method.penalty(logits, wanted, mask.bool())
        assert penalty is not None
        (self.weight * penalty).backward()  # type: ignore[no-untyped-call]  # torch's own
        return self.weight * penalty.item()


def retention_of(
    arm: Arm,
    model: PrefixModel,
    recipe: Recipe,
    data: RecipeData,
    texts: Sequence[Sequence[int]],
    stores: SampleStores,
    fisher: Mapping[str, Tensor],
    ewc_weight: float,
) -> PeerRetention | None:
    """What an arm does to keep the base's answers; None for nothing."""
    if arm.retention is None:
        return None
    if arm.retention == "ewc":
        return ElasticWeights(model, fisher, ewc_weight)
    weight, method = regularizers(recipe)[0]
    spec = recipe.training
    pool: Mapping[str, Sequence[Any]] = {}
    if arm.retention == "counterfactual":
        pool = _pool(model, data, stores, method.counterfactual, spec.seed)
    lengths = [len(text) for text in texts]
    order = TextOrder(lengths, spec.retention_batch_size, spec.seed, spec.group_by_length)

    def batch(step: int) -> Batch:
        rows = [texts[i] for i in order.step(step)]
        if not pool:
            return rows, None
        draw, frames = generator(spec.seed, step, 1), []
        for row in range(len(rows)):  # the kinds in turn, as in SAFE's training
            index = (step * len(rows) + row) % len(method.counterfactual)
            made = pool[method.counterfactual[index]]
            frames.append(made[int(torch.randint(len(made), (), generator=draw))])
        return rows, frames

    return Distilled(model, method, weight, batch, model.tokenizer.eos_token_id)


def _pool(
    model: PrefixModel, data: RecipeData, stores: SampleStores, kinds: Sequence[str], seed: int
) -> Mapping[str, Sequence[Any]]:
    """Frames of irrelevant samples by kind."""
    name = model.name
    encoder = model.modality(name).encoder
    samples = [example.samples[name] for example in data.examples("train", {name: encoder})]
    foreign = {name: data.samples("foreign", name, encoder)} if "foreign" in kinds else {}
    return distractor_pools(sorted(set(kinds)), {name: samples}, stores, seed, foreign)[name]
