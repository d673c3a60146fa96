"""Quantised checkpoints: told by their config, before loading one fails somewhere else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import attrs

from safe_framework.errors import CheckpointError

_LIBRARIES: Mapping[str, tuple[str, str]] = {
    "aqlm": ("aqlm", "aqlm"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum", "optimum-quanto"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr_quant"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}
"""By method, the module that transformers reads it with and the distribution that has it."""
_PARTS = ("text_config", "llm_config", "language_config")


@attrs.frozen
class Quantisation:
    """How a checkpoint's weights were quantised.

    Attributes:
        method: its name in transformers, as ``"gptq"``.
        bits: of a weight, where the config says.
    """

    method: str
    bits: int | None = None

    def __str__(self) -> str:
        return self.method if self.bits is None else f"{self.method}, {self.bits} bits"

    @property
    def missing(self) -> str:
        """The distribution that must be installed for it; empty if none is known to be missing."""
        module, distribution = _LIBRARIES.get(self.method, ("", ""))
        return distribution if module and find_spec(module) is None else ""

    @property
    def hint(self) -> str:
        """What to do where it cannot be loaded."""
        install = f"pip install {self.missing}; or " if self.missing else ""
        return f"{install}name the checkpoint that it was quantised from"


def quantisation_of(config: Any) -> Quantisation | None:
    """How the config of a checkpoint or a model says that it is quantised; None if it is not.

    Weights of GGUF files count as they are loaded, which is in full.
    """
    held = config if isinstance(config, Mapping) else _as_mapping(config)
    for part in (held, *(held.get(name) for name in _PARTS)):
        part = part if isinstance(part, Mapping) else _as_mapping(part)
        found = part.get("quantization_config")
        found = found if isinstance(found, Mapping) else _as_mapping(found)
        if found:
            return _described(found)
    return None


def _described(found: Mapping[str, Any]) -> Quantisation | None:
    four = found.get("load_in_4bit") or found.get("_load_in_4bit")
    eight = found.get("load_in_8bit") or found.get("_load_in_8bit")
    method = getattr(found.get("quant_method"), "value", found.get("quant_method"))
    if method is None:
        method = "bitsandbytes" if four or eight else "an unknown method"
    bits = next((found[key] for key in ("bits", "w_bit", "nbits") if key in found), None)
    if bits is None and (four or eight):
        bits = 4 if four else 8
    if method == "gguf":
        return None
    return Quantisation(str(method), bits if isinstance(bits, int) else None)


def _as_mapping(config: Any) -> Mapping[str, Any]:
    to_dict = getattr(config, "to_dict", None)
    return to_dict() if callable(to_dict) else {}


def refuse_missing_library(name: str, config: Any) -> Quantisation | None:
    """How a checkpoint is quantised, if it is and can be read here.

    Raises:
        CheckpointError: the library that its method needs is not installed.
    """
    found = quantisation_of(config)
    if found is not None and found.missing:
        raise CheckpointError(
            f"`{name}` is quantised ({found}), for which `{found.missing}` is not installed",
            hint=found.hint,
        )
    return found


def untested(quantised: Quantisation) -> str:
    """What is known here of bases that are quantised: nothing."""
    return (
        f"the base is quantised ({quantised}), as no base is that this framework was tested with: "
        "`safe verify` says what holds, and training through it may fail"
    )
