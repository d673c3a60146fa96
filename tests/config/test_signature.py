"""A plugin's options are read from its source, and say the same as the imported class."""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint

import pytest

from safe_framework.config.options import REQUIRED
from safe_framework.config.plugin_options import (
    UnreadableError,
    imported_options,
    read_options,
    static_options,
)
from safe_framework.errors import PluginError
from safe_framework.interfaces.registry import REGISTRIES, encoders

READABLE = ["Modern", "Old", "Inherits", "Empty", "Keywords"]
DYNAMIC = ["Decorated", "Default", "Base", "Annotation"]
SHIPPED = [
    (kind, point.name)
    for kind, registry in REGISTRIES.items()
    for point in registry.points()
    if point.dist.name == "safe-framework"
]


def point(name):
    """The entry point that a distribution would declare for a class of the fake module."""
    return EntryPoint(name.lower(), f"acme_signatures:{name}", "safe_framework.encoders")


@pytest.mark.parametrize("name", READABLE)
def test_source_says_what_the_class_says(installed, name):
    """Reading the source gives the options that importing gives."""
    plugin = getattr(import_module("acme_signatures"), f"Readable{name}")
    assert static_options(point(f"Readable{name}")) == imported_options(plugin)


def test_a_class_that_another_module_passes_on_is_read_where_it_is_defined(tmp_path, monkeypatch):
    """An entry point may name a package that imports the class, under another name too."""
    package = tmp_path / "acme_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Sharp as Public\n")
    (package / "inner.py").write_text("from acme_package.deep import Sharp\n")
    (package / "deep.py").write_text(
        "import safe_framework\n"
        "class Sharp(safe_framework.RetentionRegularizer):\n"
        "    def __init__(self, *, edge: int = 3): ...\n"
        "class Blunt(safe_framework.RetentionRegularizer):\n"
        "    'Takes nothing.'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    group = "safe_framework.retention_regularizers"
    (edge,) = static_options(EntryPoint("sharp", "acme_package:Public", group))
    assert (edge.name, edge.kind, edge.default) == ("edge", int, 3)
    assert static_options(EntryPoint("blunt", "acme_package.deep:Blunt", group)) == []
    assert "acme_package" not in sys.modules


@pytest.mark.parametrize("name", DYNAMIC)
def test_source_that_says_too_little_is_not_guessed_at(installed, name):
    """What cannot be understood without running it is left to the import."""
    with pytest.raises(UnreadableError):
        static_options(point(f"Dynamic{name}"))


@pytest.mark.parametrize("name", ["Decorated", "Default", "Annotation"])
def test_a_class_that_must_be_imported_is(installed, name):
    """Importing reads what the source does not say."""
    plugin = getattr(import_module("acme_signatures"), f"Dynamic{name}")
    assert [option.name for option in imported_options(plugin)] in (["rank"], ["names"])


@pytest.mark.parametrize(
    ("name", "message"), [("Unannotated", "has no type annotation"), ("Unresolved", "resolved")]
)
def test_an_option_without_a_type_is_refused(installed, name, message):
    """An option that no value can be checked against is the plugin's mistake."""
    with pytest.raises(PluginError, match=message):
        imported_options(getattr(import_module("acme_signatures"), name))


def test_a_plugin_that_cannot_be_imported_is_broken(installed):
    """Source that is not enough leads to the import, and that to the registry's message."""
    with pytest.raises(PluginError, match=r"`broken` of acme-safe 0\.1 .* failed to import"):
        read_options(encoders, "broken")


def test_an_option_without_default_is_required(installed):
    """A keyword-only parameter without default must be given."""
    model, rate, loud = read_options(encoders, "chime")
    assert (model.name, model.kind, model.default) == ("model", str, REQUIRED)
    assert (rate.name, rate.kind, rate.default) == ("rate", int, 16000)
    assert (loud.name, loud.kind, loud.default) == ("loud", bool, False)


def test_there_are_shipped_plugins():
    """The list that the next test goes through holds each kind."""
    assert {kind for kind, _ in SHIPPED} == set(REGISTRIES)


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_shipped_plugins_need_no_import(kind, name):
    """Checking a recipe of ours imports no plugin, and misses nothing by that."""
    registry = REGISTRIES[kind]
    assert static_options(registry.point(name)) == imported_options(registry.load(name))


def test_reading_options_imports_no_plugin(installed):
    """Neither the plugin nor torch is loaded."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from safe_framework.config.plugin_options import read_options\n"
        "from safe_framework.interfaces.registry import encoders\n"
        "assert len(read_options(encoders, 'chime')) == 3\n"
        "sys.exit(sorted({'torch', 'acme_safe'} & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(installed)], check=True)
