"""What to check: all that a recipe names, or one source on its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from safe_framework.config.read import read_recipe
from safe_framework.config.schema import mixed
from safe_framework.data.addresses import SOUNDS, listed
from safe_framework.data.checks import check_data
from safe_framework.data.checks.findings import DataReport
from safe_framework.data.checks.rows import SampleRequirements
from safe_framework.data.fields import row_fields
from safe_framework.data.pictures import FIELDS, SUFFIXES
from safe_framework.data.readers import READERS, is_archive, is_dataset, iterate_rows
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.samples import read_sound
from safe_framework.data.tasks import CAPTIONS, CLASSES, QUESTIONS, TaskFormat
from safe_framework.errors import DataError, SafeError
from safe_framework.utils.progress import ProgressCallback, no_progress

TASK_OF = {"caption": CAPTIONS, "label": CLASSES}
"""The task of a file whose rows have no ``answer`` but this."""

_ARRAYS = SUFFIXES | {".npy", ".npz"}
_ROWS_SAMPLED = 100  # rows, to see which fields hold samples


def check_target(
    target: str,
    *,
    longest: float,
    rate: int | None = None,
    progress: ProgressCallback = no_progress,
) -> DataReport:
    """Check a recipe's data against its encoders, or one source for what can be seen in it.

    Args:
        target: a recipe's file or its name in the catalogue; or a data file, a folder, or a
            dataset as ``hf:owner/name:split``.
        longest: seconds above which a recording is long.
        rate: that recordings of one source should have at least, in hertz.
        progress: called after each row.

    Raises:
        SafeError: the recipe has mistakes, or an encoder of it cannot be had.
    """
    path = Path(target)
    if is_dataset(target) or path.is_dir() or path.suffix.lower() in READERS or is_archive(path):
        return _check_source(target, longest, rate, progress)
    from safe_framework.config.plugins import encoders_of

    recipe = read_recipe(target)
    data = RecipeData(recipe)
    expected = {
        name: SampleRequirements(
            encoder, encoder.sampling_rate is not None, longest, encoder.sampling_rate
        )
        for name, encoder in encoders_of(recipe).items()
    }
    return check_data(
        data.sources,
        expected,
        question=data.spec.question if isinstance(data.spec.question, str) else "",
        fields={key: row_fields(recipe, key) for key in data.sources},
        base=recipe.base.model,
        takes_pictures=lambda: data.takes_pictures,
        readings={
            mixed(key, name): data.reading(name, rendered=False)
            for name in data.spec.datasets()
            for key in ("train", "test")
        },
        progress=progress,
    )


def _check_source(
    target: str, longest: float, rate: int | None, progress: ProgressCallback
) -> DataReport:
    source = target if is_dataset(target) else Path(target)
    kinds, texts, names = dict[str, bool](), True, set[str]()
    for row in islice(iterate_rows(source) if _can_open(source) else (), _ROWS_SAMPLED):
        names |= row.values.keys()
        texts &= row.error is not None or ("text" in row.values and "answer" not in row.values)
        for field, held in row.values.items():
            value = _first(held)
            if field in kinds or (field in FIELDS and not _is_array(value)):
                continue  # a picture for the base, unless a recipe says otherwise
            if (sound := _is_sound(value)) is not None:
                kinds[field] = sound
    expected = {
        name: SampleRequirements(None, sound, longest, rate) for name, sound in kinds.items()
    }
    asked = "" if Path(target).is_dir() else None  # a recipe says what is asked of a folder
    key = "retention" if texts and not kinds and not names & TASK_OF.keys() else "train"
    asked_of = [TASK_OF[name] for name in TASK_OF if name in names and "answer" not in names]
    reading = TaskFormat(task=asked_of[0] if asked_of else QUESTIONS, question=asked)
    return check_data({key: source}, expected, readings={key: reading}, progress=progress)


def _can_open(source: Path | str) -> bool:
    try:
        next(iter(iterate_rows(source)), None)
    except SafeError:  # which the check itself reports
        return False
    return True


def _first(value: Any) -> Any:
    """A field's value, or the first where it holds several."""
    try:
        return next(iter(listed(value, "", "")), None)
    except DataError:
        return value


def _is_array(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("array") is not None
    return isinstance(value, str) and Path(value).suffix.lower() in _ARRAYS - SUFFIXES


def _is_sound(value: Any) -> bool | None:
    """Whether a field holds sounds; None if it holds no sample at all."""
    if isinstance(value, str):
        suffix = Path(value).suffix.lower()
        return True if suffix in SOUNDS else False if suffix in _ARRAYS else None
    if not isinstance(value, Mapping) or not {"bytes", "array", "path"} & value.keys():
        return None
    if value.get("bytes") is None and value.get("array") is None:
        return _is_sound(value.get("path"))
    try:
        read_sound(value)
    except SafeError:
        return False
    return True
