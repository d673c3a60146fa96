"""``docs/compatibility.md`` is of the types that transformers has."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from tests.zoo.models import types

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
READS = {"text": "causal", "image and text": "image_text", "sequence to sequence": "seq2seq"}


def test_every_type_is_on_the_page() -> None:
    """The page has one line for each type, and none of another."""
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    found = [(READS[reads], name) for name, reads in rows if reads in READS]
    assert sorted(found) == sorted(types())


def test_it_is_of_the_installed_version() -> None:
    """The page names the version of transformers that the types are of."""
    assert f"transformers {version('transformers')} " in PAGE.read_text("utf-8")


def test_nothing_fails() -> None:
    """No type on the page is marked as failing a law."""
    text = PAGE.read_text("utf-8")
    assert "**no**" not in text
    assert "Failing: 0." in text
