"""Which plugin a table of a recipe names, and which options that one takes."""

from __future__ import annotations

from safe_framework.config.options import Option
from safe_framework.config.plugin_options import read_options
from safe_framework.config.schema import EncoderSpec
from safe_framework.config.toml_positions import Path
from safe_framework.interfaces.registry import REGISTRIES


def plugin_options(path: Path, use: str, schema: type) -> tuple[str, list[Option]]:
    """The plugin's name for messages, and its options.

    Args:
        path: where its table is; the last word in it, as in ``("retention", 0)``, says which
            kind of plugin it names.
        use: the plugin's name.
        schema: of its table; an :class:`EncoderSpec` is an encoder wherever it is.

    Raises:
        PluginError: no plugin has the name, several have it, or its options cannot be read.
    """
    place = next(step for step in reversed(path) if isinstance(step, str))
    registry = REGISTRIES["encoder" if schema is EncoderSpec else place]
    return f"{registry.kind} `{use}`", read_options(registry, use)
