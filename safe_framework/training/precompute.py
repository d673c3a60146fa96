"""Fill the caches of a run before it starts, in as many processes as are given."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safe_framework.config.read import read_recipe
from safe_framework.core.build import build
from safe_framework.data.recipe_data import RecipeData
from safe_framework.training import distributed
from safe_framework.training.setup import (
    encode_examples,
    frame_stores,
    make_retention,
    variations_of,
)
from safe_framework.training.splits import split_data
from safe_framework.training.train import prepare_training
from safe_framework.utils.console import plain_console
from safe_framework.utils.progress import WorkProgress


def precompute(source: str, *, quiet: bool = False) -> None:
    """Encode every sample of a recipe's training, and read its texts with the frozen base.

    Args:
        source: a recipe file, or the name of a catalogue recipe.
        quiet: print nothing.

    Raises:
        RecipeError: the recipe has mistakes.
        DataError: data are missing.
    """
    recipe = read_recipe(source)
    with WorkProgress(plain_console(quiet=quiet)).showing() as progress:
        model, data = build(recipe, device=distributed.device()), RecipeData(recipe)
        examples = data.examples("train", model.encoders)
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare_training(model, recipe, examples, Path(folder), progress, data)
            try:
                prepared.trainer.precompute(progress)
            finally:
                prepared.caches.close()


def encode_samples(source: str, *, quiet: bool = False) -> None:
    """Encode the samples alone, shared out among the processes of a launcher."""
    recipe = read_recipe(source)
    with distributed.distributed_context():
        console = plain_console(quiet=quiet or not distributed.is_main_process())
        with WorkProgress(console).showing() as progress:
            model, data = build(recipe, device=distributed.device()), RecipeData(recipe)
            encoders, stores = model.encoders, frame_stores(model, recipe)
            split = split_data(recipe, data.examples("train", encoders), data, encoders)
            encode_examples(
                model, split.examples, stores, progress, variations=variations_of(model, recipe)
            )
            encode_examples(model, split.held_out, stores, progress)
            pad = model.tokenizer.eos_token_id
            make_retention(model, recipe, split.examples, stores, pad, data)


def precompute_in_processes(count: int, source: str, *, quiet: bool = False) -> int:
    """``precompute``, with the samples encoded by ``count`` new processes; the exit code."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += ["-m", "safe_framework.cli", "cache", source, "--samples"]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"OMP_NUM_THREADS": threads} | dict(os.environ)
    launched = [sys.executable, *command, *(["--quiet"] if quiet else [])]
    code = subprocess.run(launched, env=environment, check=False).returncode
    if code == 0:
        precompute(source, quiet=quiet)
    return code
