"""What a call that begins again must not do twice: show a prompt, draw numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn


@attrs.define(eq=False)
class HeldStreamer:
    """A streamer that is shown a prompt once, however often the call begins.

    Attributes:
        streamer: that is given the text; None for none.
        shown: how often it was given some.
        skipped: how much of what it is given next it has seen.
    """

    streamer: Any
    shown: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> HeldStreamer:
        """The streamer of a call."""
        return cls(inputs.get("streamer"))

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's keyword arguments, as it begins now."""
        self.shown, self.skipped = 0, self.shown
        if self.streamer is None:
            return dict(inputs)
        return {**inputs, "streamer": self}

    def put(self, value: Tensor) -> None:
        """Pass on what it has not seen."""
        self.shown += 1
        if self.shown > self.skipped:
            self.streamer.put(value)

    def end(self) -> None:
        """Pass on that there is no more."""
        self.streamer.end()


def keeps_states(base: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a call is to return what its layers gave, each of which is collected as it runs."""
    settings = [
        inputs.get("generation_config"),
        getattr(base, "generation_config", None),
        base.config,
    ]
    names = ("output_hidden_states", "output_attentions")
    asked = [inputs[name] for name in names if inputs.get(name) is not None]
    asked += [getattr(one, name, None) for one in settings for name in names]
    return any(map(bool, asked))


@attrs.frozen(eq=False)
class RandomState:
    """The state of the generators that a call may draw from.

    Attributes:
        cpu: of torch's generator there.
        cuda: of those of the graphics processors in use.
    """

    cpu: Tensor
    cuda: Sequence[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """As they are now."""
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's own
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else ())

    def restore(self) -> None:
        """Let them draw again what they drew since."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
