"""The options of a plugin: the keyword-only parameters of its ``__init__``.

They are read from the plugin's source, so that checking a recipe does not import torch; only a
plugin whose source says too little is imported. Parameters before ``*`` are no options: they
are wired when a model is built.
"""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import EntryPoint
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from safe_framework.config.options import REQUIRED, Option
from safe_framework.config.options_words import UNIONS
from safe_framework.config.plugin_options_annotations import read_type, read_value
from safe_framework.config.plugin_options_source import ClassSource, UnreadableError, class_source
from safe_framework.config.schema import EncoderSpec
from safe_framework.errors import PluginError
from safe_framework.interfaces.registry import Registry

_INTERFACES = ("Encoder", "FusionAdapter", "Projector", "RetentionRegularizer")


def read_options(registry: Registry[Any], name: str) -> list[Option]:
    """The options of the plugin called ``name``, in the order of its constructor.

    Raises:
        PluginError: no plugin has the name, several have it, it had to be imported and that
            failed, or one of its options has no annotation.
    """
    point = registry.point(name)
    try:
        return static_options(point)
    except UnreadableError:
        return imported_options(registry.load(name))


def static_options(point: EntryPoint) -> list[Option]:
    """The options that a plugin's source states.

    Raises:
        UnreadableError: its source says too little.
    """
    source = class_source(point)
    init = _constructor(source.node, source)
    if init is None:
        return []
    pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    return [_static_option(argument, default, source) for argument, default in pairs]


def told_options(point: EntryPoint) -> list[Option] | None:
    """The options that a plugin's source states; None where it says too little.

    Nothing is imported, unlike in :func:`read_options`.
    """
    try:
        return static_options(point)
    except UnreadableError:
        return None


def imported_options(plugin: type) -> list[Option]:
    """The options of a class that is imported already.

    Raises:
        PluginError: an option has no annotation, or one that cannot be resolved.
    """
    parameters = inspect.signature(plugin).parameters.values()
    keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    hints = _hints(plugin) if keyword_only else {}
    return [_imported_option(plugin, parameter, hints) for parameter in keyword_only]


def _constructor(node: ast.ClassDef, source: ClassSource) -> ast.FunctionDef | None:
    """The ``__init__`` of a class or of a base in the same module; None if there is none."""
    if node.decorator_list or node.keywords:
        raise UnreadableError(f"`{node.name}` is changed by a decorator or metaclass")
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    for base in map(ast.unparse, node.bases):
        if base in source.classes:
            if found := _constructor(source.classes[base], source):
                return found
        elif not _is_interface(base, source):
            raise UnreadableError(f"base `{base}` of `{node.name}`")
    return None


def _is_interface(base: str, source: ClassSource) -> bool:
    """Whether a base is one of the four interfaces, whose constructors take no options."""
    package, _, name = base.rpartition(".")
    if package == "safe_framework":
        return name in _INTERFACES
    module = source.imported.get(base, "")
    return base in _INTERFACES and module.partition(".")[0] == "safe_framework"


def _static_option(argument: ast.arg, default: ast.expr | None, source: ClassSource) -> Option:
    if argument.annotation is None:
        raise UnreadableError(f"option `{argument.arg}` has no annotation")
    names = {n.id for n in ast.walk(argument.annotation) if isinstance(n, ast.Name)}
    if "Encoder" in names and not _is_interface("Encoder", source):
        raise UnreadableError(f"option `{argument.arg}` is of another `Encoder`")
    kind = read_type(argument.annotation, source.constants)
    value = REQUIRED if default is None else read_value(default, source.constants)
    return Option(argument.arg, kind, value)


def _imported_option(plugin: type, parameter: inspect.Parameter, hints: dict[str, Any]) -> Option:
    if parameter.name not in hints:
        message = f"option `{parameter.name}` of `{plugin.__qualname__}` has no type annotation"
        raise PluginError(message, hint="annotate it in the plugin's `__init__`")
    default = REQUIRED if parameter.default is parameter.empty else parameter.default
    return Option(parameter.name, _written(hints[parameter.name]), default)


def _written(kind: Any) -> Any:
    """A type with our interface ``Encoder`` replaced by the table that names one."""
    if getattr(kind, "__module__", "") == "safe_framework.interfaces.encoder":
        return EncoderSpec
    inner, origin = get_args(kind), get_origin(kind)
    made = tuple(map(_written, inner))
    if made == inner or origin is Literal:
        return kind
    generic: Any = Union if origin in UNIONS else origin
    return generic[made]


def _hints(plugin: type) -> dict[str, Any]:
    try:
        return get_type_hints(plugin.__init__)  # type: ignore[misc]  # of this class, as it is
    except NameError as error:
        message = f"the annotations of `{plugin.__qualname__}` cannot be resolved: {error}"
        raise PluginError(message, hint="import the names that they use at run time") from error
