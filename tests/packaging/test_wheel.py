"""The wheel holds what ships, and nothing else."""

import zipfile
from pathlib import Path

import pytest

FOLDERS = {
    "safe_framework": "safe_framework",
    "safe_framework_plugins": "plugins/safe_framework_plugins",
    "safe_framework_registry": "registry/safe_framework_registry",
}


@pytest.fixture(scope="module")
def names(wheel):
    """Every file of the wheel, by its path."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files(root, package):
    """The files of an import package on disk, by their path in a wheel."""
    folder = root / FOLDERS[package]
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {(Path(package) / path.relative_to(folder)).as_posix() for path in found}


def test_three_packages(names):
    """The wheel's top-level names are exactly the three packages and its own metadata."""
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(FOLDERS)
    assert len(top) == len(FOLDERS) + 1


@pytest.mark.parametrize("package", FOLDERS)
def test_whole_packages(root, names, package):
    """Every file of a package on disk is in the wheel, data and licences too, and no other."""
    on_disk = files(root, package)
    assert len(on_disk) > 5
    assert {name for name in names if name.startswith(f"{package}/")} == on_disk


def test_kinds_of_data(names):
    """What is read at run time beside the code is there: recipes, cards, clips, texts, pages."""
    suffixes = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert {".toml", ".yaml", ".jsonl", ".ogg", ".npz", ".html", ".css", ".typed"} <= suffixes
    licences = [name for name in names if name.endswith("/LICENSE")]
    own = [name for name in licences if ".dist-info/" not in name]
    assert len(own) == 7  # instruments twice, joined, pairs, foreign sounds, depth maps, texts
    assert len(licences) == 8


def test_entry_points_lead_somewhere(metadata, names):
    """The module of every entry point and of the command is a file of the wheel."""
    groups = [*metadata["entry-points"].values(), metadata["scripts"]]
    modules = [target.partition(":")[0] for group in groups for target in group.values()]
    assert len(modules) >= 5
    for module in modules:
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & names, module


def test_no_scripts_that_made_the_data(names):
    """The scripts that cut the clips stay in the repository."""
    assert not [name for name in names if "tools/" in name or name.startswith("tests/")]
