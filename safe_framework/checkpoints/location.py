"""From the name of a checkpoint to what transformers can load."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safe_framework import catalogue
from safe_framework._suggest import suggest
from safe_framework.checkpoints.card import Card, read_card
from safe_framework.checkpoints.dinov2 import write_dinov2
from safe_framework.checkpoints.gguf import write_gguf
from safe_framework.checkpoints.package import find
from safe_framework.checkpoints.whisper import write_whisper
from safe_framework.errors import CheckpointError

CONVERTERS: Mapping[str, Callable[[Path, Path], None]] = {
    "gguf": write_gguf,
    "ctranslate2": write_whisper,
    "onnx": write_dinov2,
}
"""Format of a package's file to what writes a checkpoint folder from it."""

_REVISION = 1  # of what the converters write: a higher one converts anew


def locate(name: str, *, quiet: bool = False) -> str:
    """Say where transformers finds a checkpoint.

    Args:
        name: a folder, the name of a card, or a hub id such as ``"openai/whisper-small"``.
        quiet: say nothing while a card's checkpoint is made.

    Returns:
        The folder itself; or, for a card, a folder in the user's cache, which is made once; or
        the hub id unchanged.

    Raises:
        CheckpointError: it is none of the three, or the card's weights cannot be had.
    """
    folder, cards = Path(name).expanduser(), catalogue.cards()
    if name and folder.is_dir():
        return str(folder)
    if name in cards:
        return str(_cached(read_card(cards[name]), quiet))
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return name
    raise CheckpointError(
        f"`{name}` is neither a folder, a card, nor a hub id `owner/name`",
        hint=suggest(name, cards, "cards"),
    )


def cache_folder() -> Path:
    """Where converted checkpoints are kept: ``$SAFE_CACHE``, else in the user's cache."""
    if chosen := os.environ.get("SAFE_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "safe-framework"


def _cached(card: Card, quiet: bool) -> Path:
    name = f"{card.name}-{card.package.sha256[:8]}-{_REVISION}"
    target = cache_folder() / "checkpoints" / name
    if not target.is_dir():
        with _working(f"preparing {card.name} (once, in {target.parent})", quiet):
            _make(card, target)
    return target


def _make(card: Card, target: Path) -> None:
    """Write beside the target and rename, so that what is there is always whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
        made, download = Path(scratch, "made"), Path(scratch, "download")
        made.mkdir()
        download.mkdir()
        CONVERTERS[card.package.format](find(card, download), made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, and its folder is as good
                raise


@contextmanager
def _working(message: str, quiet: bool) -> Iterator[None]:
    from rich.console import Console

    console = Console(file=sys.stderr, quiet=quiet)  # the stream itself: it may be redirected
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message)
        yield
