"""Add a modality to a frozen model, and break nothing.

Names are imported when they are first used, so that ``import safe_framework`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safe_framework.optional_torchaudio import guard_transformers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from safe_framework.assembly import attach, build, load
    from safe_framework.certificate.verification import verify
    from safe_framework.compilation import compile
    from safe_framework.encoder import Encoder
    from safe_framework.errors import SafeError
    from safe_framework.fusion import FusionAdapter
    from safe_framework.model import SafeModel
    from safe_framework.pipelines import pipeline
    from safe_framework.projector import Projector
    from safe_framework.retention import RetentionRegularizer
    from safe_framework.retention_store import RetentionStore
    from safe_framework.shapes import AttentionWeights, BaseFacts, Frames, Memory, Tokens

_HOMES = {
    "attach": "assembly",
    "build": "assembly",
    "compile": "compilation",
    "load": "assembly",
    "pipeline": "pipelines",
    "verify": "certificate.verification",
    "Encoder": "encoder",
    "SafeError": "errors",
    "FusionAdapter": "fusion",
    "SafeModel": "model",
    "Projector": "projector",
    "RetentionRegularizer": "retention",
    "RetentionStore": "retention_store",
    "AttentionWeights": "shapes",
    "BaseFacts": "shapes",
    "Frames": "shapes",
    "Memory": "shapes",
    "Tokens": "shapes",
}

__all__ = [
    "AttentionWeights",
    "BaseFacts",
    "Encoder",
    "Frames",
    "FusionAdapter",
    "Memory",
    "Projector",
    "RetentionRegularizer",
    "RetentionStore",
    "SafeError",
    "SafeModel",
    "Tokens",
    "attach",
    "build",
    "compile",
    "load",
    "pipeline",
    "verify",
]


guard_transformers()  # costs nothing until transformers is imported


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
