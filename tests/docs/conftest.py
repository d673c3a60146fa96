"""The documentation as text, and the code blocks in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def readme():
    """The text of the README."""
    return (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="session")
def blocks(readme):
    """The README's code blocks by language, in order; each language that is asked for has some."""

    def of(language):
        found = [code for kind, code in _BLOCK.findall(readme) if kind == language]
        assert found
        return found

    return of


@pytest.fixture(scope="session")
def page_blocks():
    """The code blocks of a page by its path and their language; there are some."""

    def of(path, language):
        text = (ROOT / path).read_text("utf-8")
        found = [code for kind, code in _BLOCK.findall(text) if kind == language]
        assert found
        return found

    return of
