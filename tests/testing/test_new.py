"""``safe new plugin`` writes a distribution that works at once, and writes over nothing."""

import os
import subprocess
import sys
import zipfile

import pytest
import tomli
from hatchling.builders.wheel import WheelBuilder

from safe_framework.cli import main
from safe_framework.interfaces.registry import REGISTRIES


def new(name, kind, into):
    """The exit code of the command."""
    return main(["new", "plugin", name, "--kind", kind, "--into", str(into)])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A distribution of each kind."""
    folder = tmp_path_factory.mktemp("new")
    for kind in REGISTRIES:
        assert new(f"acme-{kind}", kind, folder) == 0
    return folder


@pytest.fixture(scope="module")
def path(written, tmp_path_factory):
    """A folder with all of them installed, from wheels."""
    site, wheels = tmp_path_factory.mktemp("site"), str(tmp_path_factory.mktemp("wheels"))
    for kind in REGISTRIES:
        builder = WheelBuilder(str(written / f"acme-{kind}"))
        with zipfile.ZipFile(next(builder.build(directory=wheels))) as wheel:
            wheel.extractall(site)
    return site


@pytest.mark.slow
def test_its_tests_pass(written, path):
    """Installed, the tests of each kind pass as they were written, with warnings as errors."""
    tests = [str(written / f"acme-{kind}" / "tests") for kind in REGISTRIES]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": str(path),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(path / "examples"),
    }
    done = subprocess.run(
        [*command, "--import-mode=importlib", f"--rootdir={written}", *tests],
        capture_output=True,
        text=True,
        cwd=written,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", REGISTRIES)
def test_it_is_found_by_its_name(path, kind, capsys, monkeypatch):
    """Installed, a plugin is shown with its options, and is what its entry point says."""
    monkeypatch.syspath_prepend(str(path))
    assert main(["show", kind, f"acme-{kind}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{REGISTRIES[kind].kind} acme-{kind}, of acme-{kind} 0.1.0 (acme_")
    assert "\n  option " in shown
    assert REGISTRIES[kind].load(f"acme-{kind}").__name__.startswith("Acme")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_everything_is_filled_in(written, kind):
    """No file is empty or holds a placeholder, and the project's table is whole."""
    files = [
        file
        for file in (written / f"acme-{kind}").rglob("*")
        if file.is_file() and file.parent.name != "__pycache__"  # of other tests, which import it
    ]
    texts = {file.name: file.read_text("utf-8") for file in files}
    assert len(texts) == 5
    assert not [name for name, text in texts.items() if not text.strip() or "$" in text]
    project = tomli.loads(texts["pyproject.toml"])["project"]
    assert list(project["entry-points"]) == [REGISTRIES[kind].group]


def test_it_says_what_to_do_next(tmp_path, capsys):
    """The files are listed, then the commands."""
    assert new("acme-bell", "encoder", tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {tmp_path / 'acme-bell'}\n  pyproject.toml\n  README.md\n")
    assert out.endswith("  pip install -e '.[test]'\n  pytest\n  safe show encoder acme-bell\n")


def test_nothing_is_written_over(tmp_path, capsys):
    """A folder that is there stays as it is, even an empty one."""
    (tmp_path / "acme-bell").mkdir()
    assert new("acme-bell", "encoder", tmp_path) == 1
    assert "acme-bell` is there already\nhint: choose another" in capsys.readouterr().err
    assert list((tmp_path / "acme-bell").iterdir()) == []


def test_what_cannot_be_written_is_an_error(tmp_path, capsys):
    """A path that is no folder is named."""
    (tmp_path / "file").write_text("")
    assert new("acme-bell", "encoder", tmp_path / "file") == 1
    assert "acme-bell` cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Acme Bell", "use small letters, digits and single hyphens: `acme-bell`"),
        ("acme_bell", "single hyphens: `acme-bell`"),
        ("../acme", "single hyphens: `acme`"),
        ("acme--bell", "single hyphens: `acme-bell`"),
        ("", "such as `acme-chime`"),
        ("json", "would hide the module `json` of Python"),
        ("class", "would hide the module `class` of Python"),
        ("torch", "or of what is installed\nhint: put a word of your own before it: `acme-torch`"),
        ("whisper", "the name `whisper` is taken by another encoder"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name, words, tmp_path, capsys):
    """The message says why and gives one that can, and nothing is written."""
    assert new(name, "encoder", tmp_path) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
