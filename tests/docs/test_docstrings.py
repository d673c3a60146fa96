"""Whatever has a name of its own says what it does, in private classes and functions too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("safe_framework", "plugins", "registry")
SHORT = 5
"""Lines of a function inside another that may speak for itself."""


def named(text):
    """Each definition of a module whose name does not begin with an underscore."""

    def within(node, path, inside):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from within(child, path, inside)
                continue
            function = not isinstance(child, ast.ClassDef)
            small = inside and child.end_lineno - child.lineno < SHORT
            whole = f"{path}{child.name}"
            if not child.name.startswith("_") and not small:
                yield whole, child
            yield from within(child, f"{whole}.", inside or function)

    yield from within(ast.parse(text), "", False)


def without_docstring(text):
    """The names of those without a docstring."""
    return [name for name, node in named(text) if not ast.get_docstring(node)]


MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_there_are_definitions():
    """The walk finds what it is to judge."""
    assert len(MODULES) > 150
    assert sum(len(list(named(path.read_text("utf-8")))) for path in MODULES) > 1000


def test_names_have_docstrings():
    """Law: every class, function and method of a public name has a docstring, overrides too."""
    found = {
        str(path.relative_to(ROOT)): without_docstring(path.read_text("utf-8")) for path in MODULES
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_a_missing_docstring_is_seen():
    """Law: methods of private classes and long functions inside functions are judged."""
    body = "\n".join(f"            x{number} = 1" for number in range(SHORT))
    text = f"class _A:\n    def f(self):\n        def g():\n{body}\n        def h(): pass\n"
    assert without_docstring(text) == ["_A.f", "_A.f.g"]
