"""The recipe of a model, also of one that was put together in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import tomli

from safe_framework.config.describe import table_of
from safe_framework.config.schema import TranscriptSpec
from safe_framework.core.modality import Modality
from safe_framework.errors import AdapterError
from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.utils.in_memory import MEMORY, was_in_memory
from safe_framework.utils.toml_writer import toml_document

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

PLUGINS = ("encoder", "projector", "fusion")
"""The tables of a modality that name plugins."""


def recipe_text(model: SafeModel) -> str:
    """The text of the recipe that the model was built from, if it is still true; else a new one."""
    known = model.built_from
    if known is not None and set(known.modalities) == set(model.modalities):
        own = [model.modality(name).built_from for name in model.modalities]
        if all(recipe is known for recipe in own):
            return known.text
    return toml_document(recipe_tables(model))


def recipe_tables(model: SafeModel) -> dict[str, Any]:
    """``[base]`` and ``[modalities]`` of the model as it is, and what else its recipe held.

    Raises:
        AdapterError: an option of a plugin cannot be written.
    """
    held: dict[str, Any] = {} if model.built_from is None else tomli.loads(model.built_from.text)
    base = held.pop("base", None) or _base_table(model)
    own = {name: _modality_table(model.modality(name)) for name in model.modalities}
    return {"base": base, "modalities": own, **{k: v for k, v in held.items() if k != "modalities"}}


def base_name(model: SafeModel) -> str:
    """What the base's checkpoint is called; empty where it does not say so."""
    known = model.built_from
    name = known.base.model if known is not None else str(_base_table(model)["model"])
    return "" if was_in_memory(name) else name


def _base_table(model: SafeModel) -> dict[str, Any]:
    """What loads the base again, as far as it says so itself."""
    base: Any = model.base
    name = str(getattr(base, "name_or_path", "") or "")
    table: dict[str, Any] = {"model": name or f"{MEMORY}{type(base).__name__}"}
    config = base.config
    if revision := getattr(config, "_commit_hash", None):
        table["revision"] = revision
    if (attention := getattr(config, "_attn_implementation", None)) not in (None, "sdpa"):
        table["attn_implementation"] = str(attention)
    dtype = str(getattr(base, "dtype", "")).removeprefix("torch.")
    if dtype in ("float32", "bfloat16", "float16"):
        table["dtype"] = dtype
    if model.layers_path is not None:
        table["layers_path"] = model.layers_path
    if model.side != "decoder":
        table["side"] = model.side
    if model.split_rows:
        table["split_rows"] = True
    return table


def _modality_table(modality: Modality) -> dict[str, Any]:
    """The table that its recipe has, or one that describes what was put together in Python."""
    if modality.built_from is not None:
        written: dict[str, Any] = tomli.loads(modality.built_from.text)["modalities"]
        return dict(written[modality.name])
    parts = {"encoder": modality.encoder, "projector": modality.projector}
    parts |= {"fusion": modality.fusion}
    table: dict[str, Any] = {
        kind: table_of(plugin, kind, modality.name) for kind, plugin in parts.items()
    }
    if modality.gate != 1:
        table["gate"] = {"value": modality.gate}
    if modality.attend != "all":
        table["attend"] = modality.attend
    if windows := modality.encoder.windows:
        rate = windows.window.rate or 1
        table["windows"] = {"hop": windows.hop / rate, "longest": windows.longest / rate}
    if modality.markers is not None and modality.marked:
        table["markers"] = True
        if modality.markers.tokens is not None:
            table["inline"] = True
    if modality.transcripts is not None:
        given = attrs.asdict(modality.transcripts.spec)
        plain = attrs.asdict(TranscriptSpec())
        table["transcript"] = {k: v for k, v in given.items() if v != plain[k]} or True
    if not modality.features:
        table["features"] = False
    return table


def check_named(model: SafeModel, instead: str) -> None:
    """Refuse plugins that another process cannot find by a name.

    Args:
        model: with all its modalities.
        instead: what may be done where no name can be given.

    Raises:
        AdapterError: no installed distribution provides the class of one.
    """
    modalities = tomli.loads(recipe_text(model))["modalities"]
    for name, table in modalities.items():
        for kind in PLUGINS:
            for use in filter(was_in_memory, _uses(table[kind])):
                group = REGISTRIES[kind].group
                raise AdapterError(
                    f"{kind} `{use.removeprefix(MEMORY)}` of modality `{name}` is no plugin of an "
                    "installed distribution, so that an adapter could not say how to make it again",
                    hint=f"name its class in the entry points `{group}` of your distribution "
                    f"(`safe new plugin` writes one), or {instead}",
                )


def _uses(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("use"), str):
            yield value["use"]
        for item in value.values():
            yield from _uses(item)
    elif isinstance(value, list):
        for item in value:
            yield from _uses(item)
