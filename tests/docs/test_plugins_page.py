"""docs/plugins.md says what is so, and its code runs."""

import re
from pathlib import Path

import pytest
import tomli

import safe_framework
from safe_framework import testing
from safe_framework.cli import main
from safe_framework.interfaces.registry import REGISTRIES

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def code(language):
    """The blocks of one language; there are some."""
    found = [text for kind, text in BLOCKS if kind == language]
    assert found
    return found


def test_the_code_runs_and_the_plugin_keeps_its_laws():
    """The blocks run in order, and every test of the contract in them passes."""
    space = {}
    for block in code("python"):
        exec(compile(block, "docs/plugins.md", "exec"), space)
    contract = space["TestLoudestProjector"]()
    laws = [name for name in dir(contract) if name.startswith("test_")]
    assert len(laws) == 3
    for law in laws:
        getattr(contract, law)()


def test_the_table_of_kinds_is_that_of_the_registries():
    """Each kind has its interface and its group."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE)
    expected = {
        (kind, registry.base.rpartition(":")[2], registry.group)
        for kind, registry in REGISTRIES.items()
    }
    assert set(rows) == expected
    assert "`safe_framework.hooks`" in PAGE
    assert {interface for _, interface, _ in rows} <= set(safe_framework.__all__)


def test_the_contracts_are_those_there_are():
    """Each contract is in the table, and no other."""
    rows = re.findall(r"^\| `(\w+Contract)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(name for name in testing.__all__ if name.endswith("Contract"))
    named = re.findall(
        r"`(?:safe_framework\.testing\.)?(check_shapes|strategies|bases|toys)\b", PAGE
    )
    assert set(named) == {"check_shapes", "strategies", "bases", "toys"} < set(testing.__all__)


def test_the_command_works(tmp_path, monkeypatch, capsys):
    """The first line of the first block does what it says."""
    monkeypatch.chdir(tmp_path)
    line = code("sh")[0].splitlines()[0]
    assert main(line.split()[1:]) == 0
    assert (tmp_path / "acme-chime" / "pyproject.toml").is_file()


def test_the_entry_point_is_in_a_group_that_is_read():
    """The example of an entry point would be found."""
    (group,) = tomli.loads(next(one for one in code("toml") if "[project." in one))["project"][
        "entry-points"
    ]
    assert group in {registry.group for registry in REGISTRIES.values()}


@pytest.mark.parametrize("name", testing.__all__)
def test_public_names_exist(name):
    """Everything that ``safe_framework.testing`` offers can be had."""
    assert getattr(testing, name) is not None
