"""The monitor's parts: verdicts on a measurement, what measuring and rollbacks leave."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from safe_framework.config.schema import MonitorSpec
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example, TextRow
from safe_framework.errors import SafeError
from safe_framework.evaluation.metrics import Estimate
from safe_framework.interfaces.types import Frames
from safe_framework.training.batches import TokenizedExample
from safe_framework.training.monitor.callback import held_out_texts, refuse_deepspeed
from safe_framework.training.monitor.measurement import (
    HeldOutCounts,
    HeldOutEvaluator,
    HeldOutText,
    Measurement,
    best,
    has_forgotten,
    pareto_front,
    preserved_state,
    retains,
    retention_limit,
)
from safe_framework.training.monitor.monitor import AdapterSnapshot
from safe_framework.training.schedules import LearningRateScaler, Scales, TrainingScales
from safe_framework.training.splits import DataSplit
from tests.support.toys import END, PAD, every_tensor
from tests.training.conftest import ROWS, perturb

SPEC = MonitorSpec(tolerance=0.01, floor=0.9)


def measurement(
    step: int, gain: float, kept: float, *, width: float = 0.0, loss: float = 1.0, first: float = 1
) -> Measurement:
    """A measurement whose intervals are ``width`` wide on either side."""
    change = kept - first
    return Measurement(
        step,
        "",
        Estimate(gain, gain, gain, 9),
        loss,
        Estimate(kept, kept - width, kept + width, 9),
        Estimate(change, change - width, change + width, 9),
    )


@pytest.mark.parametrize(
    ("kept", "width", "first", "verdict"),
    [
        (1.0, 0.0, 1.0, (True, False)),
        (0.992, 0.0, 1.0, (True, False)),
        (0.98, 0.02, 1.0, (False, False)),  # beyond the limit, but it may be chance
        (0.98, 0.005, 1.0, (False, True)),
        (0.95, 0.001, 0.955, (True, False)),  # it started there
        (0.89, 0.005, 0.89, (False, True)),  # below the floor, wherever it started
    ],
)
def test_verdicts(kept: float, width: float, first: float, verdict: tuple[bool, bool]) -> None:
    """Law: kept is what is within the tolerance of the start; lost, whose whole interval is not."""
    one = measurement(8, 0.5, kept, width=width, first=first)
    assert (retains(one, SPEC), has_forgotten(one, SPEC)) == verdict


def test_the_limit_is_that_of_the_start() -> None:
    """Law: the limit is the start less the tolerance, and never below the floor."""
    assert retention_limit(measurement(8, 0, 0.97), SPEC) == pytest.approx(0.99)
    assert retention_limit(measurement(8, 0, 0.97, first=0.905), SPEC) == 0.9


def test_change_is_paired() -> None:
    """Law: texts that were always different widen no interval of the change."""
    counts = HeldOutCounts((1.0, 0.0), 1.0, (5, 9, 1), (10, 10, 10))
    made = Measurement.of(counts, counts.shares, step=4, stage="s", resamples=50, seed=0)
    assert (made.change.low, made.change.value, made.change.high) == (0, 0, 0)
    assert made.retention.low < made.retention.value == 0.5 < made.retention.high
    assert Measurement.from_dict({**made.to_dict(), "folder": "step-4"}) == made


def test_the_front_is_dominated_by_none() -> None:
    """Law: in the front are those that no other dominates; of equals the one of the lower loss."""
    low, middle, high = (
        measurement(1, 0.2, 1.0),
        measurement(2, 0.5, 0.95),
        measurement(3, 0.7, 0.91),
    )
    worse, equal = measurement(4, 0.4, 0.94), measurement(5, 0.5, 0.95, loss=0.5)
    assert pareto_front([low, middle, high, worse]) == [low, middle, high]
    assert pareto_front([low, middle, high, worse, equal]) == [low, high, equal]


def test_the_best_gains_most_and_keeps() -> None:
    """Law: the best is of most gain among those that keep; if none does, of most retention."""
    measurements = [measurement(0, 0.1, 1.0), measurement(1, 0.6, 0.995), measurement(2, 0.9, 0.95)]
    assert best(measurements, SPEC).step == 1
    assert best([*measurements[2:], measurement(3, 0.2, 0.97)], SPEC).step == 3


@pytest.fixture
def evaluator(model: SafeModel, samples: list[np.ndarray], tmp_path: Path) -> HeldOutEvaluator:
    """Measures six examples and four texts, each with a sample."""
    frames = model.modality("touch").frame_cache(tmp_path).frames(samples)
    examples = [
        TokenizedExample(row, [10 + n % 2, END], f"w{10 + n % 2}", {"touch": frames[n]})
        for n, row in enumerate([*ROWS, [5, 6], [5]])
    ]
    texts = [HeldOutText(row, row, {"touch": frames[n]}) for n, row in enumerate(ROWS)]
    return HeldOutEvaluator(model, examples, texts, batch_size=4, max_new_tokens=2, pad=PAD)


def test_a_fresh_model_keeps_all(evaluator: HeldOutEvaluator, model: SafeModel) -> None:
    """Law: retention of a fresh adapter is exactly 1; of a disturbed one it is less."""
    assert evaluator.count().agreed == evaluator.count().positions
    perturb(model)
    assert sum(evaluator.count().agreed) < sum(evaluator.count().positions)


def test_what_is_counted_is_what_the_model_predicts(
    evaluator: HeldOutEvaluator, model: SafeModel
) -> None:
    """Law: agreement is that of the model's own calls, text by text, without any batch."""
    perturb(model)
    found = []
    for text in evaluator.texts:
        ids = torch.tensor([text.plain.ids])
        frames: Frames = text.frames["touch"]
        predicted = model(
            input_ids=ids,
            touch__present=torch.tensor([True]),
            touch__frames=frames.values,
            touch__frames_mask=frames.mask,
        )
        found.append(int((predicted.logits.argmax(-1) == model.base(ids).logits.argmax(-1)).sum()))
    assert evaluator.count().agreed == tuple(found)


