"""How large a recipe's parts are, reckoned without weights: what ``safe check --sizes`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from safe_framework.config.plugins import parts_of
from safe_framework.config.schema import BaseSpec, Recipe
from safe_framework.core.base_model import base_facts
from safe_framework.core.layer_discovery import LayerStack, find_layers, text_config
from safe_framework.core.modality import check_layers
from safe_framework.core.segments import SegmentVectors, TimeVectors
from safe_framework.errors import CheckpointError
from safe_framework.interfaces.windows import Windows
from safe_framework.pretrained.meta_models import base_meta_model, card_of, meta_models

_VECTORS = 2  # a start and an end marker


@attrs.frozen
class PartSize:
    """One part of a model.

    Attributes:
        name: such as ``"projector"``.
        made_of: the plugin or checkpoint.
        parameters: how many there are.
        trainable: how many of them training changes.
        note: what else decides whether it fits, such as its width.
    """

    name: str
    made_of: str
    parameters: int
    trainable: int
    note: str


@attrs.frozen
class ModelSizes:
    """The parts of a recipe's model.

    Attributes:
        base: the frozen model.
        modalities: encoder, projector, fusion adapter, segment vectors and markers of each, by its
            name.
    """

    base: PartSize
    modalities: Mapping[str, tuple[PartSize, ...]]

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self.base.parameters + sum(part.parameters for part in self._parts())

    @property
    def trainable(self) -> int:
        """Parameters that training changes."""
        return sum(part.trainable for part in self._parts())

    def _parts(self) -> list[PartSize]:
        return [part for parts in self.modalities.values() for part in parts]


def sizes_of(recipe: Recipe) -> ModelSizes:
    """Build a recipe's parts on the meta device and count them.

    Args:
        recipe: whose parts; its checkpoints are cards with a ``[config]``, or folders.

    Raises:
        CheckpointError: sizes are not known without weights, or a card contradicts itself.
        SafeError: a fused layer does not exist, or an option does not fit.
    """
    with meta_models():
        base, made_of = _base(recipe.base)
        stack = _stack(base, recipe)
        facts = base_facts(base, stack, meta=True)
        _check_base(recipe.base.model, base, stack)
        parts = {}
        for name, spec in recipe.modalities.items():
            parts[name] = _modality(recipe, name, spec, facts, stack)
    note = f"{stack.count} layers, {stack.hidden_size} wide"
    return ModelSizes(PartSize("base", made_of, _count(base), 0, note), parts)


def _base(spec: BaseSpec) -> tuple[nn.Module, str]:
    """The base, and what it is made of."""
    if spec.compose is None:
        base, made_of = base_meta_model(spec.model), spec.model
    else:
        from safe_framework.experimental.vision_language.compose import compose_meta_model

        parts = spec.compose
        base = compose_meta_model(parts.vision, parts.language, layer=parts.layer)
        made_of = f"{parts.vision} + {parts.language}"
    return base, f"{made_of} ({type(base).__name__})"


def _stack(base: nn.Module, recipe: Recipe) -> LayerStack:
    """The layers that would be fused, as the config and the modules say; nothing is run."""
    path = find_layers(base, recipe.base.layers_path, recipe.base.side)[0]
    layers: Any = base.get_submodule(path)
    return LayerStack(path, len(layers), text_config(base).hidden_size)


def _modality(
    recipe: Recipe, name: str, spec: Any, facts: Any, stack: LayerStack
) -> tuple[PartSize, ...]:
    encoder, projector, fusion = parts_of(recipe, name, spec, facts, device="meta")
    check_layers(name, fusion.layers, stack.count)
    checkpoint = spec.encoder.options.get("model", "")
    _check_encoder(checkpoint, encoder)
    rate = f", {encoder.sampling_rate:,} Hz" if encoder.sampling_rate else ""
    layers = ", ".join(map(str, fusion.layers))
    tokens = f"{projector.tokens} tokens" if projector.tokens else ""
    parts = [
        _part("encoder", f"{spec.encoder.use} {checkpoint}", encoder, f"{encoder.dim} wide{rate}"),
        _part("projector", spec.projector.use, projector, tokens),
        _part("fusion", spec.fusion.use, fusion, f"layer {layers} of {stack.count}"),
    ]
    with torch.device("meta"):
        segments, times = SegmentVectors(stack.hidden_size), TimeVectors(stack.hidden_size)
    parts.append(_part("segments", "", segments, "tell several samples apart"))
    if windows := encoder.windows:
        parts.append(_part("times", "", times, _windows(windows, projector.tokens)))
    if spec.markers or spec.inline:
        count = _VECTORS * stack.hidden_size
        parts.append(PartSize("markers", "", count, count, f"{_VECTORS} vectors"))
    return tuple(parts)


def _windows(windows: Windows, tokens: int | None) -> str:
    """How many windows the longest sample has, and tokens."""
    said = windows.window.said
    found = f"{said(windows.longest)} are {windows.most} windows of {said(windows.window.steps)}"
    return f"{found}, {windows.most * tokens} tokens" if tokens else found


def _part(name: str, made_of: str, module: nn.Module, note: str) -> PartSize:
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return PartSize(name, made_of.strip(), _count(module), trainable, note)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_base(name: str, base: nn.Module, stack: LayerStack) -> None:
    found = {
        "parameters": _count(base),
        "hidden_size": stack.hidden_size,
        "layers": stack.count,
    }
    card = card_of(name)
    for fact, value in found.items():
        if card is not None and card.facts.get(fact, value) != value:
            raise _contradiction(card.name, fact, card.facts[fact], value)


def _check_encoder(name: Any, encoder: Any) -> None:
    card = card_of(name) if isinstance(name, str) and name else None
    if card is None:
        return
    rate = card.facts.get("sampling_rate")
    if rate is not None and encoder.sampling_rate not in (None, rate):
        raise _contradiction(card.name, "sampling_rate", rate, encoder.sampling_rate)


def _contradiction(card: str, fact: str, stated: int, found: int) -> CheckpointError:
    return CheckpointError(
        f"the card `{card}` says `{fact} = {stated}`, its config makes {found}",
        hint="correct the card",
    )
