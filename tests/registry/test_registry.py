"""Plugins are found by name among what is installed, and every failure names its owner."""

import subprocess
import sys
from pathlib import Path

import pytest

from safe_framework.errors import PluginError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.registry import REGISTRIES, Registry, encoders, fusion_adapters

BASE = "safe_framework.interfaces.encoder:Encoder"


def refusal(action, *arguments):
    """The message that an action is refused with."""
    with pytest.raises(PluginError) as caught:
        action(*arguments)
    return str(caught.value)


def test_a_third_party_plugin_is_found_by_name(installed):
    """What another distribution declares is listed, sourced and loaded like our own."""
    assert "chime" in encoders
    assert "chime" in list(encoders)
    assert encoders.origin("chime") == "acme-safe 0.1 (acme_safe:ChimeEncoder)"
    assert issubclass(encoders.load("chime"), Encoder)


def test_our_own_plugins_come_from_entry_points():
    """Each kind has a plugin of ours, found the same way as a stranger's."""
    assert REGISTRIES
    for registry in REGISTRIES.values():
        assert "safe-framework" in {point.dist.name for point in registry.points()}


def test_a_plugin_is_gone_once_its_distribution_is(installed, monkeypatch):
    """What is listed follows what is installed now."""
    assert "chime" in encoders
    monkeypatch.undo()
    assert "chime" not in encoders


def test_loading_twice_gives_the_same_class(installed):
    """A class is imported once."""
    assert encoders.load("chime") is encoders.load("acme-safe:chime")


def test_a_misspelt_name_is_guessed(installed):
    """An unknown name offers the nearest one, and lists what is installed."""
    assert refusal(fusion_adapters.load, "echoo").startswith(
        "unknown fusion adapter `echoo`\n"
        "hint: did you mean `echo`? installed fusion adapters: cross_attention, echo, "
    )


def test_an_unknown_name_lists_what_there_is():
    """A name that is near to none gets no guess."""
    empty = Registry("encoder", "safe_framework.nothing", BASE)
    assert len(empty) == 0
    assert refusal(empty.load, "xyz") == "unknown encoder `xyz`\nhint: installed encoders: none"


def test_a_shared_name_names_both_owners(installed):
    """Two distributions may not share a name unless the user chooses."""
    assert refusal(encoders.load, "twin") == (
        "encoder `twin` is provided by acme-safe 0.1 (acme_safe:ChimeEncoder)"
        " and by rival-safe 2.0 (acme_safe:ChimeEncoder)\n"
        "hint: write `acme-safe:twin` to choose one"
    )
    assert encoders.origin("rival-safe:twin").startswith("rival-safe")


def test_a_broken_plugin_is_named_with_its_cause(installed):
    """An import that fails names the plugin, its distribution and what went wrong."""
    assert refusal(encoders.load, "broken") == (
        "encoder `broken` of acme-safe 0.1 (acme_broken:Encoder) failed to import:"
        " ModuleNotFoundError: No module named 'a_library_that_nobody_has'\n"
        "hint: repair or uninstall `acme-safe`"
    )


def test_a_broken_plugin_chains_its_cause(installed):
    """The original exception is kept for a debugger."""
    with pytest.raises(PluginError) as caught:
        encoders.load("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(("name", "attribute"), [("function", "helper"), ("stranger", "Stranger")])
def test_what_is_not_of_the_kind_is_refused(installed, name, attribute):
    """A plugin must be a class that inherits from its interface."""
    assert refusal(encoders.load, name) == (
        f"encoder `{name}` of acme-safe 0.1 (acme_safe:{attribute})"
        " is not a subclass of `safe_framework.interfaces.encoder.Encoder`\n"
        "hint: its entry point must name a class that inherits from it"
    )


def test_a_known_plugin_says_how_to_install_it(tmp_path: Path):
    """A name in the table of known plugins is not a spelling mistake."""
    table = tmp_path / "known_plugins.toml"
    table.write_text('[encoders]\nsonar = "pip install acme-sonar"\n')
    registry = Registry("encoder", "safe_framework.encoders", BASE, known=table)
    assert refusal(registry.load, "sonar") == (
        "encoder `sonar` is known but not installed\nhint: install it: `pip install acme-sonar`"
    )


def test_the_table_of_known_plugins_names_none_that_is_ours():
    """Whatever ships with the framework is installed, so the table need not say how."""
    import tomli

    from safe_framework.utils.catalogue import KNOWN_PLUGINS

    table = tomli.loads(KNOWN_PLUGINS.read_text("utf-8"))
    groups = {registry.group.rpartition(".")[2]: registry for registry in REGISTRIES.values()}
    assert set(table) == set(groups)
    assert not [name for group in groups for name in table[group] if name in groups[group]]


def test_listing_imports_no_plugin(installed):
    """Names and origins come from metadata alone."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from safe_framework.interfaces.registry import REGISTRIES\n"
        "for registry in REGISTRIES.values():\n"
        "    assert len(registry) and repr(registry) and registry.points()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'acme_safe', 'safe_framework_plugins'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(installed)], check=True)
