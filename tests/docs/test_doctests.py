"""The examples in docstrings run and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARENTS = {"safe_framework": ROOT, "safe_framework_plugins": ROOT / "plugins"}


def modules_with_examples():
    """The dotted name of each module whose text has a prompt of the interpreter."""
    for package, parent in PARENTS.items():
        for path in sorted((parent / package).rglob("*.py")):
            if ">>> " in path.read_text("utf-8"):
                name = ".".join(path.relative_to(parent).with_suffix("").parts)
                yield name.removesuffix(".__init__")


MODULES = list(modules_with_examples())


def test_there_are_examples():
    """The list of modules below is not empty."""
    assert len(MODULES) >= 10


def test_examples_hold():
    """Every example of each module is collected and true."""
    results = {name: doctest.testmod(import_module(name)) for name in MODULES}
    assert [name for name, result in results.items() if result.attempted == 0] == []
    assert [name for name, result in results.items() if result.failed > 0] == []
