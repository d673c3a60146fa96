"""The pages on compatibility are of the types that transformers has, and can be written anew."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.zoo.examine import Entry
from tests.zoo.known import FILE, known_types, written
from tests.zoo.models import types
from tests.zoo.page import LAWS, table_page, with_counts, with_gpu

DOCS = Path(__file__).parents[2] / "docs"
PAGE, TABLE = DOCS / "compatibility.md", DOCS / "compatibility-table.md"
_ROW = r"^\| `([^`]+)` \| ((?:image|sequence|text)[a-z ]*) \| (.*) \|$"
READS = {"text": "causal", "image and text": "image_text", "sequence to sequence": "seq2seq"}


def test_every_type_is_on_the_page() -> None:
    """The table has one line for each type, and none of another."""
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \|", TABLE.read_text("utf-8"), re.MULTILINE)
    found = [(READS[reads], name) for name, reads in rows if reads in READS]
    assert sorted(found) == sorted(types())


def test_it_is_of_the_installed_version() -> None:
    """The table names the version of transformers that the types are of."""
    assert f"transformers {version('transformers')} " in TABLE.read_text("utf-8")


def test_nothing_fails() -> None:
    """No type in the table is marked as failing a law, and the page says so."""
    assert "**no**" not in TABLE.read_text("utf-8")
    assert "Failing: 0." in PAGE.read_text("utf-8")


def test_the_pages_are_those_that_the_command_writes() -> None:
    """Law: the table is written whole, the page in its blocks, and the text around them stays."""
    laws = {law: "holds" for law in LAWS}
    entries = [
        Entry("causal", "gpt2", laws=laws, generates=("greedy",)),
        Entry("image_text", "llava", laws=laws, picture="processor"),
        Entry("image_text", "fuyu", laws=laws, picture="none"),
        Entry("causal", "zamba", status="refused", reason="no | layers"),
    ]
    table = table_page(entries)
    assert table.splitlines()[0] == TABLE.read_text("utf-8").splitlines()[0]
    assert "| `gpt2` | text | yes | yes | yes | yes | yes | greedy |  |  |\n" in table
    assert "| none | yes, by its processor |  |\n" in table
    assert "| none | not tried |  |\n" in table
    assert "## Refused when attached\n" in table
    assert "| `zamba` | text | no \\| layers |\n" in table
    page = PAGE.read_text("utf-8")
    counted = with_counts(page, entries)
    assert "Of **4** types (one per class), **3** hold" in counted
    assert "In 1 of 2 image-text types a picture reaches the answer, in 1 of them" in counted
    assert with_gpu(counted, "no device\n").endswith(page.partition("<!-- /gpu -->")[2])
    assert "<!-- gpu -->\nno device\n<!-- /gpu -->" in with_gpu(counted, "no device\n")
    with pytest.raises(ValueError, match="no block `gpu`"):
        with_gpu("nothing", "no device")


def test_what_is_known_without_transformers() -> None:
    """Law: the file of known types is what the command writes of the table's rows."""
    table = TABLE.read_text("utf-8")
    held, _, rest = table.partition("## Refused when attached")
    refused = re.findall(_ROW, rest.partition("## Not built")[0], re.MULTILINE)
    entries = [
        Entry(READS[reads], name, limits=(cells.split(" | ")[-1],))
        for name, reads, cells in re.findall(_ROW, held, re.MULTILINE)
    ]
    entries += [
        Entry(READS[reads], name, status="refused", reason=why) for name, reads, why in refused
    ]
    assert len(entries) > 300
    known = known_types(entries)
    assert (DOCS.parent / FILE).read_text("utf-8") == written(known)
    assert {name for _, name in types()} <= known["types"].keys()
