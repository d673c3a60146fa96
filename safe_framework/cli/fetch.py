"""``safe fetch NAME...``: have checkpoints and sprites ready before they are needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "make checkpoints and sprites ready in the cache, and say where each is"
    parser = commands.add_parser("fetch", help=text, description=text)
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a checkpoint or a set of sprites that `safe list` shows, or a hub id `owner/name`",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.pretrained.sprite_sets import sprite_folder
    from safe_framework.utils import catalogue

    for name in arguments.names:
        find = sprite_folder if name in catalogue.sprites() else _checkpoint
        print(f"{name}: {find(name)}")
    return 0


def _checkpoint(name: str) -> Path:
    """A checkpoint's folder, downloaded from the hub if it is there."""
    from safe_framework.pretrained.hub import download
    from safe_framework.pretrained.location import resolve, revision_of

    place = resolve(name)
    return Path(place) if Path(place).is_dir() else download(place, revision_of(name))
