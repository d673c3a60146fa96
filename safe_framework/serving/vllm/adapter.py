"""An adapter beside a base that vLLM holds: its own parts, and none of the base's weights.

vLLM reads the base's weights once. While they pass to its own model, they are compared with those
that the adapter was made for, in each process that runs a part of the model; the other processes
read none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from safe_framework.core.build import WeightlessAdapter, load
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError, SafeError

REFUSAL = "SAFE_FRAMEWORK_VLLM_REFUSAL"
"""Of the environment: a file in which a process says why it refuses an adapter, since vLLM tells
whoever started it no more than that it ended."""

_LOADED: dict[str, SafeModel] = {}


def load_adapter(folder: str) -> SafeModel:
    """An adapter, to prepare its samples or, in a process whose base was loaded, to run its senses.

    Args:
        folder: the adapter's.

    Raises:
        SafeError: it cannot be loaded.
    """
    if folder not in _LOADED:
        _LOADED[folder] = WeightlessAdapter.of(folder).load()
    return _LOADED[folder]


class PassingBase:
    """The base of an adapter while its weights pass to vLLM's model.

    Args:
        folder: the adapter's.

    Raises:
        SafeError: it cannot be loaded.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self._adapter = folder, WeightlessAdapter.of(folder)
        self._passing = self._adapter.passing()

    def watched(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, under their names in the checkpoint, which are looked at."""
        return self._passing.watched(weights)

    def finish(self) -> None:
        """Load the adapter, now that its base is known.

        Raises:
            SafeError: it was made for another base, or cannot be loaded.
        """
        if self._passing.complete:
            with told_of_refusal():
                model = self._adapter.load(self._passing)
            if not any(tensor.is_meta for tensor in model.modalities.state_dict().values()):
                _remember(self.folder, model)
                return
        load_beside_its_base(self.folder)


def load_beside_its_base(folder: str) -> None:
    """Load an adapter on its base in transformers, whose weights are then let go.

    For a base whose weights do not pass one by one as transformers has them, or do not pass here.

    Args:
        folder: the adapter's.

    Raises:
        SafeError: it was made for another base, or cannot be loaded.
    """
    with told_of_refusal():
        _remember(folder, load(folder))


def _remember(folder: str, model: SafeModel) -> None:
    model.base.to("meta")
    _LOADED[folder] = model


@contextmanager
def told_of_refusal() -> Iterator[None]:
    """Within the block, why an adapter is refused is also said to whoever started vLLM."""
    try:
        yield
    except SafeError as error:
        if place := os.environ.get(REFUSAL):
            told = {"message": error.message, "hint": error.hint}
            Path(place).write_text(json.dumps(told), "utf-8")
        raise


@contextmanager
def refusals() -> Iterator[None]:
    """Within the block, vLLM's processes say why they refuse an adapter, and so does the error.

    Raises:
        AdapterError: one of them has.
    """
    with TemporaryDirectory(prefix="safe-vllm-") as scratch:
        place = Path(scratch) / "refusal.json"
        os.environ[REFUSAL] = str(place)
        try:
            yield
        except Exception as error:
            if place.is_file() and not isinstance(error, SafeError):
                raise AdapterError(**json.loads(place.read_text("utf-8"))) from error
            raise
        finally:
            del os.environ[REFUSAL]


def sense_of_sounds(model: SafeModel) -> str:
    """The modality that a sound is of which names none: the only one of sounds, or ``audio``.

    Raises:
        SafeError: there is none, or there are several.
    """
    names = [name for name, one in model.encoders.items() if one.sampling_rate is not None]
    if len(names) != 1 and "audio" not in names:
        raise SafeError(
            f"it cannot be told which of {', '.join(names) or 'no modalities'} a sound is of",
            hint="ask `safe serve --engine vllm`, whose requests name the modality of a sample",
        )
    return "audio" if "audio" in names else names[0]