def test_measuring_disturbs_nothing(evaluator: HeldOutEvaluator, model: SafeModel) -> None:
    """Law: weights, modes, gates and every stream of random numbers are as before."""
    model.train()
    model.set_gate(0.25)
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in every_tensor(model)}
    drawn = []
    for measure in (lambda: None, evaluator.count):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        measure()
        drawn.append((torch.rand(4).tolist(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.gates == {"touch": 0.25}
    assert all(torch.equal(weights[name], tensor) for name, tensor in every_tensor(model))


def test_an_error_leaves_no_trace_either(model: SafeModel) -> None:
    """Law: where measuring fails, modes and gates are put back all the same."""
    model.train()
    model.set_gate(0.5)
    with preserved_state(model):
        assert (model.training, model.gates) == (False, {"touch": 1.0})
    with pytest.raises(KeyError), preserved_state(model):
        raise KeyError
    assert (model.training, model.gates) == (True, {"touch": 0.5})


def stepped(model: SafeModel, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Some steps on gradients that depend on the weights."""
    for _ in range(count):
        for parameter in model.trainable_parameters().values():
            parameter.grad = parameter.detach() + 0.5
        optimizer.step()


def trained(model: SafeModel) -> torch.optim.Optimizer:
    """An optimizer of the model's adapter."""
    return torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)


def test_a_rollback_restores_weights_and_moments(model: SafeModel, tmp_path: Path) -> None:
    """Law: after a rollback training goes on, bit for bit, as it did from the good adapter."""
    optimizer = trained(model)
    stepped(model, optimizer, 2)
    AdapterSnapshot.take(model, optimizer).save(tmp_path)
    ends = []
    for _ in range(2):
        stepped(model, optimizer, 3)
        ends.append([p.detach().clone() for p in model.trainable_parameters().values()])
        AdapterSnapshot.restore(tmp_path).load_into(model, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_rollback_to_the_start_forgets_moments(model: SafeModel) -> None:
    """Law: before the first step there are no moments, and after a rollback there none either."""
    optimizer = trained(model)
    start = AdapterSnapshot.take(model, optimizer)
    stepped(model, optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.125
    start.load_into(model, optimizer)
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_the_scaler_changes_the_step_alone() -> None:
    """Law: a step is taken at the scheduled rate times the factors; the schedule never sees it."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scales = TrainingScales(stage=Scales(rate=0.5), monitor=Scales(rate=0.25))
    scaler, state = LearningRateScaler(scales), SimpleNamespace()
    parameter.grad = torch.ones(1)
    scaler.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
    optimizer.step()
    scaler.on_optimizer_step(None, state, None, optimizer=optimizer)
    assert parameter.item() == 1 - 0.5 * 0.125
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_deepspeed_is_refused() -> None:
    """Law: where the rates could not be changed, a monitored run does not begin."""
    with pytest.raises(SafeError, match="an optimizer of DeepSpeed's"):
        refuse_deepspeed(DistributedType.DEEPSPEED)
    refuse_deepspeed(DistributedType.MULTI_CPU)


@pytest.mark.parametrize("foreign", [True, False])
def test_texts_are_read_with_every_kind(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path, foreign: bool
) -> None:
    """Law: kinds take turns, and samples from outside the task are one where there are any."""
    strange = [np.full_like(samples[0], 7.0)]
    held = (Example("w5", "w6", {"touch": samples[0]}, "1"),)
    split = DataSplit([], (), held, (TextRow("w5 w6"),) * 8, {"touch": strange} if foreign else {})
    store = model.modality("touch").frame_cache(tmp_path)
    texts = held_out_texts(model, split, {"touch": store}, seed=0)
    (wanted,) = store.frames(strange)
    numbers = [
        number
        for number, text in enumerate(texts)
        if torch.equal(text.frames["touch"].values, wanted.values)
    ]
    assert numbers == ([3, 7] if foreign else [])
