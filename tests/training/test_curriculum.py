"""Stages: which example stands where, and when a stage is over."""

from pathlib import Path

import pytest

from safe_framework.config.schema import StageSpec, TrainingSpec, UntilSpec
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.training.curriculum import Curriculum, is_reached, stage_indices
from safe_framework.training.schedules import TrainingScales

STAGES = (
    StageSpec(name="first", steps=3, retention_weight=0.0, learning_rate=0.5),
    StageSpec(name="second", steps=4, until=UntilSpec(accuracy=0.6, task_loss=1.0)),
    StageSpec(),
)
MEMBERS = ([0, 1], [2, 3, 4], [0, 1, 2, 3, 4])
GOOD, BAD = {"accuracy": 0.7, "task_loss": 0.5, "retention": 0.9}, {
    "accuracy": 0.7, "task_loss": 1.5, "retention": 0.9,
}  # fmt: skip


def curriculum(*, balance: bool = False) -> Curriculum:
    """Three stages of a run of ten steps."""
    spec = TrainingSpec(max_steps=10, batch_size=2, balance=balance)
    return Curriculum(STAGES, MEMBERS, ["a", "a", "b", "b", "c"], spec, TrainingScales())


@pytest.mark.parametrize("balance", [False, True])
def test_a_step_has_examples_of_its_stage(balance: bool) -> None:
    """Law: a step's examples are of the stage that it is in, whatever loader asked how early."""
    stages = curriculum(balance=balance)
    for step in range(1, 6):
        stages.advance(step)
    seen = [{stages.example_at(2 * step + row, 2) for row in (0, 1)} for step in range(10)]
    assert all(found <= {0, 1} for found in seen[:3])
    assert all(found <= {2, 3, 4} for found in seen[3:])
    assert {2, 3, 4} == set.union(*seen[3:])


def test_every_example_comes_once_in_a_pass() -> None:
    """Law: a stage reads all its examples before it reads one again."""
    stages = curriculum()
    assert sorted(stages.example_at(place, 2) for place in range(6)) == [0, 0, 0, 1, 1, 1]
    assert {stages.example_at(0, 2), stages.example_at(1, 2)} == {0, 1}


def test_stages_end_by_steps() -> None:
    """Law: a stage is over after its steps; the last one never is."""
    stages = curriculum()
    moved = [step for step in range(1, 11) if stages.advance(step)]
    assert (moved, stages.starts, stages.name) == ([3, 7], [0, 3, 7], "stage 3")
    assert not stages.advance(100, GOOD)


def test_a_stage_ends_once_all_was_reached() -> None:
    """Law: `until` ends a stage before its steps, but only if all that it names was measured."""
    stages = curriculum()
    stages.advance(3)
    assert not stages.advance(4, BAD)
    assert stages.advance(5, GOOD)
    assert stages.starts == [0, 3, 5]


@pytest.mark.parametrize(
    ("until", "over"),
    [
        (UntilSpec(accuracy=0.7), True),
        (UntilSpec(accuracy=0.71), False),
        (UntilSpec(retention=0.9), True),
        (UntilSpec(retention=0.91), False),
        (UntilSpec(task_loss=0.5), True),
        (UntilSpec(task_loss=0.49), False),
    ],
)
def test_limits_are_met_from_their_own_side(until: UntilSpec, over: bool) -> None:
    """Law: shares must come up to a limit, a loss must come down to it; equal is enough."""
    assert is_reached(until, GOOD) == over


def test_scales_are_the_stages() -> None:
    """Law: rates and retention are multiplied by what the present stage says."""
    stages = curriculum()
    assert (stages.scales.rate, stages.scales.retention) == (0.5, 0.0)
    stages.advance(3)
    assert (stages.scales.rate, stages.scales.retention) == (1.0, 1.0)


def test_a_checkpoint_holds_where_it_is(tmp_path: Path) -> None:
    """Law: a resumed run is in the same stage, with the same examples ahead of it."""
    unbroken, resumed = curriculum(), curriculum()
    unbroken.advance(3)
    unbroken.advance(5, GOOD)
    unbroken.keep(tmp_path)
    resumed.restore(tmp_path)
    assert resumed.name == unbroken.name
    places = range(10, 20)
    assert [resumed.example_at(p, 2) for p in places] == [unbroken.example_at(p, 2) for p in places]
    assert resumed.scales.rate == 1.0


def test_where_chooses_rows_by_their_fields() -> None:
    """Law: a value is met by its equal of the same type, an array by any of its values."""
    levels = ["easy", "hard", "odd", None]
    rows = [Example("", "", fields={"level": level, "n": 1}) for level in levels]
    assert stage_indices(StageSpec(where={"level": "hard"}), rows, range(4)) == [1]
    assert stage_indices(StageSpec(where={"level": ("easy", "odd")}), rows, range(4)) == [0, 2]
    assert stage_indices(StageSpec(), rows, [1, 3]) == [1, 3]
    for missing in ({"n": True}, {"level": "hrad"}, {"other": 1}):
        with pytest.raises(DataError, match="no training row is of the stage"):
            stage_indices(StageSpec(where=missing), rows, range(4))
