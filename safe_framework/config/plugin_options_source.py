"""The source of a plugin's class, found and parsed without running any of it."""

from __future__ import annotations

import ast
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import attrs

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
