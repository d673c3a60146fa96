"""Measures a model in training, and decides whether to warn, to roll back, or to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_framework.core.adapter import copy_tensors
from safe_framework.core.model import SafeModel
from safe_framework.evaluation.metrics import interval
from safe_framework.training import distributed
from safe_framework.training.monitor.event_log import EventLog
from safe_framework.training.monitor.measurement import (
    HeldOutCounts,
    HeldOutEvaluator,
    Measurement,
    best,
    has_forgotten,
    retains,
    retention_limit,
)
from safe_framework.training.monitor.pareto import ParetoSet
from safe_framework.training.schedules import Scales, TrainingScales
from safe_framework.utils.formatting import percent
from safe_framework.utils.tensors import cpu_copy

if TYPE_CHECKING:
    from safe_framework.config.schema import MonitorSpec

_FILE = "monitor.json"
_ADAPTER, _MOMENTS = "good_adapter.safetensors", "good_optimizer.safetensors"


@attrs.frozen(eq=False)
class AdapterSnapshot:
    """The last good adapter and the optimizer's state at its step, copied to the CPU.

    Attributes:
        adapter: the adapter's tensors.
        moments: the optimizer's state of each parameter, as ``"NUMBER.NAME"``; none before its
            first step.
    """

    adapter: dict[str, Tensor]
    moments: dict[str, Tensor]

    @classmethod
    def take(cls, model: SafeModel, optimizer: torch.optim.Optimizer) -> AdapterSnapshot:
        """Copy the present state of training."""
        states = optimizer.state_dict()["state"]
        return cls(
            {name: cpu_copy(tensor) for name, tensor in model.adapter_tensors().items()},
            {
                f"{number}.{name}": cpu_copy(tensor)
                for number, state in states.items()
                for name, tensor in state.items()
            },
        )

    def load_into(self, model: SafeModel, optimizer: torch.optim.Optimizer) -> None:
        """Restore model and optimizer; the optimizer's rates stay what they are."""
        copy_tensors(model.adapter_tensors(), self.adapter, Path("the last good adapter"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.moments.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        save_file(self.adapter, checkpoint / _ADAPTER)
        save_file(self.moments, checkpoint / _MOMENTS)

    @classmethod
    def restore(cls, checkpoint: Path) -> AdapterSnapshot:
        """Read what ``save`` wrote."""
        return cls(load_file(checkpoint / _ADAPTER), load_file(checkpoint / _MOMENTS))


@attrs.define
class MonitorState:
    """The state of a monitor but for its measurements; it goes into every checkpoint.

    Attributes:
        first: agreement on each text at the start of training.
        good: the step of the last good adapter.
        rollbacks: how many there were.
        waited: measurements since gain was last better.
        stopped: why training was stopped; empty if it was not.
    """

    first: list[float] = attrs.field(factory=list)
    good: int = 0
    rollbacks: int = 0
    waited: int = 0
    stopped: str = ""


class Monitor:
    """Measures a model in training, and defends its retention.

    Args:
        spec: the recipe's ``[monitor]``.
        model: in training.
        evaluator: measures it.
        event_log: of the run.
        pareto: stores the adapters that no other dominates.
        scales: changed when retention falls.
        resamples: of the intervals.
        seed: of the intervals.
        writes: whether this process is the one that writes files.
    """

    def __init__(
        self,
        spec: MonitorSpec,
        model: SafeModel,
        evaluator: HeldOutEvaluator,
        event_log: EventLog,
        pareto: ParetoSet,
        scales: TrainingScales,
        *,
        resamples: int,
        seed: int,
        writes: bool = True,
    ) -> None:
        self.spec, self.model, self.evaluator = spec, model, evaluator
        self.event_log, self.pareto, self.scales = event_log, pareto, scales
        self.resamples, self.seed, self.writes = resamples, seed, writes
        self.state = MonitorState()
        self.measurements: list[Measurement] = []
        self._good: AdapterSnapshot | None = None

    def is_due(self, step: int, last: int) -> bool:
        """Whether there is a measurement after a step, of which ``last`` is the run's last."""
        return step % self.spec.eval_steps == 0 or step == last

    def measure(
        self, step: int, stage: str, optimizer: torch.optim.Optimizer
    ) -> Measurement | None:
        """Measure, and act on the result.

        Returns:
            The measurement, or None if the adapter that it is of was rolled back.
        """
        self.pareto.prepare(writes=self.writes)
        counts = _from_main_process(self.evaluator.count())
        self.state.first = self.state.first or list(counts.shares)
        measurement = Measurement.of(
            counts,
            self.state.first,
            step=step,
            stage=stage,
            resamples=self.resamples,
            seed=self.seed,
        )
        self.state.waited = 0 if self._is_better(measurement) else self.state.waited + 1
        self.measurements.append(measurement)
        self._log_measurement(measurement)
        if self.writes:
            self.pareto.add(measurement, self.measurements)
            self.pareto.write_index(
                self.measurements, best(self.measurements, self.spec).step, self.limit
            )
        return measurement if self._act_on(measurement, optimizer) else None

    @property
    def limit(self) -> float:
        """The agreement that still counts as kept."""
        return retention_limit(self.measurements[0], self.spec)

    def _is_better(self, measurement: Measurement) -> bool:
        kept = [one for one in self.measurements if retains(one, self.spec)]
        if not retains(measurement, self.spec):
            return False
        return all(measurement.gain.value > one.gain.value for one in kept)

    def _log_measurement(self, measurement: Measurement) -> None:
        self.event_log.log(
            "evaluation",
            measurement.step,
            f"right {percent(measurement.gain.value)} ({interval(measurement.gain)}), "
            f"kept {percent(measurement.retention.value)} ({interval(measurement.retention)}), "
            f"task loss {measurement.task_loss:.3f}",
            **{key: value for key, value in measurement.to_dict().items() if key != "step"},
            keeps=retains(measurement, self.spec),
            limit=self.limit,
        )

    def _act_on(self, measurement: Measurement, optimizer: torch.optim.Optimizer) -> bool:
        """Warn or roll back where retention fell; whether the adapter stays."""
        if retains(measurement, self.spec) or self._good is None:
            self._good = AdapterSnapshot.take(self.model, optimizer)
            self.state.good = measurement.step
        kept = f"kept {percent(measurement.retention.value)} ({interval(measurement.retention)})"
        if measurement.step == 0 or not has_forgotten(measurement, self.spec):
            if not retains(measurement, self.spec):
                why = "is" if has_forgotten(measurement, self.spec) else "may be chance, but is"
                line = f"warning: {kept} {why} below {percent(self.limit)}"
                self.event_log.log("warning", measurement.step, line)
            return True
        return self._respond_to_loss(measurement.step, kept, optimizer)

    def _respond_to_loss(self, step: int, kept: str, optimizer: torch.optim.Optimizer) -> bool:
        response, present = self.spec.on_forget, self.scales.monitor
        self.scales.monitor = Scales(
            present.rate * response.learning_rate, present.retention * response.retention_weight
        )
        changes = (
            f"rates x {self.scales.monitor.rate:g}, retention x {self.scales.monitor.retention:g}"
        )
        facts = {
            "rate": self.scales.monitor.rate,
            "retention_weight": self.scales.monitor.retention,
        }
        fell = f"{kept} is below {percent(self.limit)}"
        if not response.rollback:
            self.event_log.log("warning", step, f"warning: {fell}; {changes}", **facts)
            return True
        assert self._good is not None, "the first adapter is always good"
        self._good.load_into(self.model, optimizer)
        self.state.rollbacks += 1
        line = f"rolled back to step {self.state.good}: {fell}; {changes}"
        self.event_log.log("rollback", step, line, to=self.state.good, **facts)
        if self.state.rollbacks > self.spec.max_rollbacks:
            self._stop(step, f"retention fell {self.state.rollbacks} times")
        return False

    def _stop(self, step: int, why: str) -> None:
        if not self.state.stopped:
            self.state.stopped = why
            self.event_log.log("stop", step, f"stopped: {why}")

    def check_patience(self, step: int) -> None:
        """Stop if gain has not improved for `patience` measurements."""
        if self.spec.patience and self.state.waited >= self.spec.patience:
            self._stop(step, f"no better gain in {self.state.waited} measurements")

    def reset_patience(self) -> None:
        """Count from anew, as at the start of a stage."""
        self.state.waited = 0

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint what a resumed run needs."""
        saved: dict[str, Any] = {
            "state": attrs.asdict(self.state),
            "readings": [one.to_dict() for one in self.measurements],
            "factors": attrs.asdict(self.scales.monitor),
        }
        (checkpoint / _FILE).write_text(json.dumps(saved) + "\n", "utf-8")
        if self._good is not None:
            self._good.save(checkpoint)

    def restore(self, checkpoint: Path) -> None:
        """Resume from a checkpoint."""
        saved = json.loads((checkpoint / _FILE).read_text("utf-8"))
        self.state = MonitorState(**saved["state"])
        self.measurements = [Measurement.from_dict(one) for one in saved["readings"]]
        self.scales.monitor = Scales(**saved["factors"])
        self._good = AdapterSnapshot.restore(checkpoint)

    def finish(self) -> None:
        """Load the best adapter that keeps retention into the model."""
        chosen = best(self.measurements, self.spec)
        last = self.measurements[-1].step
        line = (
            f"the adapter is that of step {chosen.step}: right {percent(chosen.gain.value)}, "
            f"kept {percent(chosen.retention.value)}"
        )
        if not retains(chosen, self.spec):
            line += f", since no adapter kept {percent(self.limit)}"
        distributed.barrier()  # the main process has written it
        self.pareto.load(chosen.step)
        self.event_log.log("best", last, line, chosen=chosen.step)
        if self.writes:
            self.pareto.write_index(self.measurements, chosen.step, self.limit)
            self.pareto.prune(self.measurements)


def _from_main_process(counts: HeldOutCounts) -> HeldOutCounts:
    """The counts of the main process, so that all of them decide alike."""
    shared = [counts]
    if distributed.world_size() > 1:
        broadcast_object_list(shared)
    return shared[0]
