"""Give a model's base a change, fresh or from an adapter's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from safe_framework.core.base_change import WAIVED, BaseChange, acting
from safe_framework.core.layer_discovery import text_config
from safe_framework.errors import AdapterError, SafeError
from safe_framework.experimental.base_finetuning.layers import LayersChange, read_layers
from safe_framework.experimental.base_finetuning.lora import LoraChange, read_lora
from safe_framework.interfaces.fusion import chosen_layers
from safe_framework.utils.hashing import tensors_fingerprint

if TYPE_CHECKING:
    from safe_framework.config.schema import StageBSpec
    from safe_framework.core.model import SafeModel


# Which layers and which of their projections a change of the base may touch.


def layers_of(model: SafeModel, wanted: Sequence[int | float]) -> tuple[int, ...]:
    """The numbers of the layers that ``[stage_b] layers`` names; all, where it names none.

    Raises:
        SafeError: the base has no such layer.
    """
    count = model.stack.count
    try:
        return chosen_layers(wanted, count) if wanted else tuple(range(count))
    except ValueError as error:
        raise SafeError(f"[stage_b]: {error}") from error


def projections_of(
    model: SafeModel, layers: Sequence[int], targets: Sequence[str]
) -> tuple[str, ...]:
    """Paths of the linear modules of some layers that are to get a low-rank pair.

    Args:
        model: whose base.
        layers: numbers of its layers.
        targets: the last words of paths, as PEFT takes them; PEFT's choice for the type of base
            where there are none.

    Raises:
        SafeError: there is none such.
    """
    found = {
        f"{model.stack.path}.{layer}.{name}"
        for layer in layers
        for name, module in model.stack.of(model.base)[layer].named_modules()
        if is_linear(module)
    }
    wanted = tuple(targets) or _usual(model.base)
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


def _usual(base: nn.Module) -> tuple[str, ...]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    return tuple(USUAL.get(text_config(base).model_type, ()))


def change_base(model: SafeModel, spec: StageBSpec, *, seed: int = 0) -> BaseChange:
    """Let a base change as ``[stage_b]`` says; until it is trained, it computes what it did.

    From here on L1 and L2 are given up: a call without a sample runs the changed base. With
    ``method = "lora"``, ``model.off()`` and ``model.base`` itself are the original.

    Args:
        model: with all its modalities; its base was not changed before.
        spec: the method and what it touches.
        seed: of the low-rank pairs.

    Raises:
        SafeError: the base was changed before, or cannot be changed so.
    """
    if model.base_change is not None:
        raise SafeError(
            "the base of this model was changed already", hint="load an adapter of stage A"
        )
    layers = layers_of(model, spec.layers)
    if spec.method == "layers":
        return _attach(model, LayersChange(model.base, model.stack.path, layers))
    from peft import LoraConfig

    places = projections_of(model, layers, spec.targets)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is fine
        lora_dropout=spec.dropout,
        target_modules=list(places),
        fan_in_fan_out=not isinstance(model.base.get_submodule(places[0]), torch.nn.Linear),
        base_model_name_or_path=model.recipe.base.model if model.recipe else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        change = LoraChange(model.base, config, model._owner)
    return _attach(model, change)


def _attach(model: SafeModel, change: BaseChange) -> BaseChange:
    try:
        _check_arrival(model, change)
    except BaseException:
        change.remove(model.base)
        raise
    model.base_change = change.train(model.training)
    model.seal.changed = frozenset() if change.reversible else frozenset(change.tensors(model.base))
    return change


@torch.no_grad()
def _check_arrival(model: SafeModel, change: BaseChange) -> None:
    """See that one tiny call of the base runs through every module that has a pair.

    Raises:
        SafeError: it passes one by, as experts that are not chosen are.
    """
    call = change.call()
    if call is None:
        return
    with acting(call):
        model.base(**model._example_inputs())
    if missed := [place for place in change.facts()["modules"] if place not in call.fired]:
        raise SafeError(
            f"`{missed[0]}` of the base was not called in a tiny call, so its change might not "
            "be heard",
            hint="choose other `targets` or `layers` in [stage_b]",
        )


def change_facts(model: SafeModel) -> dict[str, Any] | None:
    """What an adapter's config says of the change; None where the base was not changed."""
    change = model.base_change
    if change is None:
        return None
    tensors = change.tensors(model.base)
    return {
        **change.facts(),
        "described": change.describe(),
        "laws_given_up": list(WAIVED),
        "off_is_the_original_base": change.reversible,
        "parameters": sum(p.numel() for p in tensors.values()),
        "weights": tensors_fingerprint(tensors),
        "drift": dict(change.drift),
    }


def restore_change(model: SafeModel, facts: Mapping[str, Any] | None, folder: Path) -> None:
    """Change a base as an adapter in ``folder`` says, if it says so.

    Raises:
        AdapterError: the folder's tensors are not those that its config tells of.
    """
    if facts is None:
        return
    try:
        if facts["method"] == LoraChange.method:
            change: BaseChange = read_lora(model.base, folder, model._owner)
        else:
            change = read_layers(model.base, model.stack.path, facts["layers"], folder)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"the changed base of `{folder}` cannot be read: {error}", hint="copy the adapter again"
        ) from error
    change.drift = dict(facts["drift"])
    if tensors_fingerprint(change.tensors(model.base)) != facts["weights"]:
        change.remove(model.base)
        raise AdapterError(
            f"the changed base of `{folder}` holds other weights than it was saved with",
            hint="copy or save the adapter again",
        )
    _attach(model, change)
