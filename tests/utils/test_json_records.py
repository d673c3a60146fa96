"""Results in JSON files: what is written, what is left out, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from safe_framework.errors import DataError
from safe_framework.utils.json_records import json_converter, read_json, to_json


@attrs.frozen
class Row:
    """A value, and what no file can hold."""

    value: float
    sample: Any = attrs.field(default=None, eq=False)


@attrs.frozen
class Table:
    """A row, and a note that most tables lack."""

    row: Row
    note: str | None = None


CONVERTER = json_converter(omitted={Row: ("sample",)}, omitted_if_default={Table: ("note",)})


def test_what_is_omitted_is_neither_written_nor_read() -> None:
    """Law: an omitted field is in no file, also of a class within another."""
    text = to_json(Table(Row(0.5, sample=object())), CONVERTER)
    assert text == '{\n  "row": {\n    "value": 0.5\n  }\n}\n'
    assert CONVERTER.loads('{"row": {"value": 0.5, "sample": 1}}', Table).row.sample is None


def test_what_differs_from_its_default_is_written(tmp_path: Path) -> None:
    """Law: what is read is what was written."""
    table = Table(Row(0.5), note="ä")
    path = tmp_path / "table.json"
    path.write_text(to_json(table, CONVERTER, indent=None), "utf-8")
    assert path.read_text("utf-8") == '{"row": {"value": 0.5}, "note": "ä"}\n'
    assert read_json(path, Table, CONVERTER, problem="is no table", hint="repair it") == table


def test_numbers_that_json_does_not_know_are_refused() -> None:
    """Law: NaN is an error, and not a file that other readers refuse."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(Row(float("nan")), CONVERTER)


@pytest.mark.parametrize("text", ["{", "[]", '{"row": {}}', '{"row": {"value": "x"}}'])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, text: str) -> None:
    """Law: the error names the file, and what to do."""
    path = tmp_path / "table.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        read_json(path, Table, CONVERTER, problem="is no table", hint="repair it")
    assert caught.value.message == f"`{path}` is no table"
    assert caught.value.hint == "repair it"
