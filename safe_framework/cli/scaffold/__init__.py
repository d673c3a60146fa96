"""Writes a new distribution with one plugin in it, whose tests pass at once."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from safe_framework.errors import SafeError
from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.utils.versions import FRAMEWORK_VERSION

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIXES = {
    "encoder": "Encoder",
    "projector": "Projector",
    "fusion": "Fusion",
    "retention": "Regularizer",
}
_USAGES = {
    "encoder": '[modalities.touch]\nencoder = {{ use = "{name}" }}',
    "projector": '[modalities.audio]\nprojector = {{ use = "{name}" }}',
    "fusion": '[modalities.audio]\nfusion = {{ use = "{name}" }}',
    "retention": '[[retention]]\nuse = "{name}"',
}


def write_plugin(name: str, kind: str, into: Path) -> list[Path]:
    """Write the distribution ``name`` as a new folder, and give its files.

    Args:
        name: of the distribution, of its folder, and of the plugin in recipes.
        kind: a word of recipes: ``"encoder"``, ``"projector"``, ``"fusion"`` or ``"retention"``.
        into: the folder in which the new one is made; made itself where it does not exist.

    Raises:
        SafeError: the name cannot be used, or there is something at that place already.
    """
    _check_name(name, kind)
    folder = into / name
    if folder.exists() or folder.is_symlink():
        raise SafeError(f"`{folder}` is there already", hint="choose another name, or --into")
    texts = _files(name, kind)
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except OSError as error:
        raise SafeError(f"`{folder}` cannot be written: {error}", hint="choose --into") from error
    return [folder / path for path in texts]


def _files(name: str, kind: str) -> dict[str, str]:
    """The text of each file, by its path in the distribution."""
    module = name.replace("-", "_")
    noun, suffix = REGISTRIES[kind].kind, _SUFFIXES[kind]
    words = {
        "name": name,
        "module": module,
        "word": kind,
        "kind": noun,
        "article": "An" if noun[0] in "aeiou" else "A",
        "group": REGISTRIES[kind].group,
        "class_name": name.title().replace("-", "").removesuffix(suffix) + suffix,
        "usage": _USAGES[kind].format(name=name),
        "version": FRAMEWORK_VERSION,
    }
    sources = {
        "pyproject.toml": "common/pyproject.toml.txt",
        "README.md": "common/README.md.txt",
        f"src/{module}/__init__.py": "common/init.py.txt",
        f"src/{module}/plugin.py": f"{kind}/plugin.py.txt",
        f"tests/test_{module}.py": f"{kind}/test.py.txt",
    }
    return {
        path: Template((_TEMPLATES / source).read_text("utf-8")).substitute(words)
        for path, source in sources.items()
    }


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f"`{near}`" if _NAME.fullmatch(near) else "such as `acme-chime`"
        raise SafeError(
            f"a plugin cannot be called `{name}`",
            hint=f"use small letters, digits and single hyphens: {hint}",
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or find_spec(module):
        raise SafeError(
            f"`{name}` would hide the module `{module}` of Python or of what is installed",
            hint=f"put a word of your own before it: `acme-{name}`",
        )
    if name in REGISTRIES[kind]:
        raise SafeError(
            f"the name `{name}` is taken by another {REGISTRIES[kind].kind}",
            hint=f"put a word of your own before it: `acme-{name}`",
        )
