"""Whether a recipe's base will do, as far as files say: what ``safe check`` finds before loading.

Neither torch nor transformers is imported: what is known of the types of transformers' models is
kept in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from safe_framework.config.diagnostics import Finding, RecipeError, locate
from safe_framework.config.schema import Recipe
from safe_framework.data.fields import FOREIGN, row_fields
from safe_framework.data.pictures import FIELDS
from safe_framework.data.readers import is_archive, is_dataset, iterate_rows
from safe_framework.errors import CheckpointError, SafeError, cannot_transcribe
from safe_framework.interfaces import registry
from safe_framework.pretrained.base_outline import (
    BaseOutline,
    known_release,
    known_types,
    outline_of,
)
from safe_framework.pretrained.location import composed_folder, is_hub_id, unknown_checkpoint
from safe_framework.pretrained.quantised import (
    quantisation_of,
    refuse_missing_library,
    untested,
)
from safe_framework.utils import catalogue
from safe_framework.utils.suggest import nearest

_MODEL = ("base", "model")
_ROWS_READ = 1000
"""Rows of each file in which pictures are looked for; training reads all of them."""
_ADAPTER = "adapter_config.json"


@attrs.frozen
class Pictures:
    """In which of a source's first rows there are pictures.

    Attributes:
        key: of ``[data]``.
        having: the place of the first row with one; empty if no row has any.
        lacking: the place of the first row without; empty if each has some.
    """

    key: str
    having: str = ""
    lacking: str = ""


def _transcripts(recipe: Recipe) -> Iterator[Finding]:
    """Modalities that want transcripts of an encoder that writes none, or give nothing at all."""
    for name, spec in recipe.modalities.items():
        path = ("modalities", name)
        if spec.written is None and not spec.features:
            message = f"`{name}` would give the base nothing: it has no transcript either"
            yield Finding((*path, "features"), message, "set `transcript`, or leave it out")
        if spec.written is None:
            continue
        from safe_framework.interfaces.encoder import TranscribingEncoder

        if not issubclass(registry.encoders.load(spec.encoder.use), TranscribingEncoder):
            found = cannot_transcribe(spec.encoder.use, name)
            yield Finding((*path, "transcript"), found.message, found.hint)


def check_base(recipe: Recipe) -> list[str]:
    """What is worth knowing of a recipe's base, a line for each thing.

    Where its config is not on this machine, nothing can be said.

    Raises:
        RecipeError: the base will not do for this recipe; every reason is shown.
    """
    findings: list[Finding] = [*_transcripts(recipe)]
    base = outline_of(recipe.base)
    rows = [_pictures(key, source, recipe) for key, source in recipe.data_files().items()]
    if base is None:
        findings += _misnamed(recipe)
    else:
        findings += [*_unsupported(base), *_layers(recipe, base), *_side(recipe, base)]
        findings += [*_pictures_in_vain(base, rows), *_pictures_missing(base, rows)]
        findings += [*_other_base(recipe, base), *_quantised(recipe, base)]
    if findings:
        raise RecipeError.of(locate(findings, recipe.text, recipe.source))
    return [] if base is None else list(_notes(base, rows))


def _misnamed(recipe: Recipe) -> Iterator[Finding]:
    """A name that is that of no checkpoint, or of a folder without a config."""
    name, spec = recipe.base.model, recipe.base
    there = composed_folder(name).is_dir()
    if there and spec.gguf_file is None:
        yield Finding(
            _MODEL,
            f"the folder `{name}` has no config.json that can be read",
            "name the folder of a checkpoint, as `save_pretrained` writes it",
        )
    elif spec.compose is None and not (there or name in catalogue.cards() or is_hub_id(name)):
        error = unknown_checkpoint(name)
        yield Finding(_MODEL, error.message, error.hint)


def _unsupported(base: BaseOutline) -> Iterator[Finding]:
    """A type that transformers has no model for that continues texts, or that is refused."""
    name, known = base.model_type, base.known
    if known is not None and known.refused:
        yield Finding(
            _MODEL,
            f"a base of type `{name}` cannot be given a modality: {known.refused}",
            "choose a base of another type: docs/compatibility-table.md has them",
        )
    if known is not None or not name or "auto_map" in base.config or _newer_transformers():
        return
    yield Finding(
        _MODEL,
        f"transformers {known_release()} has no model of type `{name}` that continues texts",
        nearest(name, known_types()) or "docs/compatibility-table.md has all types",
    )


def _newer_transformers() -> bool:
    """Whether the installed transformers may have types that are not known here."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return False
    return _release(installed) > _release(known_release())


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _layers(recipe: Recipe, base: BaseOutline) -> Iterator[Finding]:
    """Fused layers that the base does not have, or that run only beside a picture."""
    count = base.layers
    if count is None or recipe.base.layers_path is not None or recipe.base.side != "decoder":
        return
    for name, spec in recipe.modalities.items():
        path = ("modalities", name, "fusion", "layers")
        named = spec.fusion.options.get("layers")
        layers = (
            [one for one in named if isinstance(one, int)]
            if isinstance(named, list | tuple)
            else []
        )
        if wrong := [one for one in layers if not -count <= one < count]:
            yield Finding(
                path,
                f"`layers` names {wrong}, but the base has layers 0 to {count - 1}",
                "choose among those; negative numbers count from the last",
            )
        elif seeing := [one for one in layers if one % count in base.picture_layers]:
            others = ", ".join(map(str, sorted(base.picture_layers)))
            yield Finding(
                path,
                f"`layers` names {seeing}, which attend to pictures and run only beside one",
                f"choose others than {others}",
            )


