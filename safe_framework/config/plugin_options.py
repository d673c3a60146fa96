"""The options of a plugin: the keyword-only parameters of its ``__init__``, with their help.

They are read from the plugin's source, which is found and parsed without running any of it, so
that checking a recipe does not import torch; types, defaults and the Google docstring are read as
far as they are simple. Only a plugin whose source says too little is imported. Parameters before
``*`` are no options: they are wired when a model is built.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import attrs

from safe_framework.config.options import REQUIRED, UNIONS, Option
from safe_framework.config.schema import EncoderSpec
from safe_framework.config.toml_positions import KeyPath
from safe_framework.errors import PluginError
from safe_framework.interfaces.registry import REGISTRIES, Registry

_HOPS = 5  # modules that may pass a class on


class UnreadableError(Exception):
    """Source that cannot be understood without running it."""


@attrs.frozen
class ClassSource:
    """A class and what surrounds it.

    Attributes:
        node: the class statement.
        classes: every class of the module, by name.
        constants: the right-hand side of every plain assignment of the module, by name.
        imported: the module that each imported name comes from.
    """

    node: ast.ClassDef
    classes: dict[str, ast.ClassDef]
    constants: dict[str, ast.expr]
    imported: dict[str, str]


def class_source(point: EntryPoint) -> ClassSource:
    """Read the class that an entry point names, in the module that defines it.

    Raises:
        UnreadableError: there is no such source file, or neither it nor a module that it imports
            the class from defines it.
    """
    module, name = point.module, point.attr
    for _ in range(_HOPS):
        path = _source_file(module)
        body = _parse(path).body
        classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
        if name in classes:
            return ClassSource(classes[name], classes, _constants(body), _imported(body))
        module, name = _origin(module, path, name, body)
    raise UnreadableError(f"`{point.module}` does not define `{point.attr}`")


def _origin(module: str, path: Path, name: str, body: list[ast.stmt]) -> tuple[str, str]:
    """The module that an imported name comes from, and what it is called there."""
    for node in body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            if name == (alias.asname or alias.name) and isinstance(node, ast.ImportFrom):
                return _absolute(module, path, node), alias.name
    raise UnreadableError(f"`{module}` does not define `{name}`")


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The full name of what ``from ... import`` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(str(error)) from error


def _source_file(module: str) -> Path:
    top, *rest = module.split(".")
    spec = _top_level(top)
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            break
        spec = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    if spec is None or spec.name != module or not (spec.origin or "").endswith(".py"):
        raise UnreadableError(f"no source of `{module}`")
    return Path(str(spec.origin))


def _top_level(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ValueError:  # a module that was put into sys.modules by hand
        return None


def _constants(body: list[ast.stmt]) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


def _imported(body: list[ast.stmt]) -> dict[str, str]:
    statements = [node for node in body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: node.module or "" for node in statements for alias in node.names
    }


_TYPES: dict[str, Any] = {
    "Any": Any,
    "Encoder": EncoderSpec,
    "Literal": Literal,
    "Mapping": Mapping,
    "Optional": Optional,
    "Sequence": Sequence,
    "Union": Union,
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)},
}


def read_type(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """The type that an annotation names.

    Args:
        node: the annotation.
        constants: assignments of the module, in which aliases are looked up.

    Raises:
        UnreadableError: it is not made of builtin types, ``typing`` and ``collections.abc`` alone.
    """
    if isinstance(node, ast.Constant):
        return _constant(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[read_type(node.left, constants), read_type(node.right, constants)]  # noqa: UP007  # of values
    if isinstance(node, ast.Subscript):
        return _subscript(node, constants)
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    if name in constants:
        return read_type(constants[name], constants)
    if name in _TYPES:
        return _TYPES[name]
    raise UnreadableError(f"annotation `{ast.unparse(node)}`")


def read_value(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """The value of a default, which may be a literal or the name of one.

    Raises:
        UnreadableError: it is anything else.
    """
    if isinstance(node, ast.Name) and node.id in constants:
        return read_value(constants[node.id], constants)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UnreadableError(f"default `{ast.unparse(node)}`") from error


def _constant(value: object, constants: Mapping[str, ast.expr]) -> Any:
    if value is None or value is ...:
        return value
    if isinstance(value, str):
        return read_type(ast.parse(value, mode="eval").body, constants)
    raise UnreadableError(f"annotation `{value!r}`")


def _subscript(node: ast.Subscript, constants: Mapping[str, ast.expr]) -> Any:
    generic = read_type(node.value, constants)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if generic is Literal:
        return Literal[tuple(read_value(item, constants) for item in inside)]
    arguments = tuple(read_type(item, constants) for item in inside)
    try:
        return generic[arguments if len(arguments) > 1 else arguments[0]]
    except TypeError as error:
        raise UnreadableError(f"annotation `{ast.unparse(node)}`") from error


_INTERFACES = (
    "Encoder",
    "FusionAdapter",
    "Projector",
    "RetentionRegularizer",
    "TranscribingEncoder",
)


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


def static_options_or_none(point: EntryPoint) -> list[Option] | None:
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
    """Whether a base is one of the interfaces, whose constructors take no options."""
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


_ARGUMENT = re.compile(r"    (\w+)(?: \([^)]*\))?: (.*)")


def docstring(point: EntryPoint) -> str:
    """A plugin's docstring, read without importing it; empty if it cannot be read."""
    try:
        return ast.get_docstring(class_source(point).node) or ""
    except UnreadableError:
        return ""


def summary(text: str) -> str:
    r"""What comes before the first section, as one paragraph a line.

    >>> summary('''Pools frames.
    ...
    ... Each token is a
    ... weighted mean.
    ...
    ... Args:
    ...     tokens: how many.''')
    'Pools frames.\nEach token is a weighted mean.'
    """
    before = re.split(r"^[A-Z]\w+:$", text, maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = re.split(r"\n\s*\n", before.strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def arguments(text: str) -> dict[str, str]:
    r"""What the ``Args`` section says of each argument, on one line.

    >>> arguments("Args:\n    rank: of every\n        pair.\n    alpha: scale.")
    {'rank': 'of every pair.', 'alpha': 'scale.'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in _section(text, "Args"):
        if match := _ARGUMENT.fullmatch(line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _section(text: str, title: str) -> list[str]:
    """The indented lines under ``title:``."""
    match = re.search(rf"^{title}:\n((?:(?: +.*)?\n?)*)", text, flags=re.MULTILINE)
    return match[1].splitlines() if match else []


def plugin_options(path: KeyPath, use: str, schema: type) -> tuple[str, list[Option]]:
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
