"""Prompts that come again in an evaluation: the base reads each once.

A prompt is asked with its own sample, with another's, at several gates and without any; what it
leaves is the same each time, for ``core.prompt_past`` says of which modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from safe_framework.core.prompt_past import PromptPasts

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

_PASTS: ContextVar[PromptPasts | None] = ContextVar("safe_framework_prompts_read", default=None)


@contextmanager
def prompts_read_once(model: SafeModel) -> Iterator[None]:
    """Within the block, answers begin behind prompts that the base has read before.

    Neither weights nor the base's settings may change meanwhile. A block within another of the
    same model shares what that has read.
    """
    held = _PASTS.get()
    if held is not None and held.model is model:
        yield
        return
    token = _PASTS.set(PromptPasts(model))
    try:
        yield
    finally:
        _PASTS.reset(token)


def behind_prompts(model: SafeModel, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch for a call behind its prompts; as it is outside of a block of this model."""
    held = _PASTS.get()
    return batch if held is None or held.model is not model else held.behind(batch)
