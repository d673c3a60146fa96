"""Add a modality to a frozen model, and break nothing.

Names are imported when they are first used, so that ``import safe_framework`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safe_framework.utils.versions import FRAMEWORK_VERSION

__version__ = FRAMEWORK_VERSION

if TYPE_CHECKING:
    from safe_framework.core.build import attach, build, compile, load
    from safe_framework.core.model import SafeModel
    from safe_framework.errors import SafeError
    from safe_framework.interfaces.encoder import Encoder, Transcriber, TranscribingEncoder
    from safe_framework.interfaces.fusion import FusionAdapter
    from safe_framework.interfaces.projector import Projector
    from safe_framework.interfaces.retention import RetentionRegularizer, RetentionStore
    from safe_framework.interfaces.types import AttentionWeights, BaseFacts, Frames, Memory, Tokens
    from safe_framework.runs.own_loop import prepare_training
    from safe_framework.runs.python import evaluate, train
    from safe_framework.serving.pipeline import pipeline
    from safe_framework.verification.verify import verify

_HOMES = {
    "attach": "core.build",
    "build": "core.build",
    "compile": "core.build",
    "load": "core.build",
    "evaluate": "runs.python",
    "pipeline": "serving.pipeline",
    "prepare_training": "runs.own_loop",
    "train": "runs.python",
    "verify": "verification.verify",
    "Encoder": "interfaces.encoder",
    "Transcriber": "interfaces.encoder",
    "TranscribingEncoder": "interfaces.encoder",
    "SafeError": "errors",
    "FusionAdapter": "interfaces.fusion",
    "SafeModel": "core.model",
    "Projector": "interfaces.projector",
    "RetentionRegularizer": "interfaces.retention",
    "RetentionStore": "interfaces.retention",
    "AttentionWeights": "interfaces.types",
    "BaseFacts": "interfaces.types",
    "Frames": "interfaces.types",
    "Memory": "interfaces.types",
    "Tokens": "interfaces.types",
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
    "Transcriber",
    "TranscribingEncoder",
    "attach",
    "build",
    "compile",
    "evaluate",
    "load",
    "pipeline",
    "prepare_training",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
