"""The arms of the comparison, and the recipe that each trains from.

Rates of peers are those that their authors published, where they did: LLaVA-1.5 (Liu et al. 2023,
arXiv:2310.03744) trains its projector at 1e-3, LoRA at 2e-4 and the whole language model at 2e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from safe_framework.config.read import read_recipe
from safe_framework.config.schema import PluginSpec, Recipe

PROJECTOR_RATE, LORA_RATE, FULL_RATE = 1e-3, 2e-4, 2e-5
RANK = 16
FULL_RANK_RATE = 1e-3  # of fusion adapters whose matrices are whole


@attrs.frozen
class Arm:
    """One way to give the base a modality.

    Attributes:
        title: in tables.
        fusion: of SAFE, where it is not the recipe's; options beside the recipe's ``layers``.
        layers: of SAFE, where they are not the recipe's.
        fusion_rate: of SAFE, where it is not the recipe's.
        resampler: whether a peer's projector is learned queries and not an MLP.
        base: what a peer does with the base; None is SAFE, which trains by its own trainer.
        retention: what a peer does to keep the base's answers.
    """

    title: str
    fusion: Mapping[str, Any] | None = None
    layers: tuple[int, ...] | None = None
    fusion_rate: float | None = None
    resampler: bool = False
    base: Literal["frozen", "lora", "full"] | None = None
    retention: Literal["ewc", "lwf", "counterfactual"] | None = None

    @property
    def base_rate(self) -> float:
        """The rate of what a peer trains in the base."""
        return FULL_RATE if self.base == "full" else LORA_RATE


ARMS: Mapping[str, Arm] = {
    "safe": Arm("SAFE"),
    "safe_multilayer": Arm(
        "SAFE, multilayer", fusion={"use": "multilayer"}, fusion_rate=FULL_RANK_RATE
    ),
    "safe_tanh_gated": Arm(
        "SAFE, tanh gated", fusion={"use": "tanh_gated"}, fusion_rate=FULL_RANK_RATE
    ),
    "safe_input": Arm("SAFE, LoRA at layer 0", layers=(0,)),
    "prefix": Arm("prefix (LLaVA)", base="frozen"),
    "resampler": Arm("resampler prefix (Q-Former)", base="frozen", resampler=True),
    "lora": Arm("prefix, LoRA", base="lora"),
    "lora_ewc": Arm("prefix, LoRA, EWC", base="lora", retention="ewc"),
    "lora_lwf": Arm("prefix, LoRA, LwF", base="lora", retention="lwf"),
    "full": Arm("prefix, full fine-tuning", base="full"),
    "prefix_distilled": Arm(
        "prefix, counterfactual distillation", base="frozen", retention="counterfactual"
    ),
    "lora_distilled": Arm(
        "prefix, LoRA, counterfactual distillation", base="lora", retention="counterfactual"
    ),
}
USUAL = tuple(name for name, arm in ARMS.items() if arm.retention != "counterfactual")
"""The last ones lend SAFE's own retention to peers: they separate fusion from retention."""


def recipe_of(task: str, arm: Arm, seed: int, steps: int | None) -> Recipe:
    """The recipe called ``task`` (or at that path) as an arm trains from it."""
    recipe = read_recipe(task)
    name, modality = next(iter(recipe.modalities.items()))
    if arm.fusion is not None or arm.layers is not None:
        modality = attrs.evolve(modality, fusion=_fusion(modality.fusion, arm))
    if arm.resampler:
        modality = attrs.evolve(modality, projector=_resampler(modality.projector))
    steps = recipe.training.max_steps if steps is None else steps
    training = attrs.evolve(
        recipe.training,
        max_steps=steps,
        save_steps=steps,
        warmup_steps=min(recipe.training.warmup_steps, steps),
        seed=seed,
        fusion_learning_rate=arm.fusion_rate or recipe.training.fusion_learning_rate,
    )
    return attrs.evolve(recipe, modalities={name: modality}, training=training)


def _fusion(own: PluginSpec, arm: Arm) -> PluginSpec:
    layers = own.options["layers"] if arm.layers is None else arm.layers
    if arm.fusion is None:
        return attrs.evolve(own, options={**own.options, "layers": layers})
    return PluginSpec(arm.fusion["use"], {"layers": layers})


def _resampler(own: PluginSpec) -> PluginSpec:
    """As many tokens, and about as many parameters, as the recipe's MLP has."""
    options = {"tokens": own.options["tokens"], "dim": 192, "depth": 2, "heads": 4}
    return PluginSpec("resampler", options)
