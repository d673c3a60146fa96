"""What docs/architecture.md and docs/glossary.md name is there: every path, every definition.

In backticks, ``core/call.py`` is a path below ``safe_framework/`` or below the repository, and
``core/call.py: ModelCall.run, merge_rows`` are names that the file defines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "safe_framework"
PAGES = ("docs/architecture.md", "docs/glossary.md")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_REFERENCE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+(?:\.\w+|/))(?:: ([\w., ]+))?`")
_FILES = (".py", ".md", ".toml", ".html", ".css", ".json")


def references(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each path in backticks, with the names after its colon."""
    for path, names in _REFERENCE.findall(_FENCED.sub("", text)):
        if path.endswith((*_FILES, "/")):
            yield path, tuple(name.strip() for name in names.split(",") if names)


def defined(text: str) -> set[str]:
    """What a module defines at its top, and what its classes define."""

    def names(body: list[ast.stmt], before: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield before + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{before}{node.name}.")
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                found = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from (before + one.id for one in found if isinstance(one, ast.Name))

    return set(names(ast.parse(text).body))


def missing(text: str, roots: tuple[Path, ...]) -> list[str]:
    """What a page names and is not there, in words."""
    found = []
    for path, names in references(text):
        existing = [root / path for root in roots if (root / path).exists()]
        if not existing:
            found.append(path)
        elif names:
            known = defined(existing[0].read_text("utf-8"))
            found += [f"{path}: {name}" for name in names if name not in known]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    """Law: every path of the page exists, and every name is defined in its file."""
    text = (ROOT / page).read_text("utf-8")
    assert len(list(references(text))) >= 40
    assert missing(text, (PACKAGE, ROOT)) == []


def test_every_room_is_in_the_drawing() -> None:
    """Law: the drawing of the layers names each package of the framework once, and no other."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    (drawing,) = re.findall(r"## The layers.*?^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rooms = [room for line in drawing.splitlines() for room in re.split(r"\s{2,}", line.strip())]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"errors", "hooks"}
    assert sorted(room for room in rooms if room in packages) == sorted(packages)
    assert {line.split()[0] for line in drawing.splitlines()} <= packages


def test_a_wrong_name_is_seen(tmp_path: Path) -> None:
    """Law: a path, a function, a method and a constant that are not there are all found."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "call.py").write_text(
        "A, B = 1, 2\nLIMIT: int = 3\nclass ModelCall:\n    rows: int\n    def run(self): ...\n"
    )
    right = "`core/` `core/call.py` `core/call.py: A, B, LIMIT, ModelCall.run, ModelCall.rows`"
    assert missing(right, (tmp_path,)) == []
    wrong = "`cores/` `core/calls.py: f` `core/call.py: C, ModelCall.off, ModelCall`, `a / b`"
    expected = ["cores/", "core/calls.py", "core/call.py: C", "core/call.py: ModelCall.off"]
    assert missing(wrong, (tmp_path,)) == expected
    assert missing("```text\n`core/gone.py`\n```\n", (tmp_path,)) == []
