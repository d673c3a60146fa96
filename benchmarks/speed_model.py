"""The model that the speed benchmark looks at, and the calls that it compares."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from speed_turns import now
from torch import Tensor, nn
from transformers import LogitsProcessor

from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Frames
from safe_framework.verification.outcome import Operation, trace_call

MODALITY = "audio"
TOKENS, MANY_TOKENS = 8, 32
FUSED = (12, 16, 20, 24)
_FRAMES = 50  # of one second of sound


def recipe_of(tokens: int = TOKENS, fused: Sequence[int] = FUSED) -> Recipe:
    """`one-question` with so many tokens, fused at these layers; its text says so too."""
    own = read_recipe("one-question")
    text = own.text
    for old, new in (("tokens = 4", f"tokens = {tokens}"), ("[16, 20, 24]", f"{list(fused)}")):
        if text.count(old) != 1:
            raise ValueError(f"the recipe does not say `{old}` once")
        text = text.replace(old, new)
    return parse_recipe(text, own.source, Path(own.folder))


def waken(model: SafeModel) -> SafeModel:
    """Give every silent weight a value, as training would, so that no delta is zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.trainable_parameters().values():
        if not parameter.detach().any():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.02 * noise)
    return model


@attrs.frozen(eq=False)
class Calls:
    """Calls of one model on one text.

    Attributes:
        model: with one modality, whose gate is open.
        name: of the modality.
        length: of the text.
        wide: gives a prefix of ``MANY_TOKENS`` tokens from frames.
        given: the base's inputs; random ordinary words where they are None.
    """

    model: SafeModel
    name: str
    length: int
    wide: nn.Module
    given: Mapping[str, Tensor] | None = None

    @property
    def text(self) -> dict[str, Tensor]:
        """The base's inputs."""
        if self.given is not None:
            return dict(self.given)
        size = self.model.base.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(self.length)
        ids = torch.randint(size // 8, size, (1, self.length), generator=generator)
        ids = ids.to(self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @property
    def frames(self) -> Frames:
        """What an encoder might have given."""
        dim = self.model.modality(self.name).encoder.dim
        values = torch.randn(1, _FRAMES, dim, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(1, _FRAMES, dtype=torch.bool)
        kind = next(self.wide.parameters())
        return Frames(values.to(kind), mask.to(kind.device))

    @property
    def sample(self) -> dict[str, Tensor]:
        """The frames as a batch carries them."""
        frames = self.frames
        return {
            f"{self.name}__present": torch.ones(1, dtype=torch.bool, device=frames.mask.device),
            f"{self.name}__frames": frames.values,
            f"{self.name}__frames_mask": frames.mask,
        }

    def ways(self) -> dict[str, Callable[[], None]]:
        """One forward call of the base, and of the model off and on."""
        text, sample = self.text, self.sample
        return {
            "base": lambda: _done(self.model.base(**text)),
            "absent": lambda: _done(self.model(**text)),
            "gate 0": lambda: _done(self.model(**text, **sample, gate=0.0)),
            "on": lambda: _done(self.model(**text, **sample)),
        }

    def prefills(self) -> dict[str, Callable[[], None]]:
        """One forward call in each way; projectors are part of it, the encoder is not."""
        text, frames = self.text, self.frames
        own = self.model.modality(self.name).projector
        return {
            **self.ways(),
            f"prefix of {TOKENS}": lambda: self._prefixed(text, own, frames),
            f"prefix of {MANY_TOKENS}": lambda: self._prefixed(text, self.wide, frames),
        }

    def _prefixed(self, text: Mapping[str, Tensor], projector: nn.Module, frames: Frames) -> None:
        """The base on projected tokens and text, as a model of prefix tokens calls it."""
        words = self.model.base.get_input_embeddings()(text["input_ids"])
        whole = torch.cat([projector(frames).values.to(words.dtype), words], dim=1)
        mask = whole.new_ones(whole.shape[:2], dtype=torch.long)
        _done(self.model.base(inputs_embeds=whole, attention_mask=mask))

    def decodings(self, steps: int) -> dict[str, Callable[[], float]]:
        """Seconds of one step of greedy decoding in each way, the median over some."""
        return {
            "base": lambda: self._decoded(self.model.base.generate, {}, steps),
            "absent": lambda: self._decoded(self.model.generate, {}, steps),
            "on": lambda: self._decoded(self.model.generate, self.sample, steps),
        }

    def _decoded(self, generate: Any, more: Mapping[str, Any], steps: int) -> float:
        clock = Clock()
        self.generated(generate, more, steps, clock)
        return clock.step()

    def generated(
        self, generate: Any, more: Mapping[str, Any], steps: int, clock: LogitsProcessor
    ) -> None:
        """Generate ``steps`` words after the first."""
        generate(
            **self.text, **more, max_new_tokens=steps + 1, min_new_tokens=steps + 1,
            do_sample=False, logits_processor=[clock],
        )  # fmt: skip


class Clock(LogitsProcessor):
    """Notes when each word is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        self.times.append(now())
        return scores

    def step(self) -> float:
        """Median seconds from one word to the next."""
        return statistics.median(
            end - start for start, end in zip(self.times, self.times[1:], strict=False)
        )


@attrs.frozen
class StepCosts:
    """What a call sends to torch and to Python's interpreter, which no noise can move."""

    operations: int
    frames: int


def trace_of(method: Any, inputs: Mapping[str, Any], base: nn.Module) -> list[Operation]:
    """The operations of one call."""
    return trace_call(method, inputs, base)[1]


def costs(work: Callable[[], object], base: nn.Module) -> StepCosts:
    """Operations of torch, and functions of Python that were entered."""
    operations = len(trace_of(lambda: work(), {}, base))
    entered = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal entered
        entered += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return StepCosts(operations, entered)


def step_costs(calls: Calls, generate: Any, more: Mapping[str, Any]) -> StepCosts:
    """The costs of one step of decoding: those of four steps less those of three."""
    three, four = (
        costs(lambda n=n: calls.generated(generate, more, n, Clock()), calls.model.base)
        for n in (3, 4)
    )
    return StepCosts(four.operations - three.operations, four.frames - three.frames)


def _done(out: Any) -> None:
    """Let go of what a call gave, so that no arm keeps it for the next."""
    del out
