"""What is wrong with a recipe's data that shows without its encoders: rows, fields and pictures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import attrs

from safe_framework.config.schema import Recipe
from safe_framework.data.addresses import SOUNDS, sources_of
from safe_framework.data.aligned_words import align_of
from safe_framework.data.chat_template import QUESTION
from safe_framework.data.conversations import turns_of, whole_of
from safe_framework.data.fields import (
    FOREIGN,
    TEXTS,
    RowFields,
    dataset_of,
    no_kind_error,
    plain_fields,
    row_fields,
    unread_error,
)
from safe_framework.data.pictures import RowPictures, blind_base
from safe_framework.data.questions import question_and_bank
from safe_framework.data.readers import Row, Source, is_dataset, iterate_rows, no_rows
from safe_framework.data.tasks import TaskFormat, text_of
from safe_framework.errors import DataError
from safe_framework.pretrained.base_outline import takes_pictures
from safe_framework.utils.progress import ProgressCallback, no_progress


def missing_sources(recipe: Recipe) -> DataError | None:
    """The error that a run could not be evaluated on what ``[data]`` names; None if it could."""
    files = {key.partition(" of ")[0] for key in recipe.data_files()}
    if missing := [key for key in ("train", "test", "retention_test") if key not in files]:
        return DataError(
            f"a run needs {' and '.join(f'`{key}`' for key in missing)} in [data]",
            hint="name a file for each in the recipe",
        )
    return None


def lacking(recipe: Recipe) -> list[DataError]:
    """What a run would be refused for after it has begun: data and libraries that are not there."""
    found, named = list[DataError](), recipe.data_files() if recipe.data else {}
    if recipe.retention and "retention" not in named:
        found.append(no_retention_texts())
    for spec in recipe.retention:
        if "foreign" in (spec.options.get("counterfactual") or ()) and "foreign" not in named:
            found.append(no_foreign_samples())
    if recipe.monitor and not {"retention", "retention_validation"} & named.keys():
        found.append(no_texts_to_monitor())
    if not any(spec.features for spec in recipe.modalities.values()):
        found.append(nothing_to_train())
    tracker = recipe.training.report_to
    for module, needed, hint in (
        ("matplotlib", True, "pip install 'safe-framework[report]'"),
        (tracker, tracker != "none", f"pip install {tracker}"),
    ):
        if needed and find_spec(module) is None:
            found.append(DataError(f"a run needs `{module}`, which is not installed", hint=hint))
    return found


def nothing_to_train() -> DataError:
    """The error that no modality of a run gives more than its transcript."""
    return DataError(
        "no modality has features, so that nothing of an adapter could be trained",
        hint="build the model and save it: `safe_framework.build(...).save_pretrained(...)`",
    )


def no_retention_texts() -> DataError:
    """The error that there is nothing to hold the base to."""
    return DataError(
        "[[retention]] needs text of the base's own domain",
        hint='add `retention = "texts.jsonl"` to [data]',
    )


def no_foreign_samples() -> DataError:
    """The error that there are no irrelevant samples."""
    return DataError(
        '`counterfactual` names "foreign", but there is no foreign sample',
        hint='add `foreign = "foreign.jsonl"` to [data]: rows that name a file each',
    )


def no_texts_to_monitor() -> DataError:
    """The error that retention cannot be measured while training goes on."""
    return DataError(
        "[monitor] needs text of the base's own domain to measure retention on",
        hint='add `retention_validation = "texts.jsonl"` or `retention` to [data]',
    )


@attrs.frozen
class Preview:
    """What was seen.

    Attributes:
        errors: for which a run would be refused.
        skipped: of rows that a run would leave out.
        unopened: the keys of datasets on the hub, which were not looked at.
    """

    errors: tuple[DataError, ...]
    skipped: tuple[DataError, ...]
    unopened: tuple[str, ...]


def preview(recipe: Recipe, progress: ProgressCallback = no_progress) -> Preview:
    """Read every row of a recipe's files and folders, and open every picture and sound.

    Other samples must be there; whether they can be read is for ``check_data`` to say, which needs
    the encoders.

    Args:
        recipe: its data may be none.
        progress: called while pictures and sounds are opened.
    """
    errors: list[DataError] = []
    faults: list[DataError] = []
    unread, unopened = list[RowFields](), list[str]()
    for key, source in recipe.data_files().items() if recipe.data else ():
        if is_dataset(source):
            unopened.append(key)
            continue
        fields = row_fields(recipe, key)
        pictures = RowPictures(
            recipe.modalities,
            lambda: takes_pictures(recipe.base) is not False,
            label=f"opening pictures of {key}",
            progress=progress,
        )
        try:
            faults += _faults(recipe, key, source, fields, pictures, progress)
        except DataError as error:  # of the whole source, or of a bank that several ask
            errors += [error] if str(error) not in map(str, errors) else []
        if pictures.blind is not None:
            errors.append(blind_base(recipe.base.model, *pictures.blind))
        unread.append(fields)
    if any(fields.unread for fields in unread):
        errors.append(unread_error(unread))
    if recipe.evaluation.by is not None and _lacks(recipe, recipe.evaluation.by):
        errors.append(no_kind_error(recipe.evaluation.by))
    if recipe.data is not None and recipe.data.on_bad_row == "skip":
        return Preview(tuple(errors), tuple(faults), tuple(unopened))
    return Preview((*errors, *faults), (), tuple(unopened))


def _lacks(recipe: Recipe, field: str) -> bool:
    """Whether no row that is evaluated has a field; False where not all of them were opened."""
    evaluated = {
        key: source
        for key, source in (recipe.data_files() if recipe.data else {}).items()
        if key == "retention_test" or key.partition(" of ")[0] == "test"
    }
    if any(is_dataset(source) for source in evaluated.values()):
        return False
    for key, source in evaluated.items():
        fields = row_fields(recipe, key)
        with suppress(DataError):  # which was told of already
            if any(
                row.error is None and field in plain_fields(fields.of(row))
                for row in iterate_rows(source)
            ):
                return False
    return True


def _faults(
    recipe: Recipe,
    key: str,
    source: Source,
    fields: RowFields,
    pictures: RowPictures,
    progress: ProgressCallback,
) -> Iterator[DataError]:
    """The first error of each row that has one."""
    assert recipe.data is not None
    one = dataset_of(recipe.data, key)
    question, bank = question_and_bank(one.question, recipe.folder)
    reading = TaskFormat(
        task=one.task,
        prompt=one.prompt or QUESTION,
        question=question,
        bank=bank,
        labels=one.labels,
    )
    bad, rows = dict[str, DataError](), 0
    sounds: dict[Path, tuple[str, str]] = {}
    for row in iterate_rows(source):
        rows += 1
        try:
            if row.error is not None:
                raise row.error
            parts = whole_of if key in TEXTS else turns_of
            known = fields.of(row)
            for part in [known] if key in FOREIGN else parts(known, recipe.modalities):
                for name, file in _read(part, key, reading, recipe, pictures):
                    sounds.setdefault(file, (row.place, name))
            fields.note(row)
        except DataError as error:
            bad[row.place] = error
    if not rows:
        raise no_rows(source)
    yield from (pictures.faults() | _sound_faults(sounds, key, progress) | bad).values()


def _sound_faults(
    sounds: Mapping[Path, tuple[str, str]], key: str, progress: ProgressCallback
) -> dict[str, DataError]:
    """The error of each row whose sound cannot be read, several being read at a time."""
    found: dict[str, DataError] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of channels that cancel each other: training says it
        faults = pool.map(_fault_of, sounds)
        for done, (file, fault) in enumerate(zip(sounds, faults, strict=True), 1):
            place, name = sounds[file]
            if fault is not None:
                message = f"{place}: `{name}`: {fault.message}"
                found.setdefault(place, DataError(message, hint=fault.hint))
            progress(f"opening sounds of {key}", done, len(sounds))
    return found


def _fault_of(sound: Path) -> DataError | None:
    from safe_framework.data.audio import read_audio

    try:
        read_audio(sound)
    except DataError as error:
        return error
    return None


def _read(
    row: Row, key: str, reading: TaskFormat, recipe: Recipe, pictures: RowPictures
) -> Iterator[tuple[str, Path]]:
    """Refuse a row that cannot be used, and give the sound files that it names."""
    if key in TEXTS:
        text_of(row)
        seen = pictures.of(row, by_file_name=True)
        asked = row.values.get("answer") or row.values.get("answers")
        if not (key == "retention_test" and seen and asked):  # whose sample nobody reads
            return
    named = sources_of(row, recipe.modalities, by_file_name=key not in TEXTS)
    if key not in FOREIGN and key not in TEXTS:
        counts = {name: len(each) for name, each in named.items()}
        reading.prompt_of(row, counts)
        reading.answer_of(row)
        align_of(row, counts)
        pictures.of(row)
    for name, each in named.items():
        for held in each:
            if isinstance(held, Path) and not os.path.isfile(held):
                raise DataError(
                    f"{row.place}: `{name}`: there is no file `{held}`", hint="correct its name"
                )
            if isinstance(held, Path) and held.suffix.lower() in SOUNDS:
                yield name, held
