"""A quantised GGUF language model, expanded to float32, as a checkpoint folder."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.errors import CheckpointError
from safe_framework.utils.quiet import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_THE_FILE = {"_model_name_or_path", "_name_or_path", "architectures", "dtype"}
_OF_THE_FILE |= {"quantization_config", "torch_dtype", "transformers_version"}


def write_gguf(source: Path, target: Path) -> None:
    """Write the model, its config and its tokenizer into the existing folder ``target``.

    Raises:
        CheckpointError: an extra is missing, or the file is not a GGUF that transformers reads.
    """
    if any(util.find_spec(name) is None for name in ("gguf", "sentencepiece")):
        raise CheckpointError(
            f"`{source.name}` is a GGUF file, and what reads it is not installed",
            hint="pip install 'safe-framework[gguf]'",
        )
    with _silence(), _parsed_once():
        model, tokenizer = _read(source)
        _plain(model).save_pretrained(target)
        tokenizer.save_pretrained(target)


def _read(source: Path) -> tuple[PreTrainedModel, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
        return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except Exception as error:  # a reader may trip over anything in a broken file
        raise CheckpointError(f"`{source}` cannot be read as GGUF: {error}") from error


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember GGUF, which would refuse to be saved."""
    import torch

    facts = {k: v for k, v in model.config.to_dict().items() if k not in _OF_THE_FILE}
    with torch.random.fork_rng(devices=[]):  # its random start is not the caller's to pay for
        plain = type(model)(type(model.config)(**facts))
    plain.load_state_dict(model.state_dict())
    return plain


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Within the block, a file is parsed once, which transformers does for each part of it."""
    package: Any = import_module("gguf")  # by name: it declares no types
    parse = package.GGUFReader
    package.GGUFReader = cache(parse)
    try:
        yield
    finally:
        package.GGUFReader = parse


@contextmanager
def _silence() -> Iterator[None]:
    """The GGUF reader draws a progress bar of its own and warns of what is being done here."""
    with quietly(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
