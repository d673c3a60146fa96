"""One model on the bench: its inputs, and calls with and without its senses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_change import ChangeHook, acting
from safe_framework.core.base_model import device_of
from safe_framework.core.hook_inventory import hooks_on, of_modality, stray, taken_off
from safe_framework.core.model import SafeModel
from safe_framework.verification.calls import (
    WAYS,
    Batch,
    Call,
    made_up_samples,
    one_row,
    padded,
    plain_batch,
    rows_of,
)
from safe_framework.verification.outcome import Outcome, outcome


@attrs.frozen(eq=False)
class Bench:
    """A model and what it is called with.

    Attributes:
        model: that is examined.
        batches: the base's inputs, as they are and padded at either side.
        samples: of every modality, present on every row.
    """

    model: SafeModel
    batches: Mapping[str, Batch]
    samples: Mapping[str, Tensor]
    _refused: dict[str, str] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, model: SafeModel, inputs: Mapping[str, Any] | None) -> Bench:
        """A bench with the caller's inputs, or with made-up ones."""
        device = device_of(model.base)
        given = dict(inputs or {})
        samples = {k: given.pop(k) for k in list(given) if k.partition("__")[0] in model.modalities}
        plain = given or model._example or plain_batch(model.base, device)
        for name in model.modalities:
            if f"{name}__present" not in samples:
                modality = model.modality(name)
                samples |= made_up_samples(name, modality, rows_of(plain), device)
        sides = {side: padded(model.base, plain, side) for side in ("left", "right")}
        return cls(model, {"plain": plain, **sides}, samples)

    @property
    def rows(self) -> int:
        """How many rows a call has."""
        return rows_of(self.batches["plain"])

    def method(self, call: Call) -> Callable[..., Any]:
        """What ``call`` calls on the model."""
        return self.model.forward if call.method == "forward" else self.model.generate

    def base_method(self, call: Call) -> Callable[..., Any]:
        """What ``call`` calls on the base, as stage B has changed it if it has."""
        base: Any = self.model.base
        method: Callable[..., Any] = base if call.method == "forward" else base.generate
        change = self.model.base_change
        if change is None:
            return method

        def changed(**given: Any) -> Any:
            """The method, with what stage B changed."""
            with acting(change.call()):
                return method(**given)

        return changed

    def bare(self, call: Call) -> Outcome:
        """What the base gives, without a hook that was not there when it was wrapped."""
        with self.bared():
            return self.run_base(call)

    def possible(self, *calls: Call) -> list[Call]:
        """Those of ``calls`` that the base itself does not refuse."""
        for call in calls:
            if call.name not in self._refused:
                self._refused[call.name] = self.bare(call).error
        return [call for call in calls if not self._refused[call.name]]

    def run_base(self, call: Call) -> Outcome:
        """What the base gives as it stands."""
        return outcome(self.base_method(call), call.inputs(self.batches), call.mode)

    def run(self, call: Call, inputs: Mapping[str, Any]) -> Outcome:
        """What the model gives for these arguments instead of the call's own."""
        return outcome(self.method(call), inputs, call.mode)

    @contextmanager
    def bared(self) -> Iterator[None]:
        """Take the core's hooks off the base, and any that came after it was wrapped."""
        hooks = hooks_on(self.model.base)
        ours = [p for p in hooks if p.ours and not isinstance(p.hook, ChangeHook)]
        with taken_off([*ours, *stray(hooks, self.model.seal.hooks)]):
            yield

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Take the hooks of these modalities off the base."""
        hooks = hooks_on(self.model.base)
        with taken_off([placed for name in names for placed in of_modality(hooks, name)]):
            yield

    def off(self, call: Call, way: str) -> Outcome:
        """What the model gives with its senses off."""
        with self.switched_off(call, way) as inputs:
            return self.run(call, inputs)

    @contextmanager
    def switched_off(self, call: Call, way: str) -> Iterator[dict[str, Any]]:
        """The arguments of ``call`` with every sense off, within the block."""
        samples = one_row(self.samples) if call.alone else dict(self.samples)
        with WAYS[way](self.model, samples) as given:
            yield call.inputs(self.batches) | given

    def on(self, call: Call, **changes: Any) -> Outcome:
        """What the model gives with its senses on, at gate 1 unless ``changes`` say otherwise."""
        inputs = call.inputs(self.batches) | dict(self.samples) | {"gate": 1.0} | changes
        return self.run(call, inputs)


@contextmanager
def steady(model: SafeModel) -> Iterator[None]:
    """Senses in evaluation mode and the caller's random state kept, within the block."""
    training = model.training
    with torch.random.fork_rng():
        model.modalities.eval()
        try:
            yield
        finally:
            model.modalities.train(training)


# Temporary hooks on the parts of modalities: to make them loud, to watch and to count them.


@contextmanager
def loud(model: SafeModel) -> Iterator[None]:
    """Let every fusion adapter answer with noise as large as the hidden states it is shown."""
    fusions = [model.modality(name).fusion for name in model.modalities]
    handles = [fusion.register_forward_hook(_noise) for fusion in fusions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noise(module: nn.Module, args: Any, delta: Any) -> Any:
    hidden: Tensor = args[0]
    generator = torch.Generator().manual_seed(hidden.shape[-2])
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    scale = hidden.detach().float().abs().mean() + 1e-3
    return (scale * noise).to(hidden.dtype)


@contextmanager
def moved(model: SafeModel) -> Iterator[set[str]]:
    """Collects the names of the modalities whose delta was not zero everywhere."""
    found: set[str] = set()
    handles = []
    for name in model.modalities:

        def look(module: nn.Module, args: Any, delta: Tensor, name: str = name) -> None:
            """Note the modality if its delta is not zero."""
            if bool((delta != 0).any()):
                found.add(name)

        handles.append(model.modality(name).fusion.register_forward_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counted(model: SafeModel) -> Iterator[Counter[str]]:
    """Counts the calls of every module of every modality, by its path."""
    calls: Counter[str] = Counter()
    handles = []
    for path, module in model.modalities.named_modules():

        def count(module: nn.Module, args: Any, path: str = path) -> None:
            """Count a call of the module."""
            calls[path] += 1

        handles.append(module.register_forward_pre_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
