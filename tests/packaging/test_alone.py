"""Each module can be the first that is imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"safe_framework": ROOT, "safe_framework_plugins": ROOT / "plugins"}


def dotted():
    """Every module by its name."""
    for package, parent in FOLDERS.items():
        for path in sorted((parent / package).rglob("*.py")):
            name = ".".join(path.relative_to(parent).with_suffix("").parts)
            yield name.removesuffix(".__init__")


def imported(names, **options):
    """What ``alone.py`` says of modules, in an interpreter of its own."""
    code = f"import sys, alone; sys.exit(alone.main({list(names)!r}, **{options!r}))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)


def test_each_module_can_be_first():
    """Law: no module needs another of ours to have been imported before it."""
    names = list(dotted())
    assert len(names) > 150
    done = imported(names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(names)} modules\n"


def test_a_cycle_is_seen(tmp_path, monkeypatch):
    """Law: a module that only works behind another one is named, with its traceback."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "own" / "first.py").write_text("import own.second\nhere = 1\n")
    (tmp_path / "own" / "second.py").write_text("def f():\n    pass\nfrom own.first import here\n")
    (tmp_path / "own" / "third.py").write_text("import own.second\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = imported(["own", "own.first", "own.second", "own.third"], libraries=())
    assert done.returncode == 1
    assert done.stdout == "4 modules\nfailed: own.first\n"
    assert "cannot import name 'here'" in done.stderr
