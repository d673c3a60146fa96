"""What the README says exists, and its examples do what they say."""

import ast
import re
from pathlib import Path

import pytest
import tomli
import torch

import safe_framework
from safe_framework import Frames
from safe_framework.cli import main
from safe_framework.config.read import parse_recipe
from safe_framework.interfaces.registry import REGISTRIES

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "docs/certificate.md",
    "docs/evaluation.md",
    "docs/laws.md",
    "docs/monitor.md",
    "docs/plugins.md",
    "docs/recipe.md",
    "docs/retention.md",
    "docs/stage_b.md",
    "docs/training.md",
    "tests/README.md",
)


def test_python_compiles_and_names_exist(blocks):
    """Each block is Python, and what it takes from the package is public."""
    used = set()
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "safe_framework":
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module == "safe_framework":
                used |= {alias.name for alias in node.names}
    assert {"build", "load", "Projector"} <= used
    assert used <= set(safe_framework.__all__)


def test_model_methods_exist(blocks):
    """Every method that the example calls on the model is one of SafeModel's."""
    called = set(re.findall(r"\bmodel\.(\w+)", blocks("python")[0]))
    assert len(called) >= 6
    assert [name for name in called if not hasattr(safe_framework.SafeModel, name)] == []


def test_the_plugin_is_a_projector(blocks):
    """The example of a plugin projects frames, and masked ones have no effect on its tokens."""
    space = {}
    (block,) = [block for block in blocks("python") if "class MeanProjector" in block]
    exec(compile(block, "README.md", "exec"), space)
    projector = space["MeanProjector"](3, 5, bias=False)
    values, mask = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [True] * 4])
    tokens = projector(Frames(values, mask))
    assert tokens.values.shape == (2, 1, 5)
    assert tokens.mask.tolist() == [[True], [True]]
    values[0, 2:] = torch.nan
    assert torch.equal(projector(Frames(values, mask)).values, tokens.values)


def test_the_recipe_is_valid(blocks):
    """The example of a recipe has no mistake."""
    recipe = parse_recipe(blocks("toml")[0])
    assert recipe.data_files().keys() == {"train", "test", "retention", "retention_test"}


def test_the_entry_point_is_looked_up(blocks):
    """The example of an entry point is in a group that a registry reads."""
    (group,) = tomli.loads(blocks("toml")[1])["project"]["entry-points"]
    assert group in {registry.group for registry in REGISTRIES.values()}


def test_groups_exist(readme):
    """The groups that the README lists are those of the registries, and the hooks'."""
    sentence = re.search(r"The\sgroups are [^\n]*\n?.*?\.hooks`", readme, re.DOTALL)[0]
    listed = re.findall(r"`(?:safe_framework)?\.(\w+)`", sentence)
    groups = {registry.group.rpartition(".")[2] for registry in REGISTRIES.values()}
    assert set(listed) == groups | {"hooks"}


def test_make_targets_exist(readme):
    """Every target that the README names is in the Makefile."""
    named = set(re.findall(r"make ([a-z][a-z-]+)  |`make ([a-z-]+)`", readme))
    targets = {first or second for first, second in named}
    assert {
        "demo",
        "test",
        "lint",
        "check-real",
        "check-zoo",
        "check-gpu",
        "check-torchaudio",
        "check-browser",
        "check-harness",
        "check-deepspeed",
    } == targets
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_commands_exist(readme, capsys):
    """Every command of ``safe`` that the README names answers ``--help``."""
    named = set(re.findall(r"(?:^|`)safe ([a-z]+)", readme, re.MULTILINE))
    assert len(named) == 16
    for command in named:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: safe {command}" in capsys.readouterr().out


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_shipped_plugins_are_listed(readme, registry):
    """The table of what ships has every plugin of this distribution."""
    mine = [point.name for point in registry.points() if point.dist.name == "safe-framework"]
    assert mine
    rows = [line for line in readme.splitlines() if line.startswith("| ")]
    assert [name for name in mine if not any(f"`{name}`" in row for row in rows)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    """Every relative link of a document, and every path in backticks, exists."""
    text = (ROOT / document).read_text("utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    paths = re.findall(r"`((?:tests|docs)/[\w/.]+)`", text)
    home = (ROOT / document).parent
    assert [link for link in links if not (home / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_area_has_a_line():
    """The page that says where a test goes names each folder of tests."""
    page = (ROOT / "tests" / "README.md").read_text("utf-8")
    areas = [path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))]
    assert len(areas) >= 10
    assert [area for area in areas if f"`{area}/`" not in page] == []


@pytest.mark.real
def test_the_example_runs(blocks, tmp_path, monkeypatch, capsys):
    """The Python example works as it is written, on the real models."""
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert "trainable params" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_config.json").is_file()
