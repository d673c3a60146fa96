"""What was found out about a checkpoint before, kept on disk.

Running a base to see its layers, and hashing its weights, take longer than loading it. What they
found holds for the same files under the same versions. It is used only inside the call that
loads the base, before anybody else has it in hand: a model that a caller brings is looked at anew,
and so is every model by ``save_pretrained`` and ``safe verify``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from torch import nn

from safe_framework.errors import CheckpointError
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.versions import FRAMEWORK_VERSION

if TYPE_CHECKING:
    from safe_framework.config.schema import BaseSpec

_REVISION = 2  # of what is kept: a higher one looks anew
MIN_BYTES = 2**24
"""Bytes of files below which a base is looked at faster than this is worth."""
MIN_AGE = 1.0
"""Seconds for which files must have been as they are: a clock's tick may hide a second change."""
_MOST_FILES, _MOST_KEPT = 1000, 100


@attrs.define(eq=False)
class CacheEntry:
    """What is known of one base that is being loaded.

    Attributes:
        base: the model itself; another one that is attached meanwhile is not known.
        path: where it is kept.
        facts: what is known, by question.
        new: whether something was found out in this process.
    """

    base: nn.Module
    path: Path
    facts: dict[str, Any]
    new: bool = False


_CURRENT: ContextVar[CacheEntry | None] = ContextVar("safe_framework_probe_cache", default=None)


@contextmanager
def use_probe_cache(base: nn.Module, origin: str | None) -> Iterator[None]:
    """Within the block, know of ``base`` what was found out about its ``origin``, and keep more.

    Args:
        base: as it was loaded a moment ago.
        origin: what ``checkpoint_key`` gave before and after loading; None knows nothing.
    """
    if origin is None:
        yield
        return
    path = _folder() / f"{origin}.json"
    known = CacheEntry(base, path, _read(path))
    token = _CURRENT.set(known)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        if known.new:
            _keep(known)


def cached(base: nn.Module, question: str, answer: Callable[[], Any]) -> Any:
    """The answer to a question about ``base``, from before if it is known.

    Args:
        base: that the question is about.
        question: all that the answer depends on beside the checkpoint.
        answer: finds it out; what it raises is not kept. JSON can hold what it gives.
    """
    known = _CURRENT.get()
    if known is None or known.base is not base:
        return answer()
    if question not in known.facts:
        known.facts[question] = answer()
        known.new = True
    return known.facts[question]


def checkpoint_key(spec: BaseSpec) -> str | None:
    """What identifies the files of a base and all that decides what is loaded from them.

    A file counts by its place, number, size and times, of which no program can set the last.

    Returns:
        A hash; None where the files are not at hand, have just changed, or are few and small.
    """
    folder = _files_of(spec)
    if folder is None:
        return None
    states = _states(folder)
    total, latest = sum(state[1] for state in states), max((s[4] for s in states), default=0)
    if total < MIN_BYTES or len(states) > _MOST_FILES or time.time() - latest / 1e9 < MIN_AGE:
        return None
    return text_fingerprint(
        _REVISION, str(folder.resolve()), states, attrs.asdict(spec), _versions()
    )


def _files_of(spec: BaseSpec) -> Path | None:
    """The folder of a checkpoint, where its files are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    from safe_framework.pretrained import resolve, revision_of

    try:
        place = resolve(spec.model)
    except CheckpointError:  # loading will say so
        return None
    if Path(place).is_dir():
        return Path(place)
    revision = spec.revision or revision_of(spec.model)
    found = try_to_load_from_cache(place, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _states(folder: Path) -> list[tuple[str, int, int, int, int]]:
    found = []
    for path in sorted(folder.rglob("*"))[: _MOST_FILES + 1]:
        if path.is_file():
            state = path.stat()
            name = str(path.relative_to(folder))
            found.append((name, state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns))
    return found


def _versions() -> list[str]:
    import torch
    import transformers

    return [FRAMEWORK_VERSION, torch.__version__, transformers.__version__]


def _folder() -> Path:
    from safe_framework.pretrained.location import cache_folder

    return cache_folder() / "bases"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # nothing is known, or it cannot be read: look anew
        return {}
    return found if isinstance(found, dict) else {}


def _keep(known: CacheEntry) -> None:
    try:
        atomic_write(known.path, json.dumps(known.facts).encode())
        kept = sorted(known.path.parent.glob("*.json"), key=os.path.getmtime)
        for path in kept[:-_MOST_KEPT]:
            path.unlink(missing_ok=True)
    except OSError:  # a cache that cannot be written costs the next load its time, nothing else
        return
