"""Results as attrs classes, and the JSON files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.preconf.json import JsonConverter, make_converter

from safe_framework.errors import DataError

T = TypeVar("T")
Fields = Mapping[type, Sequence[str]]


def json_converter(
    *, omitted: Fields | None = None, omitted_if_default: Fields | None = None
) -> JsonConverter:
    """A converter between attrs classes and JSON.

    Args:
        omitted: fields by class that are neither written nor read; a class before those that
            hold it.
        omitted_if_default: fields by class that are only written if they differ from their
            default; of the classes in both, those of ``omitted`` come first.
    """
    converter = make_converter()
    omitted, omitted_if_default = omitted or {}, omitted_if_default or {}
    for kind in (*omitted, *(kind for kind in omitted_if_default if kind not in omitted)):
        never: Any = {name: override(omit=True) for name in omitted.get(kind, ())}
        fields: Any = {
            name: override(omit_if_default=True) for name in omitted_if_default.get(kind, ())
        } | never
        converter.register_unstructure_hook(
            kind, make_dict_unstructure_fn(kind, converter, **fields)
        )
        if never:
            converter.register_structure_hook(
                kind, make_dict_structure_fn(kind, converter, **never)
            )
    return converter


def to_json(value: Any, converter: JsonConverter, *, indent: int | None = 2) -> str:
    """The content of a JSON file.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = converter.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return f"{text}\n"


def read_json(path: Path, kind: type[T], converter: JsonConverter, *, problem: str, hint: str) -> T:
    """What a JSON file holds.

    Args:
        path: of the file.
        kind: what it should hold.
        converter: that wrote it.
        problem: what to say of a file that cannot be read, behind its name.
        hint: what to do then.

    Raises:
        DataError: it does not hold that.
    """
    try:
        return converter.loads(path.read_text("utf-8"), kind)
    except (ValueError, BaseValidationError) as error:
        raise DataError(f"`{path}` {problem}", hint=hint) from error
