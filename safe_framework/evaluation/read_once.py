"""Prompts that come again in an evaluation: the base reads each once.

A prompt is asked with its own sample, with another's, at several gates and without any; what it
leaves is the same each time, for ``core.prompt_past`` says of which modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from safe_framework.core.output_head import on_device
from safe_framework.core.prompt_past import PromptPasts
from safe_framework.interfaces.samples import sample_counts

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example

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


def behind_pictures(model: SafeModel, examples: Sequence[Example]) -> Mapping[str, Any] | None:
    """What a call behind prompts with pictures is given, of which none is processed again.

    Returns:
        None where some have no picture, and where the pictures are to be read with the call.
    """
    held, names = _PASTS.get(), sorted({name for one in examples for name in one.samples})
    if held is None or held.model is not model or not held.sees(names):
        return None
    if not all(one.images for one in examples):
        return None
    rows = [held.row(one.prompt, one.images, sample_counts(one.samples)) for one in examples]
    inputs = held.inputs(rows)
    if inputs is None:
        return None
    for name in names:
        heard = model.processor.modality(name, [one.samples.get(name) for one in examples])
        inputs |= on_device(heard, model.device)
    return inputs
