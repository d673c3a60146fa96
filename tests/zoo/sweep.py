"""Every type, some at a time, each process renewed now and then."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context

from tests.zoo.examine import Entry, examine

_TYPES_A_PROCESS = 40
"""Each type imports a model class that stays in memory."""


def sweep(
    pairs: Sequence[tuple[str, str]], processes: int, done: Callable[[Entry], None]
) -> list[Entry]:
    """Examine the types (task, name), and call ``done`` with each."""
    entries = []
    # Not a ProcessPoolExecutor: renewing its processes can leave it without any (cpython#115634).
    context = get_context("spawn")
    with context.Pool(processes, _quiet, maxtasksperchild=_TYPES_A_PROCESS) as pool:
        for entry in pool.imap_unordered(_examined, pairs):
            entries.append(entry)
            done(entry)
    return entries


def _examined(pair: tuple[str, str]) -> Entry:
    return examine(*pair)


def _quiet() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
