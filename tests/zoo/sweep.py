"""Every type, some at a time, each process renewed now and then."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.zoo.examine import Entry, examine

_TYPES_A_PROCESS = 40
"""Each type imports a model class that stays in memory."""


def sweep(
    pairs: Sequence[tuple[str, str]], processes: int, done: Callable[[Entry], None]
) -> list[Entry]:
    """Examine the types (task, name), and tell ``done`` of each."""
    pool = ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_quiet,
        max_tasks_per_child=_TYPES_A_PROCESS,
    )
    entries = []
    with pool:
        for future in as_completed([pool.submit(examine, *pair) for pair in pairs]):
            entries.append(future.result())
            done(entries[-1])
    return entries


def _quiet() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
