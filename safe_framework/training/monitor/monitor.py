"""Decides, at each measurement, whether to warn, to roll back, or to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_framework.core.adapter import adapter_tensors, copy_tensors
from safe_framework.core.model import SafeModel
from safe_framework.evaluation.metrics import interval
from safe_framework.training import distributed
from safe_framework.training.monitor.event_log import Journal
from safe_framework.training.monitor.measurement import (
    Counts,
    Reading,
    Ruler,
    best,
    forgets,
    keeps,
    limit,
)
from safe_framework.training.monitor.pareto import ParetoSet
from safe_framework.training.schedules import Scales, TrainingScales
from safe_framework.utils.formatting import percent
from safe_framework.utils.tensors import cpu_copy

if TYPE_CHECKING:
    from safe_framework.config.schema import MonitorSpec


# The last good adapter, and what the optimizer knew when it was good.


_ADAPTER, _MOMENTS = "good_adapter.safetensors", "good_optimizer.safetensors"


@attrs.frozen(eq=False)
class Snapshot:
    """Copies on the CPU.

    Attributes:
        adapter: the adapter's tensors.
        moments: what the optimizer keeps of each parameter, as ``"NUMBER.NAME"``; none before
            its first step.
    """

    adapter: dict[str, Tensor]
    moments: dict[str, Tensor]

    @classmethod
    def take(cls, model: SafeModel, optimizer: torch.optim.Optimizer) -> Snapshot:
        """Copy what training has come to."""
        held = optimizer.state_dict()["state"]
        return cls(
            {name: cpu_copy(tensor) for name, tensor in adapter_tensors(model).items()},
            {
                f"{number}.{name}": cpu_copy(tensor)
                for number, kept in held.items()
                for name, tensor in kept.items()
            },
        )

    def put_back(self, model: SafeModel, optimizer: torch.optim.Optimizer) -> None:
        """Make model and optimizer what they were; the optimizer's rates stay what they are."""
        copy_tensors(adapter_tensors(model), self.adapter, Path("the last good adapter"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.moments.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def keep(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        save_file(self.adapter, checkpoint / _ADAPTER)
        save_file(self.moments, checkpoint / _MOMENTS)

    @classmethod
    def restore(cls, checkpoint: Path) -> Snapshot:
        """Read what ``keep`` wrote."""
        return cls(load_file(checkpoint / _ADAPTER), load_file(checkpoint / _MOMENTS))


_FILE = "monitor.json"


@attrs.define
class State:
    """What a monitor knows beside its readings; it goes into every checkpoint.

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
    """Measures a model in training, and defends what its base knew.

    Args:
        spec: the recipe's ``[monitor]``.
        model: in training.
        ruler: measures it.
        journal: is told everything.
        pareto: keeps the adapters that are worth it.
        scales: turned when retention falls.
        resamples: of the intervals.
        seed: of the intervals.
        writes: whether this process is the one that writes files.
    """

    def __init__(
        self,
        spec: MonitorSpec,
        model: SafeModel,
        ruler: Ruler,
        journal: Journal,
        pareto: ParetoSet,
        scales: TrainingScales,
        *,
        resamples: int,
        seed: int,
        writes: bool = True,
    ) -> None:
        self.spec, self.model, self.ruler = spec, model, ruler
        self.journal, self.pareto, self.scales = journal, pareto, scales
        self.resamples, self.seed, self.writes = resamples, seed, writes
        self.state = State()
        self.readings: list[Reading] = []
        self._good: Snapshot | None = None

    def due(self, step: int, last: int) -> bool:
        """Whether there is a measurement after a step, of which ``last`` is the run's last."""
        return step % self.spec.eval_steps == 0 or step == last

    def look(self, step: int, stage: str, optimizer: torch.optim.Optimizer) -> Reading | None:
        """Measure, and do what is to be done.

        Returns:
            The reading, or None if the adapter that it is of was given up.
        """
        self.pareto.prepare(writes=self.writes)
        counts = _agreed(self.ruler.count())
        self.state.first = self.state.first or list(counts.shares)
        reading = Reading.of(
            counts,
            self.state.first,
            step=step,
            stage=stage,
            resamples=self.resamples,
            seed=self.seed,
        )
        self.state.waited = 0 if self._is_better(reading) else self.state.waited + 1
        self.readings.append(reading)
        self._tell(reading)
        if self.writes:
            self.pareto.add(reading, self.readings)
            self.pareto.index(self.readings, best(self.readings, self.spec).step, self.limit)
        return reading if self._judge(reading, optimizer) else None

    @property
    def limit(self) -> float:
        """The agreement that still counts as kept."""
        return limit(self.readings[0], self.spec)

    def _is_better(self, reading: Reading) -> bool:
        kept = [one for one in self.readings if keeps(one, self.spec)]
        if not keeps(reading, self.spec):
            return False
        return all(reading.gain.value > one.gain.value for one in kept)

    def _tell(self, reading: Reading) -> None:
        self.journal.tell(
            "evaluation",
            reading.step,
            f"right {percent(reading.gain.value)} ({interval(reading.gain)}), "
            f"kept {percent(reading.retention.value)} ({interval(reading.retention)}), "
            f"task loss {reading.task_loss:.3f}",
            **{key: value for key, value in reading.to_dict().items() if key != "step"},
            keeps=keeps(reading, self.spec),
            limit=self.limit,
        )

    def _judge(self, reading: Reading, optimizer: torch.optim.Optimizer) -> bool:
        """Warn or roll back where retention fell; whether the adapter was held on to."""
        if keeps(reading, self.spec) or self._good is None:
            self._good, self.state.good = Snapshot.take(self.model, optimizer), reading.step
        said = f"kept {percent(reading.retention.value)} ({interval(reading.retention)})"
        if reading.step == 0 or not forgets(reading, self.spec):
            if not keeps(reading, self.spec):
                why = "is" if forgets(reading, self.spec) else "may be chance, but is"
                line = f"warning: {said} {why} below {percent(self.limit)}"
                self.journal.tell("warning", reading.step, line)
            return True
        return self._defend(reading.step, said, optimizer)

    def _defend(self, step: int, said: str, optimizer: torch.optim.Optimizer) -> bool:
        what, mine = self.spec.on_forget, self.scales.monitor
        self.scales.monitor = Scales(
            mine.rate * what.learning_rate, mine.retention * what.retention_weight
        )
        turned = (
            f"rates x {self.scales.monitor.rate:g}, retention x {self.scales.monitor.retention:g}"
        )
        facts = {
            "rate": self.scales.monitor.rate,
            "retention_weight": self.scales.monitor.retention,
        }
        fell = f"{said} is below {percent(self.limit)}"
        if not what.rollback:
            self.journal.tell("warning", step, f"warning: {fell}; {turned}", **facts)
            return True
        assert self._good is not None, "the first look at a model is always kept"
        self._good.put_back(self.model, optimizer)
        self.state.rollbacks += 1
        line = f"rolled back to step {self.state.good}: {fell}; {turned}"
        self.journal.tell("rollback", step, line, to=self.state.good, **facts)
        if self.state.rollbacks > self.spec.max_rollbacks:
            self._stop(step, f"retention fell {self.state.rollbacks} times")
        return False

    def _stop(self, step: int, why: str) -> None:
        if not self.state.stopped:
            self.state.stopped = why
            self.journal.tell("stop", step, f"stopped: {why}")

    def lose_patience(self, step: int) -> None:
        """Stop if there was no better gain for long."""
        if self.spec.patience and self.state.waited >= self.spec.patience:
            self._stop(step, f"no better gain in {self.state.waited} measurements")

    def be_patient(self) -> None:
        """Wait anew, as at the start of a stage."""
        self.state.waited = 0

    def keep(self, checkpoint: Path) -> None:
        """Write into a checkpoint all that the monitor goes on with."""
        held: dict[str, Any] = {
            "state": attrs.asdict(self.state),
            "readings": [one.to_dict() for one in self.readings],
            "factors": attrs.asdict(self.scales.monitor),
        }
        (checkpoint / _FILE).write_text(json.dumps(held) + "\n", "utf-8")
        if self._good is not None:
            self._good.keep(checkpoint)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        held = json.loads((checkpoint / _FILE).read_text("utf-8"))
        self.state = State(**held["state"])
        self.readings = [Reading.from_dict(one) for one in held["readings"]]
        self.scales.monitor = Scales(**held["factors"])
        self._good = Snapshot.restore(checkpoint)

    def finish(self) -> None:
        """Give the model the best adapter that keeps retention."""
        chosen = best(self.readings, self.spec)
        last = self.readings[-1].step
        said = (
            f"the adapter is that of step {chosen.step}: right {percent(chosen.gain.value)}, "
            f"kept {percent(chosen.retention.value)}"
        )
        if not keeps(chosen, self.spec):
            said += f", since no adapter kept {percent(self.limit)}"
        distributed.barrier()  # the first has written it
        self.pareto.put(chosen.step)
        self.journal.tell("best", last, said, chosen=chosen.step)
        if self.writes:
            self.pareto.index(self.readings, chosen.step, self.limit)
            self.pareto.prune(self.readings)


def _agreed(counts: Counts) -> Counts:
    """What the first process counted, so that all of them decide alike."""
    held = [counts]
    if distributed.world_size() > 1:
        broadcast_object_list(held)
    return held[0]
