"""The source of a plugin's class, found and parsed without running any of it."""

from __future__ import annotations

import ast
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import attrs


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
    """Read the class that an entry point names.

    Raises:
        UnreadableError: there is no such source file, or the class is not defined in it.
    """
    body = _parse(_source_file(point.module)).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    if point.attr not in classes:
        raise UnreadableError(f"`{point.module}` does not define `{point.attr}`")
    return ClassSource(classes[point.attr], classes, _constants(body), _imported(body))


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
