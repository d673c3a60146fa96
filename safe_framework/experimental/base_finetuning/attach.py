"""Give a model's base a change: the layers and projections that ``[stage_b]`` selects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from safe_framework.core.base_change import BaseChange
from safe_framework.core.layer_discovery import text_config
from safe_framework.errors import SafeError
from safe_framework.experimental.base_finetuning.layers import LayersChange
from safe_framework.experimental.base_finetuning.lora import LoraChange
from safe_framework.interfaces.fusion import chosen_layers

if TYPE_CHECKING:
    from safe_framework.config.schema import StageBSpec
    from safe_framework.core.model import SafeModel


def select_layers(model: SafeModel, wanted: Sequence[int | float]) -> tuple[int, ...]:
    """The numbers of the layers that ``[stage_b] layers`` names; all, where it names none.

    Raises:
        SafeError: the base has no such layer.
    """
    count = model.stack.count
    try:
        return chosen_layers(wanted, count) if wanted else tuple(range(count))
    except ValueError as error:
        raise SafeError(f"[stage_b]: {error}") from error


def select_projections(
    model: SafeModel, layers: Sequence[int], targets: Sequence[str]
) -> tuple[str, ...]:
    """Paths of the linear modules of some layers that are to get a low-rank adapter.

    Args:
        model: whose base.
        layers: numbers of its layers.
        targets: ends of paths, as PEFT takes them; PEFT's choice for the type of base where
            there are none.

    Raises:
        SafeError: there is none such.
    """
    found = {
        f"{model.stack.path}.{layer}.{name}"
        for layer in layers
        for name, module in model.stack.of(model.base)[layer].named_modules()
        if is_linear(module)
    }
    wanted = tuple(targets) or _default_targets(model.base)
    chosen = sorted(p for p in found if any(p.endswith(f".{target}") for target in wanted))
    if missing := [t for t in wanted if not any(p.endswith(f".{t}") for p in chosen)]:
        there = ", ".join(sorted({path.rpartition(".")[2] for path in found})) or "none"
        if not chosen or targets:
            raise SafeError(
                f"`targets` of [stage_b] names `{missing[0]}`, which is no linear part of the "
                f"layers {list(layers)}",
                hint=f"linear parts: {there}",
            )
    if not chosen:
        raise SafeError(
            f"nobody says which parts of a `{text_config(model.base).model_type}` take LoRA",
            hint="name them by `targets` in [stage_b]",
        )
    return tuple(chosen)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, of torch's or transformers' kind."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _default_targets(base: nn.Module) -> tuple[str, ...]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    return tuple(USUAL.get(text_config(base).model_type, ()))


def change_base(model: SafeModel, spec: StageBSpec, *, seed: int = 0) -> BaseChange:
    """Let a base change as ``[stage_b]`` says; until it is trained, it computes what it did before.

    From here on L1 and L2 are given up: a call without a sample runs the changed base. With
    ``method = "lora"``, ``model.off()`` and ``model.base`` itself are the original.

    Args:
        model: with all its modalities; its base was not changed before.
        spec: the method and what it touches.
        seed: of the low-rank matrices.

    Raises:
        SafeError: the base was changed before, or cannot be changed so.
    """
    if model.base_change is not None:
        raise SafeError(
            "the base of this model was changed already", hint="load an adapter of stage A"
        )
    layers = select_layers(model, spec.layers)
    if spec.method == "layers":
        return model.set_base_change(LayersChange(model.base, model.stack.path, layers))
    from peft import LoraConfig

    paths = select_projections(model, layers, spec.targets)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is fine
        lora_dropout=spec.dropout,
        target_modules=list(paths),
        fan_in_fan_out=not isinstance(model.base.get_submodule(paths[0]), torch.nn.Linear),
        base_model_name_or_path=model.built_from.base.model if model.built_from else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        change = LoraChange(model.base, config, model.owner)
    return model.set_base_change(change)
