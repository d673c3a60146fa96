"""Which fields of a row are read, under which names, and which of them nobody asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from safe_framework.config.schema import DataSpec, MixSpec, Recipe, mixed
from safe_framework.data.addresses import SOUNDS
from safe_framework.data.pictures import FIELDS as PICTURES
from safe_framework.data.pictures import SUFFIXES as PICTURE_FILES
from safe_framework.data.questions import OF_ROW
from safe_framework.data.readers import Row
from safe_framework.data.tasks import KIND, NO_FIELDS, OWN_ANSWER
from safe_framework.errors import DataError
from safe_framework.utils.suggest import nearest
from safe_framework.utils.toml_writer import toml_text

TEXTS = ("retention", "retention_test", "retention_validation")
FOREIGN = ("foreign", "foreign_test", "foreign_validation")
_LIKENESS = 0.75  # a column that is there for another reason is not a misspelt one
_SAMPLES = {*SOUNDS, *PICTURE_FILES, ".npy", ".npz"}
_ASKED = ("question", "answer", "answers", "align", "messages")
SOURCE, SPEAKER = "source", "speaker"
ORIGINS = (SOURCE, SPEAKER)
"""Where a row's samples come from: what the splits may not share if a test is to be of others."""


@attrs.define
class RowFields:
    """The fields of one source's rows: renamed, left out, and those that nobody reads noted.

    Attributes:
        renamed: what a field is called in the source, by the name that it has here.
        ignored: fields that are left out, as if no row had them.
        read: every field that somebody reads; None if any may be.
        modalities: those of ``read`` that name samples.
        unread: the first row with each field that nobody reads, of those that hold something.
    """

    renamed: Mapping[str, str] = NO_FIELDS
    ignored: Collection[str] = ()
    read: Collection[str] | None = None
    modalities: Collection[str] = ()
    unread: dict[str, Row] = attrs.field(init=False, factory=dict)

    def of(self, row: Row) -> Row:
        """The row with its fields under the names that they have here."""
        if row.error is not None or not (self.renamed or self.ignored):
            return row
        held = {name: value for name, value in row.values.items() if name not in self.ignored}
        kept = {key: value for key, value in held.items() if key not in self.renamed.values()}
        known = {name: held[own] for name, own in self.renamed.items() if own in held}
        return attrs.evolve(row, values={**kept, **known})

    def note(self, row: Row) -> None:
        """Note what nobody reads of a row, as it is in the source."""
        if self.read is None:
            return
        own = {self.renamed[name] for name in self.read if name in self.renamed}
        for name, value in row.values.items():
            if value is None:  # a table has a column for all rows where one needs it
                continue
            private = name.startswith("__") and name.endswith("__")  # of the library that wrote it
            if not (private or name in self.read or name in own or name in self.ignored):
                self.unread.setdefault(name, row)

    @property
    def place(self) -> str:
        """The first row with a field that nobody reads; empty if there is none."""
        return next((row.place for row in self.unread.values()), "")

    def message(self) -> str:
        """What nobody reads and where it stands first; empty if all is read."""
        parts = [f"`{name}`{self._about(name)}" for name in self.unread]
        if not parts:
            return ""
        return f"{self.place}: nothing reads the field{'s' * (len(parts) > 1)} {', '.join(parts)}"

    def _about(self, name: str) -> str:
        row = self.unread[name]
        about = [f"first in {row.place}"] if row.place != self.place else []
        lacking = [one for one in self.read or () if row.values.get(one) is None]
        if tasks := [task for task, own in OWN_ANSWER.items() if own == name]:
            about.append(f'`task = "{tasks[0]}"` does')
        elif meant := nearest(name.lower(), lacking, _LIKENESS):
            about.append(meant)
        elif _names_a_sample(row.values[name]) and (
            free := [modality for modality in self.modalities if modality in lacking]
        ):
            about.append(f'to make it the `{free[0]}`: `fields = {{ {free[0]} = "{name}" }}`')
        return f" ({'; '.join(about)})" if about else ""


def _names_a_sample(value: object) -> bool:
    return isinstance(value, str) and Path(value).suffix.lower() in _SAMPLES


def row_fields(recipe: Recipe, key: str) -> RowFields:
    """The fields that a recipe reads of one source.

    Args:
        recipe: it has ``[data]``.
        key: of the source, as ``Recipe.data_files`` has it.
    """
    data = recipe.data
    assert data is not None
    if key in FOREIGN:
        return RowFields(
            data.fields, _dropped(data.ignore, data.fields, (*recipe.modalities, "file_name"))
        )
    chosen = {field for stage in recipe.curriculum for field in stage.where}
    pictures = frozenset(PICTURES) - recipe.modalities.keys()
    by = recipe.evaluation.by or KIND
    common = {*_ASKED, *OF_ROW, *ORIGINS, *PICTURES, *recipe.modalities, *chosen, by}
    if key in TEXTS:
        read = frozenset({*common, "text", "file_name"})
        return RowFields(data.fields, _dropped(data.ignore, data.fields, read - pictures), read)
    one = dataset_of(data, key)
    own = {OWN_ANSWER[one.task]} if one.task in OWN_ANSWER else set()
    alone = {"file_name"} if len(recipe.modalities) == 1 else set()
    renamed, read = one.fields or NO_FIELDS, frozenset({*common, *own, *alone})
    ignored = _dropped(one.ignore, renamed, read - pictures)
    return RowFields(renamed, ignored, read, tuple(recipe.modalities))


def _dropped(
    ignore: Sequence[str], renamed: Mapping[str, str], kept: Collection[str]
) -> frozenset[str]:
    """What a source leaves out of what ``ignore`` names, since other sources may need it."""
    return frozenset(ignore) - {renamed.get(name, name) for name in kept}


def dataset_of(data: DataSpec, key: str) -> MixSpec:
    """The dataset whose rows a source of the task has; of ``validation`` and stages, the first."""
    datasets = data.datasets()
    names = {mixed(split, name): name for name in datasets for split in ("train", "test")}
    return datasets[names.get(key, next(iter(datasets)))]


def no_kind_error(by: str) -> DataError:
    """The error that no row has the field by which ``[evaluation]`` groups them."""
    return DataError(
        f"no row of `test` or `retention_test` has the field `{by}`, which `by` in [evaluation] "
        "names",
        hint="correct its name, or leave `by` out",
    )


def unread_error(sources: Iterable[RowFields]) -> DataError:
    """The one error about all fields of some sources that nobody reads."""
    found = [one for one in sources if one.unread]
    return DataError("\n".join(one.message() for one in found), hint=ignoring(found))


def ignoring(sources: Sequence[RowFields]) -> str:
    """What to do about the fields of some sources that nobody reads."""
    names = dict.fromkeys(name for one in sources for name in one.unread)
    line = f"ignore = [{', '.join(map(toml_text, names))}]"
    return f"correct what is misspelt; if they are not to be read, add `{line}` to [data]"


def plain_fields(row: Row) -> dict[str, str | int | float | bool]:
    """The row's texts, numbers and truth values, by which rows are chosen and grouped."""
    return {
        name: value
        for name, value in row.values.items()
        if isinstance(value, (str, int, float, bool))
    }
