"""Cards: what is known of a checkpoint, and the package that holds its weights, if one does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import tomli
from attrs.validators import deep_iterable, deep_mapping, in_, instance_of, matches_re, optional

from safe_framework.errors import CheckpointError

_Record = TypeVar("_Record", "Card", "Package")

_text = attrs.field(validator=instance_of(str))


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen(kw_only=True)
class Package:
    """Where an ordinary Python distribution keeps a checkpoint.

    Attributes:
        distribution: its name in the package index.
        version: the one version that is asked for.
        module: the folder that it installs.
        file: the weights, relative to the module.
        companions: further files that the conversion reads, relative to the module.
        sha256: of the weights, in hexadecimal.
        format: ``"gguf"``, ``"ctranslate2"``, ``"onnx"`` or ``"torch"``.
    """

    distribution: str = _text
    version: str = _text
    module: str = _text
    file: str = _text
    sha256: str = attrs.field(validator=[instance_of(str), matches_re("[0-9a-f]{64}")])
    format: str = attrs.field(validator=in_(("gguf", "ctranslate2", "onnx", "torch")))
    companions: tuple[str, ...] = attrs.field(
        default=(),
        converter=_listed,
        validator=deep_iterable(instance_of(str), instance_of(tuple)),
    )

    @property
    def requirement(self) -> str:
        """How pip is asked for it."""
        return f"{self.distribution}=={self.version}"


@attrs.frozen(kw_only=True)
class Card:
    """One checkpoint.

    Attributes:
        name: what ``locate`` takes; also the name of the card's file.
        kind: ``"language-model"``, ``"vision-language-model"``, ``"audio-encoder"`` or
            ``"image-encoder"``.
        summary: one line.
        licence: its SPDX identifier.
        paper: where it is described.
        facts: sizes and rates, such as ``hidden_size``.
        hub: the checkpoint's hub id; None where only a package has it.
        package: the distribution that holds the weights; None where only the hub has them.
        revision: the commit on the hub that the facts are of; None where it is not known.
        sources: pages that the facts are from.
        config: what decides the sizes, as in the checkpoint's ``config.json``; may be empty.
        preprocessor: the same of its ``preprocessor_config.json``.
    """

    name: str = _text
    kind: str = _text
    summary: str = _text
    licence: str = _text
    paper: str = _text
    facts: Mapping[str, int] = attrs.field(
        validator=deep_mapping(instance_of(str), instance_of(int))
    )
    hub: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    package: Package | None = attrs.field(default=None, validator=optional(instance_of(Package)))
    revision: str | None = attrs.field(
        default=None, validator=optional([instance_of(str), matches_re("[0-9a-f]{40}")])
    )
    sources: tuple[str, ...] = attrs.field(
        default=(),
        converter=_listed,
        validator=deep_iterable(matches_re("https://.+"), instance_of(tuple)),
    )
    config: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    preprocessor: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))

    def __attrs_post_init__(self) -> None:
        """See that the weights are somewhere."""
        if self.hub is None and self.package is None:
            raise ValueError("it has neither `hub` nor `[package]`, one of which holds the weights")

    @property
    def hub_id(self) -> str:
        """The hub id of a checkpoint that has no package."""
        assert self.hub is not None
        return self.hub

    @property
    def page(self) -> str:
        """Where a person reads more about it."""
        return self.sources[0] if self.hub is None else f"https://huggingface.co/{self.hub}"


def read_card(path: Path) -> Card:
    """Read one card.

    Raises:
        CheckpointError: it is not TOML, or lacks or misspells something.
    """
    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise CheckpointError(f"the card `{path}` cannot be read: {error}") from error
    package = table.get("package")
    if isinstance(package, dict):
        table["package"] = _record(Package, package, f"`[package]` of the card `{path}`")
    return _record(Card, table, f"the card `{path}`")


def _record(kind: type[_Record], table: Mapping[str, Any], where: str) -> _Record:
    fields = attrs.fields_dict(kind)
    needed = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    if unknown := sorted(table.keys() - fields.keys()):
        raise CheckpointError(f"{where} has the unknown key `{unknown[0]}`")
    if missing := sorted(needed - table.keys()):
        raise CheckpointError(f"{where} lacks the key `{missing[0]}`")
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} is not valid: {error.args[0]}") from error
