"""How open a gate is at each step."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.config.schema import GateSpec
from safe_framework.core.model import SafeModel
from safe_framework.training.schedules import GateSchedule, gate_at

specs = st.builds(
    GateSpec,
    value=st.floats(0.1, 1),
    warmup_steps=st.integers(0, 50),
    schedule=st.sampled_from(["linear", "cosine", "step", "constant"]),
    stairs=st.integers(1, 12),
)


@given(specs, st.integers(0, 100))
def test_a_gate_is_never_shut_in_training(spec: GateSpec, step: int) -> None:
    """Law: at every step a gate is above 0, where it would train nothing, and at most its value."""
    assert 0 < gate_at(step, spec) <= spec.value


@given(specs)
def test_a_gate_never_closes(spec: GateSpec) -> None:
    """Law: a gate rises from step to step, to exactly its value after the warm-up."""
    gates = [gate_at(step, spec) for step in range(60)]
    assert gates == sorted(gates)
    assert gates[spec.warmup_steps :] == [spec.value] * (60 - spec.warmup_steps)


def test_schedules_have_their_shapes() -> None:
    """Law: linear rises evenly, cosine slowly at both ends, constant not at all."""
    steps = range(4)
    shapes = {
        kind: [gate_at(s, GateSpec(value=0.8, warmup_steps=4, schedule=kind)) for s in steps]
        for kind in ("linear", "cosine", "constant")
    }
    assert shapes["linear"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shapes["cosine"] == pytest.approx([0.1171573, 0.4, 0.6828427, 0.8])
    assert shapes["constant"] == [0.8] * 4


def test_stairs_are_equally_high_and_long() -> None:
    """Law: a `step` schedule stands on `stairs` levels, then on its value after the warm-up."""
    spec = GateSpec(value=0.8, warmup_steps=6, schedule="step", stairs=3)
    gates = [gate_at(step, spec) for step in range(7)]
    assert gates == pytest.approx([0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])


def test_the_model_follows_the_schedule(model: SafeModel) -> None:
    """Law: before each step the model's gate is that step's, after training its final value."""
    schedule = GateSchedule(model, {"touch": GateSpec(value=0.5, warmup_steps=4)})
    for step in (2, 0, 9):
        schedule.on_step_begin(None, SimpleNamespace(global_step=step), None)
        assert model.gates["touch"] == gate_at(step, schedule.specs["touch"])
    schedule.on_step_begin(None, SimpleNamespace(global_step=0), None)
    schedule.on_train_end(None, None, None)
    assert model.gates == {"touch": 0.5}
