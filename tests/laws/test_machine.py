"""L1 and L2 after any sequence of what a user can do, with any plugins on any base."""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from safe_framework.core.adapter import copy_tensors
from safe_framework.core.base_model import installed_hooks
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.tensors import cpu_copy
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.laws.calls import DECODING, MODES, all_same, copy_of, forward_tensors, generate_tensors
from tests.support.fusions import VARIANTS, fresh
from tests.support.toys import (
    BASES,
    DIM,
    HIDDEN,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    felt,
    mixtral,
    texts,
)

pytestmark = pytest.mark.slow

NAMES = st.sampled_from(["touch", "smell"])
KINDS = {**BASES, "mixtral": mixtral}


def _fresh(variant: str, model: SafeModel, layers: list[int]) -> FusionAdapter:
    """A shipped adapter."""
    return fresh(variant, model.facts(), layers=layers)


FUSIONS: dict[str, Any] = {
    **{name: partial(_fresh, name) for name in VARIANTS},
    "toy": lambda model, layers: ToyFusion(layers=sorted(layer % 2 for layer in layers)),
}
PROJECTORS: dict[str, Any] = {
    "toy": ToyProjector,
    "standard": lambda: StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8),
}


class Life(RuleBasedStateMachine):
    """A base, a copy of it, and the modalities that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saved: tuple[str, ...] | None = None

    @initialize(kind=st.sampled_from(sorted(KINDS)))
    def choose(self, kind: str) -> None:
        base = KINDS[kind]()
        self.untouched = copy_of(base)
        self.before = fingerprint(base)
        self.model = SafeModel(base)
        self.batch = texts(base, 2, 4)
        with torch.no_grad():
            self.forward = forward_tensors(self.untouched, self.batch)
        self.generated: dict[str, list[Tensor]] = {}

    def teardown(self) -> None:
        base = self.model.detach()
        assert installed_hooks(base) == []
        assert fingerprint(base) == self.before
        self.folder.cleanup()

    def samples(self) -> dict[str, Tensor]:
        """A sample of every attached modality for each row."""
        return {k: v for name in self.model.modalities for k, v in felt(2, name).items()}

    @precondition(lambda self: len(self.model.modalities) < 2)
    @rule(
        name=NAMES,
        layers=st.sampled_from([[0], [1], [0, -1]]),
        fusion=st.sampled_from(sorted(FUSIONS)),
        projector=st.sampled_from(sorted(PROJECTORS)),
    )
    def add(self, name: str, layers: list[int], fusion: str, projector: str) -> None:
        if name not in self.model.modalities:
            torch.manual_seed(1)
            self.model.add_modality(
                name,
                encoder=ToyEncoder(),
                projector=PROJECTORS[projector](),
                fusion=FUSIONS[fusion](self.model, layers),
            )

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.model.modalities:
            self.model.remove_modality(name)

    @precondition(lambda self: any(self.model.gates.values()))
    @rule(rate=st.sampled_from([0.1, 10.0, float("inf")]))
    def train(self, rate: float) -> None:
        out = self.model.train()(**self.batch, **self.samples(), labels=self.labels())
        out.loss.backward()
        for parameter in self.model.trainable_parameters().values():
            if parameter.grad is not None:
                parameter.data -= rate * parameter.grad
                parameter.grad = None
        self.model.eval()

    def labels(self) -> Tensor:
        """Targets in the shape of what the base predicts."""
        return self.batch.get("decoder_input_ids", self.batch["input_ids"])

    @rule(gate=st.sampled_from([0.0, 0.5, 1.0]))
    def set_gate(self, gate: float) -> None:
        self.model.set_gate(gate)

    @precondition(lambda self: self.model.modalities)
    @rule(decoding=st.sampled_from(["greedy", "uncached", "beams"]))
    def generate(self, decoding: str) -> None:
        prompt = {k: v for k, v in self.batch.items() if k != "decoder_input_ids"}
        self.model.generate(**prompt, **self.samples(), **DECODING[decoding], max_new_tokens=2)

    @precondition(lambda self: self.model.modalities)
    @rule()
    def save(self) -> None:
        self.model.save_pretrained(Path(self.folder.name) / "adapter", without_recipe=True)
        self.saved = tuple(sorted(self.model.adapter_tensors()))

    @precondition(lambda self: self.saved == tuple(sorted(self.model.adapter_tensors())))
    @rule()
    def load(self) -> None:
        load_tensors(self.model, Path(self.folder.name) / "adapter")

    @precondition(lambda self: self.model.modalities)
    @rule()
    def reset_in_memory(self) -> None:
        target = self.model.adapter_tensors()
        kept = {key: cpu_copy(tensor) for key, tensor in target.items()}
        for tensor in target.values():
            tensor.zero_()
        copy_tensors(target, kept, Path("memory"))
        assert all_same(list(target.values()), list(kept.values()))

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.model = copy.deepcopy(self.model)

    @rule()
    def detach_and_attach(self) -> None:
        base = self.model.detach()
        assert installed_hooks(base) == []
        self.model = SafeModel(base)

    @rule(decoding=st.sampled_from(sorted(DECODING)))
    def generate_off(self, decoding: str) -> None:
        options = DECODING[decoding]
        if decoding not in self.generated:
            self.generated[decoding] = generate_tensors(
                self.untouched.generate, self.batch, options
            )
        with self.model.off():
            seen = generate_tensors(self.model.generate, self.batch | self.samples(), options)
        assert all_same(seen, self.generated[decoding])

    @rule(mode=st.sampled_from(sorted(MODES)), gate=st.sampled_from([0.0, -0.0]))
    def forward_off(self, mode: str, gate: float) -> None:
        batch = self.batch | self.samples()
        with MODES[mode]():
            seen = forward_tensors(lambda **given: self.model(**given, gate=gate), batch)
        assert all_same(seen, self.forward)

    @invariant()
    def the_base_is_untouched(self) -> None:
        assert fingerprint(self.model.base) == self.before
        expected = [layer for n in self.model.modalities for layer in self._layers(n)]
        assert sorted(hook.layer for hook in installed_hooks(self.model.base)) == sorted(expected)

    @invariant()
    def off_is_the_base(self) -> None:
        with torch.no_grad(), self.model.off():
            seen = forward_tensors(self.model, self.batch | self.samples())
        assert all_same(seen, self.forward)

    def _layers(self, name: str) -> tuple[int, ...]:
        return self.model.modality(name).fusion.layers


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=15)
