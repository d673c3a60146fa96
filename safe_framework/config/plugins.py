"""From the tables of a recipe to the plugins that they name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from safe_framework.config.diagnostics import RecipeError, locate_error
from safe_framework.config.schema import EncoderSpec, ModalitySpec, PluginSpec, Recipe
from safe_framework.interfaces import registry
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.tensors import float32_by_default, is_out_of_memory

if TYPE_CHECKING:
    from safe_framework.interfaces.encoder import Encoder
    from safe_framework.interfaces.fusion import FusionAdapter
    from safe_framework.interfaces.projector import Projector
    from safe_framework.interfaces.retention import RetentionRegularizer
    from safe_framework.interfaces.types import BaseFacts


def encoders_of(recipe: Recipe) -> dict[str, Encoder]:
    """The encoder of each modality, without the base."""
    return {name: _encoder(recipe, name, spec) for name, spec in recipe.modalities.items()}


def _encoder(recipe: Recipe, name: str, spec: ModalitySpec) -> Encoder:
    """A modality's encoder, which takes longer samples if the recipe says so."""
    path = ("modalities", name)
    own = spec.encoder
    made: Encoder = _make(recipe, (*path, "encoder"), "encoders", own.use, own.options)
    if spec.windows is not None:
        try:
            made.cut_into_windows(hop=spec.windows.hop, longest=spec.windows.longest)
        except ValueError as error:
            raise locate_error(recipe, (*path, "windows"), error, owner="`windows`") from error
    return made


def regularizers(
    recipe: Recipe, *, stage_b: bool = False
) -> list[tuple[float, RetentionRegularizer]]:
    """The recipe's retention methods with their weights, of stage A or of stage B."""
    own = recipe.stage_b.retention if stage_b and recipe.stage_b else ()
    table = ("stage_b", "retention") if own else ("retention",)
    return [
        (
            spec.weight,
            _make(recipe, (*table, index), "retention_regularizers", spec.use, spec.options),
        )
        for index, spec in enumerate(own or recipe.retention)
    ]


def parts_of(
    recipe: Recipe, name: str, spec: ModalitySpec, facts: BaseFacts, *, device: str | None = None
) -> tuple[Encoder, Projector, FusionAdapter]:
    """The three plugins of one modality, fresh.

    Args:
        recipe: which to show where an option is wrong.
        name: of the modality.
        spec: what it is made of.
        facts: of the base.
        device: where the projector and the adapter are made; by default as they are.
    """

    def part(kind: str, table: str, plugin: PluginSpec, *wired: Any) -> Any:
        """One plugin, made from its table."""
        path = ("modalities", name, table)
        return _make(recipe, path, kind, plugin.use, plugin.options, *wired)

    with float32_by_default():
        encoder = _encoder(recipe, name, spec)
        if not any(p.requires_grad for p in encoder.parameters()):
            encoder.eval()
        with torch.device(device) if device is not None else nullcontext():
            sizes = encoder.dim, facts.hidden_size
            projector = part("projectors", "projector", spec.projector, *sizes)
            fusion = part("fusion_adapters", "fusion", spec.fusion, facts)
    return encoder, projector, fusion


def _make(
    recipe: Recipe, path: tuple[str | int, ...], kind: str, use: str, options: Any, *wired: Any
) -> Any:
    """Call a plugin's constructor; a complaint about an option is shown where it is written."""
    set_aside_broken_torchaudio()  # most plugins import transformers or peft
    plugin = getattr(registry, kind).load(use)
    made = {name: _made(recipe, (*path, name), value) for name, value in options.items()}
    try:
        return plugin(*wired, **made)
    except (ValueError, TypeError) as error:
        raise locate_error(recipe, path, error, owner=f"`{use}`") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RecipeError.at(
            recipe, path, f"`{use}` needs more memory than there is", "make its sizes smaller"
        ) from error


def _made(recipe: Recipe, path: tuple[str | int, ...], value: Any) -> Any:
    """An option's value with every encoder that it names built."""
    if isinstance(value, EncoderSpec):
        return _make(recipe, path, "encoders", value.use, value.options)
    if isinstance(value, tuple):
        return tuple(_made(recipe, (*path, place), item) for place, item in enumerate(value))
    if isinstance(value, Mapping):
        return {key: _made(recipe, (*path, key), item) for key, item in value.items()}
    return value