def _side(recipe: Recipe, base: BaseOutline) -> Iterator[Finding]:
    if recipe.base.side == "encoder" and not base.decodes_separately:
        yield Finding(
            ("base", "side"),
            f"a base of type `{base.model_type}` has no encoder beside its decoder",
            'leave out `side`, which is then "decoder"',
        )


def _pictures_in_vain(base: BaseOutline, rows: list[Pictures]) -> Iterator[Finding]:
    """Rows with pictures that the base cannot be shown."""
    having = [one for one in rows if one.having]
    if not having:
        return
    wants = base.known.torchvision if base.known is not None else ""
    if not base.sees:
        why = f"a base of type `{base.model_type}` takes none"
        hint = 'choose a base that takes pictures, or add `ignore = ["image"]` to [data]'
    elif not base.has_processor:
        why = f"the folder `{base.folder}` has no processor that could read it"
        hint = "AutoProcessor.from_pretrained(...).save_pretrained(folder)"
    elif find_spec("PIL") is None:
        why, hint = "Pillow is not installed", "pip install 'safe-framework[image]'"
    elif wants == "pictures" and find_spec("torchvision") is None:
        why = f"bases of type `{base.model_type}` read pictures with torchvision alone"
        hint = "install the torchvision that fits your torch: https://pytorch.org"
    else:
        return
    for one in having:
        yield Finding(("data", one.key), f"{one.having} has a picture, but {why}", hint)


def _pictures_missing(base: BaseOutline, rows: list[Pictures]) -> Iterator[Finding]:
    """Rows without a picture, where the base runs on no text without one."""
    if base.known is None or not base.known.needs_picture:
        return
    for one in rows:
        if one.lacking:
            yield Finding(
                ("data", one.key),
                f"{one.lacking} has no picture, without which a base of type "
                f"`{base.model_type}` reads no text",
                "add an `image` to each row, or choose another base",
            )


def _other_base(recipe: Recipe, base: BaseOutline) -> Iterator[Finding]:
    """An adapter's recipe whose base has become another since it was trained."""
    path, architectures = recipe.folder / _ADAPTER, base.config.get("architectures")
    if not path.is_file() or not architectures:
        return
    try:
        trained_on = str(json.loads(path.read_text("utf-8"))["base"]["class"])
    except (OSError, ValueError, KeyError, TypeError):  # no adapter of ours
        return
    if trained_on not in architectures:
        yield Finding(
            _MODEL,
            f"the adapter beside this recipe was trained on a `{trained_on}`, and the base is a "
            f"`{architectures[0]}`",
            "name the base that it was trained on",
        )


def _quantised(recipe: Recipe, base: BaseOutline) -> Iterator[Finding]:
    """A base whose quantised weights nothing here reads."""
    try:
        refuse_missing_library(recipe.base.model, base.config)
    except CheckpointError as error:
        yield Finding(_MODEL, error.message, error.hint)


def _notes(base: BaseOutline, rows: list[Pictures]) -> Iterator[str]:
    known = base.known
    if base.sees and not base.has_processor:
        yield "its base takes pictures, but has no processor beside it: it will read text alone"
    elif known is not None and known.torchvision and find_spec("torchvision") is None:
        seen = "pictures or videos" if known.torchvision == "pictures" else "videos"
        yield f"its base cannot be given {seen}: torchvision is not installed"
    if (quantised := quantisation_of(base.config)) is not None:
        yield untested(quantised)
    if base.sees and rows and not any(one.having for one in rows):
        yield "its base takes pictures, and no row has one: what it keeps of seeing is unknown"


def _pictures(key: str, source: Path | str, recipe: Recipe) -> Pictures:
    """Which of the first rows have pictures, where the source is a file that is quickly read."""
    path = Path(source)
    if is_dataset(source) or path.suffix == ".parquet" or path.is_dir() or is_archive(path):
        return Pictures(key)
    if recipe.data is None or key in FOREIGN:
        return Pictures(key)
    fields = row_fields(recipe, key)
    names = [name for name in FIELDS if name not in recipe.modalities]
    having = lacking = ""
    try:
        for row in map(fields.of, islice(iterate_rows(source), _ROWS_READ)):
            if row.error is None:
                held = any(_is_given(row.values.get(name)) for name in names)
                having = having or (row.place if held else "")
                lacking = lacking or (row.place if not held else "")
    except SafeError:  # which `safe data check` reports
        return Pictures(key)
    return Pictures(key, having, lacking)


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", [])
