"""What the README and the pages beside it say exists, and their examples do what they say."""

import ast
import re
from pathlib import Path

import pytest
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
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/speed.md",
    "tests/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)


def test_the_readme_is_short():
    """The README is read to its end: it has at most 150 lines, and the rest is linked."""
    assert 120 <= len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_python_compiles_and_names_exist(blocks, page_blocks):
    """Each block is Python, and what it takes from the package is public."""
    used = set()
    for block in [*blocks("python"), *page_blocks("docs/python.md", "python")]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "safe_framework":
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module == "safe_framework":
                used |= {alias.name for alias in node.names}
    assert {"build", "load", "pipeline", "Projector"} <= used
    assert used <= set(safe_framework.__all__)


def test_model_methods_exist(blocks, page_blocks):
    """Every method that the examples call on the model is one of SafeModel's."""
    text = "\n".join([blocks("python")[0], *page_blocks("docs/python.md", "python")])
    called = set(re.findall(r"\bmodel\.(\w+)", text))
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


def test_make_targets_exist(readme):
    """Every target that the README and CONTRIBUTING name is in the Makefile, and the other way."""
    text = readme + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE)
    named = {first or second for first, second in found}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert {"demo", "test", "lint"} <= named
    assert named == set(phony.split()) - {"help"}


def test_commands_exist(readme, capsys):
    """The page of commands lists each of ``safe``, and all that are named answer ``--help``."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    listed = set(re.findall(r"^safe ([a-z]+)", page, re.MULTILINE))
    assert len(listed) == 20
    assert main([]) == 0
    shown = set(re.findall(r"^    ([a-z]+)(?:  |$)", capsys.readouterr().out, re.MULTILINE))
    assert listed == shown
    for command in listed | set(re.findall(r"(?:^|`)safe ([a-z]+)", readme, re.MULTILINE)):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: safe {command}" in capsys.readouterr().out


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_shipped_plugins_are_listed(registry):
    """The table of what ships has every plugin of this distribution."""
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8").partition("## What ships")[2]
    mine = [point.name for point in registry.points() if point.dist.name == "safe-framework"]
    assert mine
    rows = [line for line in page.splitlines() if line.startswith("| ")]
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
    anchors = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text)
    pages = [((home / link) if link else ROOT / document, anchor) for link, anchor in anchors]
    assert [(page, anchor) for page, anchor in pages if anchor not in anchors_of(page)] == []


def anchors_of(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


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
