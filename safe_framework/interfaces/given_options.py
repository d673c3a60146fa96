"""What a plugin was made with, kept on it so that a recipe can say how to make it again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

_Plugin = TypeVar("_Plugin")
_KEY = "_given_options"


def keep_given(plugin: _Plugin, given: Mapping[str, Any]) -> _Plugin:
    """The plugin, which from now on knows the keywords that its constructor is called with."""
    plugin.__dict__[_KEY] = dict(given)  # before `nn.Module.__init__`, which would refuse it
    return plugin


def given_options(plugin: object) -> dict[str, Any]:
    """The options that a plugin was made with, by name; those left at their defaults are not there.

    Options are the keyword-only parameters of its ``__init__``; what stands before them is wired
    by whoever builds a model.
    """
    parameters = inspect.signature(type(plugin).__init__).parameters.values()
    wired = {one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
    given: Mapping[str, Any] = plugin.__dict__.get(_KEY, {})
    return {name: value for name, value in given.items() if name not in wired}
