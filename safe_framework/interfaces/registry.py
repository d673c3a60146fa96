"""Find plugins by name among the entry points of installed distributions.

Nothing is imported until a plugin is loaded: listing names reads only package metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from safe_framework.errors import PluginError
from safe_framework.utils.in_memory import MEMORY, was_in_memory
from safe_framework.utils.suggest import suggest

if TYPE_CHECKING:
    from safe_framework.interfaces.encoder import Encoder
    from safe_framework.interfaces.fusion import FusionAdapter
    from safe_framework.interfaces.projector import Projector
    from safe_framework.interfaces.retention import RetentionRegularizer

_Plugin = TypeVar("_Plugin")


class Registry(Generic[_Plugin]):
    """The plugins of one kind.

    Args:
        kind: what one is called in messages, such as ``"encoder"``.
        group: entry-point group, such as ``"safe_framework.encoders"``.
        base: ``"module:Class"`` that every plugin must inherit from; a string, so that naming
            it does not import torch.
        known: table of plugins that are known but need not be installed; None for the
            catalogue's own.
    """

    def __init__(self, kind: str, group: str, base: str, known: Path | None = None) -> None:
        self.kind, self.group, self.base = kind, group, base
        self._known = known
        self._loaded: dict[str, type[_Plugin]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({point.name for point in self.points()}))

    def __len__(self) -> int:
        return len({point.name for point in self.points()})

    def __contains__(self, name: object) -> bool:
        return any(point.name == name for point in self.points())

    def __repr__(self) -> str:
        return f"<Registry of {self.kind}s: {', '.join(self) or 'none'}>"

    def points(self) -> list[EntryPoint]:
        """The entry points of the group, sorted by name; two may share one."""
        return sorted(group_points(self.group), key=lambda point: (point.name, origin(point)))

    def origin(self, name: str) -> str:
        """Where ``name`` comes from, as ``"safe-framework 0.1.0 (module:Class)"``.

        Raises:
            PluginError: no plugin has the name, or several have it.
        """
        return origin(self.point(name))

    def point(self, name: str) -> EntryPoint:
        """The entry point called ``name``, or ``distribution:name`` if two share it.

        Raises:
            PluginError: no plugin has the name, or several have it.
        """
        owner, _, bare = name.rpartition(":")
        named = [point for point in group_points(self.group) if point.name == bare]
        found = [point for point in named if not owner or _distribution(point) == owner]
        if not found:
            raise self._unknown(name)
        if len(found) > 1:
            found.sort(key=origin)
            owners = " and by ".join(map(origin, found))
            hint = f"write `{_distribution(found[0])}:{bare}` to choose one"
            raise PluginError(f"{self.kind} `{name}` is provided by {owners}", hint=hint)
        return found[0]

    def load(self, name: str) -> type[_Plugin]:
        """Import the plugin called ``name``, or ``distribution:name`` if two share it.

        Raises:
            PluginError: no plugin has the name, several have it, importing it failed, or it
                does not inherit from the kind's base class.
        """
        point = self.point(name)
        if point.value not in self._loaded:
            self._loaded[point.value] = self._import(point)
        return self._loaded[point.value]

    def _import(self, point: EntryPoint) -> type[_Plugin]:
        owner = f"{self.kind} `{point.name}` of {origin(point)}"
        try:
            plugin = point.load()
        except Exception as error:  # third-party code: anything may come out of an import
            message = f"{owner} failed to import: {type(error).__name__}: {error}"
            hint = f"repair or uninstall `{_distribution(point)}`"
            raise PluginError(message, hint=hint) from error
        base = EntryPoint("", self.base, "").load()
        if not (isinstance(plugin, type) and issubclass(plugin, base)):
            message = f"{owner} is not a subclass of `{self.base.replace(':', '.')}`"
            raise PluginError(
                message, hint="its entry point must name a class that inherits from it"
            )
        return plugin

    def _unknown(self, name: str) -> PluginError:
        if was_in_memory(name):
            message = f"{self.kind} `{name.removeprefix(MEMORY)}` was an object in memory"
            hint = "put the same model together, then load into it: load(folder, model=model)"
            return PluginError(message, hint=hint)
        if install := self._known_plugins().get(name):
            message = f"{self.kind} `{name}` is known but not installed"
            return PluginError(message, hint=f"install it: `{install}`")
        hint = suggest(name, self, f"installed {self.kind}s")
        return PluginError(f"unknown {self.kind} `{name}`", hint=hint)

    def _known_plugins(self) -> dict[str, str]:
        import tomli

        from safe_framework.utils.catalogue import KNOWN_PLUGINS

        table = tomli.loads((self._known or KNOWN_PLUGINS).read_text("utf-8"))
        found: dict[str, str] = table.get(self.group.rpartition(".")[2], {})
        return found


def group_points(group: str) -> list[EntryPoint]:
    """The entry points of ``group`` in what is installed now."""
    return [point for point in _installed(tuple(sys.path)) if point.group == group]


def origin(point: EntryPoint) -> str:
    """Who provides an entry point, as ``"safe-framework 0.1.0 (module:Class)"``."""
    return f"{' '.join(_name_and_version(point.dist))} ({point.value})"


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> list[EntryPoint]:
    """The framework's entry points, looked up once for each search path."""
    found = entry_points()
    groups = [group for group in found.groups if group.startswith("safe_framework.")]
    return [point for group in groups for point in found.select(group=group)]


def _distribution(point: EntryPoint) -> str:
    return _name_and_version(point.dist)[0]


@lru_cache(maxsize=1024)
def _name_and_version(dist: Distribution | None) -> tuple[str, str]:
    """Of a distribution, which parses all that it says of itself for each of the two."""
    return (dist.name, dist.version) if dist else ("unknown", "unknown")


encoders: Registry[Encoder] = Registry(
    "encoder", "safe_framework.encoders", "safe_framework.interfaces.encoder:Encoder"
)
projectors: Registry[Projector] = Registry(
    "projector", "safe_framework.projectors", "safe_framework.interfaces.projector:Projector"
)
fusion_adapters: Registry[FusionAdapter] = Registry(
    "fusion adapter",
    "safe_framework.fusion_adapters",
    "safe_framework.interfaces.fusion:FusionAdapter",
)
retention_regularizers: Registry[RetentionRegularizer] = Registry(
    "retention regularizer",
    "safe_framework.retention_regularizers",
    "safe_framework.interfaces.retention:RetentionRegularizer",
)

REGISTRIES: dict[str, Registry[Any]] = {
    "encoder": encoders,
    "projector": projectors,
    "fusion": fusion_adapters,
    "retention": retention_regularizers,
}
"""Each registry under the word that recipes use for its plugins."""
