"""The base's own hidden states at the last positions of each row's prompt, as it reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import LayerStack
from safe_framework.core.layer_hooks import get_hidden_states
from safe_framework.errors import InjectionError


class PromptRead(BaseException):
    """Ends a call of the base of which no more is wanted; never seen outside of the core.

    Not an ``Exception``, which a base might catch.
    """


@attrs.frozen(eq=False)
class PromptEnd:
    """What one layer of the base gave at the last positions of each row's prompt.

    Attributes:
        states: ending with the prompt's last position, (rows, columns, hidden), in float32.
        mask: which of them belong to the row and were read, (rows, columns).
    """

    states: Tensor
    mask: Tensor

    @property
    def last(self) -> Tensor:
        """The states at the last position, (rows, hidden)."""
        return self.states[:, -1]


@attrs.define(eq=False, slots=False)
class PromptStates:
    """Collects the output of some layers at the last columns of each row's prompt.

    A base reads a text at once or in chunks, for beams several times side by side, and behind what
    lies in a cache, whose columns are not among them.

    Attributes:
        ends: the last column of each row's prompt, (batch,), on the CPU.
        length: how many columns the text has.
        stack: the base's layers.
        wanted: those whose output is read.
        columns: how many are wanted of each row.
        cached: how many columns lie in a cache, and will not be read.
        real: which columns of the text are no padding, (batch, length); None where all are.
        beyond: whether the base read more in one go, as the drafts of an assistant.
    """

    ends: Tensor
    length: int
    stack: LayerStack
    wanted: Collection[int]
    columns: int = 1
    cached: int = 0
    real: Tensor | None = None
    beyond: bool = attrs.field(default=False, init=False)
    _kept: dict[int, Tensor] = attrs.field(factory=dict, init=False)
    _read: Counter[int] = attrs.field(factory=Counter, init=False)
    _turns: Counter[int] = attrs.field(factory=Counter, init=False)

    def take(self, layer: int, out: Any) -> bool:
        """Look at what a layer gave; whether it has now read the whole text.

        Args:
            layer: that was called.
            out: what it returned.
        """
        self._turns[layer] += 1
        if self._turns[layer] % self.stack.passes:  # it runs again before the next layer's is final
            return False
        hidden = output_of(out)
        begin = self.cached + self._read[layer]
        columns = hidden.shape[self.stack.layout.length]
        self._read[layer] += columns
        if layer in self.wanted:
            self._keep(layer, hidden, begin, columns)
        self.beyond |= begin + columns > self.length
        return begin + columns >= self.length

    def end(self, layer: int) -> PromptEnd:
        """What a layer gave, of which the whole text was read."""
        states = self._kept[layer]
        if self.columns == 1:
            return PromptEnd(states, torch.ones(states.shape[:2], dtype=torch.bool))
        read = self._places >= self.cached
        if self.real is not None:
            read &= self.real.gather(1, self._places.clamp_min(0))
        read[:, -1] = True
        return PromptEnd(states, read.to(states.device))

    def unread(self) -> set[int]:
        """The wanted layers that never ran."""
        return set(self.wanted) - self._kept.keys()

    @cached_property
    def _places(self) -> Tensor:
        """The columns that are wanted of each row, below 0 where it has none, (batch, columns)."""
        return self.ends.unsqueeze(1) - torch.arange(self.columns - 1, -1, -1)

    def _keep(self, layer: int, hidden: Tensor, begin: int, columns: int) -> None:
        canonical = self.stack.layout.to_canonical(hidden.detach())  # (copies, columns, hidden)
        batch = len(self.ends)
        at = (self._places - begin).to(canonical.device)
        rows = torch.arange(0, len(canonical), len(canonical) // batch, device=canonical.device)
        # Columns that were not given are not counted, or come later.
        found = canonical[rows.unsqueeze(1), at.clamp(0, columns - 1)].float()
        if (before := self._kept.get(layer)) is not None:  # what comes in chunks comes in order
            found = torch.where((at >= 0).unsqueeze(-1), found, before)
        self._kept[layer] = found


@attrs.define(eq=False)
class PromptReader:
    """A watcher that reads a prompt's states, and ends the call with them.

    Attributes:
        owner: key of the model.
        states: that are read.
    """

    owner: str
    states: PromptStates

    def leave(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Look at a layer's output.

        Raises:
            PromptRead: all was read that is wanted.
        """
        if self.states.take(layer, out) and layer == max(self.states.wanted):
            raise PromptRead


@attrs.define(eq=False)
class Silent:
    """What lets a call run apart from what others compiled, with no modality on.

    Attributes:
        owner: key of the model.
    """

    owner: str

    def enter(
        self, modality: str, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's own arguments."""
        return args, kwargs

    def embed(self, modality: str, ids: object, embedded: Tensor) -> None:
        """Nothing: no marker is in the text."""


def output_of(out: Any) -> Tensor:
    """The hidden states in what a layer returned."""
    found = out[0] if isinstance(out, (tuple, list)) else out
    assert isinstance(found, Tensor)
    return found


def with_output(out: Any, hidden: Tensor) -> Any:
    """What a layer returned, with other hidden states in it."""
    if isinstance(out, (tuple, list)):
        return type(out)((hidden, *out[1:]))
    return hidden


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a layer was given."""
    found = get_hidden_states(args, kwargs)
    assert isinstance(found, Tensor)
    return found


def never_read(layers: Collection[int]) -> InjectionError:
    """What is wrong where a call ended before these layers had read the end of the prompt."""
    return InjectionError(
        f"layers {sorted(layers)} never read the last position of the prompt: their hooks did not "
        "run",
        hint="if the base is compiled, let safe_framework.compile(model) do it",
    )
