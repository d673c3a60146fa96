"""What third parties test their plugins with: contracts, strategies, toys.

Names are imported when they are first used, so that importing this package costs nothing. They
need ``pip install 'safe-framework[testing]'``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_framework.testing import bases, strategies, toys
    from safe_framework.testing.assertions import check_shapes
    from safe_framework.testing.encoder_contract import EncoderContract
    from safe_framework.testing.fusion_contract import FusionAdapterContract
    from safe_framework.testing.projector_contract import ProjectorContract
    from safe_framework.testing.retention_contract import RetentionRegularizerContract
    from safe_framework.testing.transcriber_contract import TranscriberContract

_HOMES = {
    "EncoderContract": "encoder_contract",
    "FusionAdapterContract": "fusion_contract",
    "ProjectorContract": "projector_contract",
    "RetentionRegularizerContract": "retention_contract",
    "TranscriberContract": "transcriber_contract",
    "check_shapes": "assertions",
}
_MODULES = ("bases", "strategies", "toys")

__all__ = [
    "EncoderContract",
    "FusionAdapterContract",
    "ProjectorContract",
    "RetentionRegularizerContract",
    "TranscriberContract",
    "bases",
    "check_shapes",
    "strategies",
    "toys",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return list(__all__)
