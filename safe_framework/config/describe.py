"""From a plugin in memory to the table of a recipe that makes it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import attrs

from safe_framework.errors import AdapterError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.given_options import given_options
from safe_framework.interfaces.registry import REGISTRIES, Registry
from safe_framework.utils.in_memory import MEMORY, was_in_memory
from safe_framework.utils.toml_writer import plain


@attrs.frozen
class PluginName:
    """What a recipe calls a plugin, and who provides it.

    Attributes:
        use: its name; ``memory:CLASS`` where no installed distribution provides the class.
        distribution: that provides it; empty where none does.
        version: of the distribution.
    """

    use: str
    distribution: str = ""
    version: str = ""

    @property
    def installed(self) -> bool:
        """Whether another process finds it by its name."""
        return not was_in_memory(self.use)


def name_of(plugin: object, kind: str) -> PluginName:
    """The name of a plugin's class among the entry points.

    Args:
        plugin: of any class.
        kind: as in ``REGISTRIES``.
    """
    registry = REGISTRIES[kind]
    for point in registry.points():
        if _provides(registry, point, type(plugin)):
            owner, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
            shared = sum(other.name == point.name for other in registry.points()) > 1
            return PluginName(f"{owner}:{point.name}" if shared else point.name, owner, version)
    return PluginName(f"{MEMORY}{type(plugin).__qualname__}")


def _provides(registry: Registry[Any], point: EntryPoint, kind: type) -> bool:
    """Whether an entry point leads to a class; a distribution of other modules is not imported."""
    if (point.module, point.attr) == (kind.__module__, kind.__qualname__):
        return True
    if point.module.partition(".")[0] != kind.__module__.partition(".")[0]:
        return False
    try:
        return point.load() is kind
    except Exception:  # of a broken plugin, which is not the one in hand
        return False


def table_of(plugin: object, kind: str, modality: str) -> dict[str, Any]:
    """``{ use = "NAME", ... }`` for a plugin; of one that nobody provides its name alone.

    Args:
        plugin: to describe.
        kind: as in ``REGISTRIES``.
        modality: that it belongs to, for the message.

    Raises:
        AdapterError: an option cannot be written in a recipe.
    """
    name = name_of(plugin, kind)
    if not name.installed:
        return {"use": name.use}
    return {"use": name.use, **written_options(plugin, kind, modality)}


def written_options(plugin: object, kind: str, modality: str) -> dict[str, Any]:
    """The options that a plugin was made with, as a recipe writes them.

    Raises:
        AdapterError: one cannot be written.
    """
    found: dict[str, Any] = {}
    for option, value in given_options(plugin).items():
        try:
            if value is not None:  # which a recipe writes by leaving the option out
                found[option] = plain(_with_tables(value, modality))
        except TypeError as error:
            raise AdapterError(
                f"option `{option}` of {kind} `{type(plugin).__name__}` of modality `{modality}` "
                f"cannot be saved: {error}",
                hint="give the option as a number, a text or a list of them",
            ) from error
    return found


def _with_tables(value: Any, modality: str) -> Any:
    """The value with every encoder in it as a table."""
    if isinstance(value, Encoder):
        return table_of(value, "encoder", modality)
    if isinstance(value, Mapping):
        return {key: _with_tables(item, modality) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_with_tables(item, modality) for item in value]
    return value
