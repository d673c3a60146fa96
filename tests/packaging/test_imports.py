"""Who may import whom.

The registry holds data and imports nothing. The core reaches plugins through entry points alone.
A plugin imports what a third party may: the names in ``safe_framework.__all__``, and public names
of public modules. A name is public if no part of its dotted path starts with an underscore.
"""

import ast
import subprocess
import sys
from pathlib import Path

import safe_framework

ROOT = Path(__file__).parents[2]
CORE, PLUGINS, REGISTRY = "safe_framework", "safe_framework_plugins", "safe_framework_registry"


def modules(*parts):
    """The modules below a folder; there is always one."""
    found = sorted(ROOT.joinpath(*parts).rglob("*.py"))
    assert found
    return found


def imported(path):
    """The full dotted name of everything that a module imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def from_package(names, package):
    """Those of one package."""
    return [name for name in names if name.partition(".")[0] == package]


def is_public(name):
    """Whether a plugin may import it."""
    parts = name.split(".")
    if any(part.startswith("_") for part in parts):
        return False
    home = ROOT.joinpath(*parts[:2])
    is_module = home.is_dir() or home.with_suffix(".py").is_file()
    return len(parts) == 1 or parts[1] in safe_framework.__all__ or is_module


def test_core_knows_no_plugin():
    """The core never names the package of the shipped plugins, so it imports none of them."""
    assert not [path for path in modules(CORE) if PLUGINS in path.read_text("utf-8")]


def test_plugins_use_public_names():
    """A shipped plugin imports nothing of the core that a third party may not."""
    found = {path: imported(path) for path in modules("plugins")}
    of_core = {path: from_package(names, CORE) for path, names in found.items()}
    assert any(of_core.values())
    private = {path: [n for n in names if not is_public(n)] for path, names in of_core.items()}
    assert not {path: names for path, names in private.items() if names}
    assert not [path for path, names in found.items() if from_package(names, REGISTRY)]


def test_the_rule_distinguishes_public_from_private():
    """The rule of this file allows the interfaces, and forbids private modules and names."""
    assert all(map(is_public, ["safe_framework.Encoder", "safe_framework.data.audio.Waveform"]))
    private = [
        "safe_framework._pytest_plugin.register",
        "safe_framework.utils.tensors._view",
        "safe_framework.x",
    ]
    assert not any(map(is_public, private))


def test_registry_imports_nothing():
    """The registry is data: its one module imports nothing at all."""
    (module,) = modules("registry", REGISTRY)
    assert imported(module) == []


def test_tests_reach_installed_plugins_only():
    """Nothing imports the folders ``plugins`` and ``registry`` as if they were packages."""
    everything = [*modules(CORE), *modules("plugins"), *modules("tests")]
    assert not [path for path in everything for name in imported(path)
                if name.partition(".")[0] in ("plugins", "registry")]  # fmt: skip


def test_importing_it_is_light():
    """``import safe_framework`` loads nothing that takes seconds, nor what takes 30 ms."""
    heavy = ("torch", "transformers", "peft", "numpy", "matplotlib", "rich", "importlib.metadata")
    code = f"import sys, safe_framework; sys.exit(sorted({set(heavy)!r} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_exist():
    """Every name in ``__all__`` can be had, and ``dir`` shows it."""
    names = safe_framework.__all__
    assert len(names) > 10
    assert [name for name in names if getattr(safe_framework, name, None) is None] == []
    assert set(names) <= set(dir(safe_framework))
