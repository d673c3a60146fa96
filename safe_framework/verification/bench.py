"""A test bench: one model, its inputs, and calls with its modalities on, off, or not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_change import ChangeHook, use_changed_base
from safe_framework.core.base_model import input_device
from safe_framework.core.hook_inventory import (
    hooks_on,
    hooks_removed,
    is_modality_hook,
    unknown_hooks,
)
from safe_framework.core.layer_hooks import registered
from safe_framework.core.model import SafeModel
from safe_framework.verification.calls import (
    OFF_METHODS,
    Batch,
    Call,
    count_rows,
    first_row,
    made_up_samples,
    pad_batch,
    plain_batch,
)
from safe_framework.verification.outcome import Outcome, capture_outcome


@attrs.frozen(eq=False)
class Bench:
    """A model and what it is called with.

    Attributes:
        model: that is examined.
        batches: the base's inputs: as they are, padded at either side, and their first row.
        samples: of every modality, present on every row.
        heard: the rows that carry a sample where the others do not.
        unscored: ids that no loss looks at.
        label: what its calls are called beside their own names.
    """

    model: SafeModel
    batches: Mapping[str, Batch]
    samples: Mapping[str, Tensor]
    heard: tuple[int, ...]
    unscored: frozenset[int] = frozenset()
    label: str = ""
    _refused: dict[str, str] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, model: SafeModel, inputs: Mapping[str, Any] | None) -> Bench:
        """A bench with the caller's inputs, or with made-up ones."""
        device = input_device(model.base)
        given = dict(inputs or {})
        samples = {k: given.pop(k) for k in list(given) if k.partition("__")[0] in model.modalities}
        plain = given or model._example or plain_batch(model.base, device)
        rows = count_rows(plain)
        for name in model.modalities:
            if f"{name}__present" not in samples:
                samples |= made_up_samples(name, model.modality(name), rows, device)
        return cls(model, padded_batches(model.base, plain), samples, heard=(rows - 1,))

    @property
    def rows(self) -> int:
        """How many rows a call has."""
        return count_rows(self.batches["plain"])

    def name(self, call: Call) -> str:
        """What a certificate calls a call of this bench."""
        return self.named(call.name)

    def named(self, what: str) -> str:
        """What is asked of this bench, with its label."""
        return f"{what}, {self.label}" if self.label else what

    def inputs(self, call: Call, batches: Mapping[str, Batch] | None = None) -> dict[str, Any]:
        """The keyword arguments of ``call``, of this bench's batches or of others."""
        return call.inputs(self.batches if batches is None else batches, self.unscored)

    def method(self, call: Call) -> Callable[..., Any]:
        """What ``call`` calls on the model."""
        return self.model.forward if call.method == "forward" else self.model.generate

    def base_method(self, call: Call) -> Callable[..., Any]:
        """What ``call`` calls on the base, with what fine-tuning changed of it."""
        base: Any = self.model.base
        method: Callable[..., Any] = base if call.method == "forward" else base.generate
        change = self.model.base_change
        if change is None:
            return method

        def changed(**given: Any) -> Any:
            """The method, with the changes of base fine-tuning."""
            with use_changed_base(change.call()):
                return method(**given)

        return changed

    def run_unwrapped(self, call: Call) -> Outcome:
        """What the base gives, without a hook that was not there when it was wrapped."""
        with self.unwrapped():
            return self.run_base(call)

    def supported(self, *calls: Call) -> list[Call]:
        """Those of ``calls`` that the base itself does not refuse."""
        for call in calls:
            if call.name not in self._refused:
                self._refused[call.name] = self.run_unwrapped(call).error
        return [call for call in calls if not self._refused[call.name]]

    def run_base(self, call: Call) -> Outcome:
        """What the base gives as it stands."""
        return capture_outcome(self.base_method(call), self.inputs(call), call.mode)

    def run(self, call: Call, inputs: Mapping[str, Any]) -> Outcome:
        """What the model gives for these arguments instead of the call's own."""
        return capture_outcome(self.method(call), inputs, call.mode)

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Take the core's hooks off the base, and any that came after it was wrapped."""
        hooks = hooks_on(self.model.base)
        ours = [p for p in hooks if p.ours and not isinstance(p.hook, ChangeHook)]
        with hooks_removed([*ours, *unknown_hooks(hooks, self.model.base_snapshot.hooks)]):
            yield

    @contextmanager
    def without_modalities(self, *names: str) -> Iterator[None]:
        """Take the hooks of these modalities off the base."""
        hooks = hooks_on(self.model.base)
        with hooks_removed([placed for name in names for placed in is_modality_hook(hooks, name)]):
            yield

    def run_off(self, call: Call, way: str) -> Outcome:
        """What the model gives with its modalities off."""
        with self.switched_off(call, way) as inputs:
            return self.run(call, inputs)

    @contextmanager
    def switched_off(self, call: Call, way: str) -> Iterator[dict[str, Any]]:
        """The arguments of ``call`` with every modality off, within the block."""
        samples = first_row(self.samples) if call.single_row else dict(self.samples)
        with OFF_METHODS[way](self.model, samples) as given:
            yield self.inputs(call) | given

    def run_on(self, call: Call, **changes: Any) -> Outcome:
        """What the model gives with its modalities on, at gate 1 or with ``changes``."""
        inputs = self.inputs(call) | dict(self.samples) | {"gate": 1.0} | changes
        return self.run(call, inputs)


def padded_batches(base: nn.Module, plain: Batch) -> dict[str, Batch]:
    """A batch as it is, padded at either side, and its first row."""
    sides = {side: pad_batch(base, plain, side) for side in ("left", "right")}
    return {"plain": plain, **sides, "single": first_row(plain)}


@contextmanager
def frozen_state(model: SafeModel) -> Iterator[None]:
    """Modalities in evaluation mode and the caller's random state kept, within the block."""
    training = model.training
    with torch.random.fork_rng():
        model.modalities.eval()
        try:
            yield
        finally:
            model.modalities.train(training)


def noisy_adapters(model: SafeModel) -> AbstractContextManager[None]:
    """Let every fusion adapter answer with noise as large as the hidden states it is shown."""
    fusions = (model.modality(name).fusion for name in model.modalities)
    return registered(*(fusion.register_forward_hook(_add_noise) for fusion in fusions))


def _add_noise(module: nn.Module, args: Any, delta: Any) -> Any:
    hidden: Tensor = args[0]
    generator = torch.Generator().manual_seed(hidden.shape[-2])
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    scale = hidden.detach().float().abs().mean() + 1e-3
    return (scale * noise).to(hidden.dtype)


@contextmanager
def nonzero_deltas(model: SafeModel) -> Iterator[set[str]]:
    """Collects the names of the modalities whose delta was not zero everywhere."""
    found: set[str] = set()

    def note(name: str, module: nn.Module, args: Any, delta: Tensor) -> None:
        """Note the modality if its delta is not zero."""
        if bool((delta != 0).any()):
            found.add(name)

    with registered(
        *(
            model.modality(name).fusion.register_forward_hook(partial(note, name))
            for name in model.modalities
        )
    ):
        yield found


@contextmanager
def call_counter(model: SafeModel) -> Iterator[Counter[str]]:
    """Counts the calls of every module of every modality, by its path."""
    calls: Counter[str] = Counter()

    def count(path: str, module: nn.Module, args: Any) -> None:
        """Count a call of the module."""
        calls[path] += 1

    with registered(
        *(
            module.register_forward_pre_hook(partial(count, path))
            for path, module in model.modalities.named_modules()
        )
    ):
        yield calls
