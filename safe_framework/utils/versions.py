"""The versions that bits and numbers depend on."""

from __future__ import annotations

FRAMEWORK_VERSION = "0.1.0"
"""Of this package; the same as the distribution's."""


def installed_versions(*names: str) -> dict[str, str]:
    """Python's version and those of these distributions, by name."""
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in names}
