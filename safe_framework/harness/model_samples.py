"""Which sample stands beside every text that the harness asks about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.distractors import FOREIGN, KINDS, distractor
from safe_framework.data.samples import read_sample
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import Sample
from safe_framework.runs.finished import open_run

ABSENT = "none"
_NAMES = {"silence": "silent"} | {kind: kind for kind in (*KINDS, FOREIGN)}


def sample_beside(
    model: SafeModel,
    modality: str,
    adapter: Path,
    kind: str,
    *,
    like: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
) -> Sample | None:
    """The sample that a name stands for; None where the sense is absent.

    Args:
        model: whose encoder will take it.
        modality: of the sample.
        adapter: the model's folder; silence, noise and strangers are made from the test samples
            of the run beside it.
        kind: ``none``, ``silence``, ``noise``, ``shuffled``, ``foreign``, or a sample's file.
        like: a sample's file to make silence or noise from, where there is no run.
        recipe: of the run, where it is no longer where it was.
        seed: decides which of the run's samples is taken, and the noise.

    Raises:
        SafeError: there is no such kind or file, or nothing to make it from.
    """
    if kind == ABSENT:
        return None
    rate = model.modality(modality).encoder.sampling_rate
    if kind not in _NAMES:
        if not Path(kind).is_file():
            known = ", ".join(f"`{name}`" for name in (ABSENT, *_NAMES))
            raise SafeError(
                f"`distractor={kind}` is neither a kind of irrelevant sample nor a file",
                hint=f"use one of {known}, or the file of a sample",
            )
        return read_sample(Path(kind), rate, f"distractor={kind}")
    name = _NAMES[kind]
    if like is not None:
        pool: Sequence[Sample] = [read_sample(Path(like), rate, f"like={like}")]
    else:
        pool = _of_the_run(adapter, recipe, modality, kind)
    return distractor(name, pool, torch.Generator().manual_seed(seed))


def _of_the_run(adapter: Path, recipe: str | None, modality: str, kind: str) -> Sequence[Sample]:
    """The samples that the run was tested with."""
    try:
        run = open_run(adapter, recipe)
        if kind == FOREIGN:
            return run.foreign(modality)
        return [example.samples[modality] for example in run.examples(modality)]
    except SafeError as error:
        raise SafeError(
            f"`{kind}` samples are made from those of the adapter's run: {error.message}",
            hint="name its recipe with recipe=FILE, or one sample with like=FILE, in --model_args",
        ) from error
