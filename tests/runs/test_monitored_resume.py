"""A monitored run that was killed goes on with its stages, its rollbacks and all that it kept."""

import json
import signal
from pathlib import Path

import pytest

from tests.runs.monitored import MONITORED, STAGED, write_recipe
from tests.runs.test_resume import killed, statuses, weights

pytestmark = pytest.mark.slow

MOMENTS = [
    "keeping_an_adapter",
    "removing_beaten_ones",
    "rolling_back",
    "keeping_the_good_one",
    "taking_the_best",
]


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a run for each moment, and one that nobody killed."""
    rate = "5e-3"
    recipe = write_recipe(
        world, "monitored", MONITORED, STAGED,
        weight="0.0", projector_learning_rate=rate, fusion_learning_rate=rate,
        max_steps="12", warmup_steps="0", align_weight="0.0", save_steps="3",
    )  # fmt: skip
    return killed(Path(recipe), tmp_path_factory.mktemp("monitored"), MOMENTS)


def content(run: Path) -> dict[str, bytes]:
    """All that a monitored run keeps beside the adapter that it chose, by name."""
    last = run / "checkpoints" / "checkpoint-12"  # of the weights that were trained on to the end
    paths = [run / "monitor.jsonl", *(run / "pareto").rglob("*"), *last.glob("*.safetensors")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.is_file()}


def test_the_unbroken_run_has_seen_everything(runs: Path) -> None:
    """Law: the run that the others are held to has rolled back, warned and changed its stage."""
    lines = (runs / "never" / "monitor.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert {"evaluation", "rollback", "stage", "best"} <= set(kinds)
    assert kinds.count("stage") == 3
    assert len(content(runs / "never")) == 13


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_an_unbroken_one(runs: Path, moment: str) -> None:
    """Law: adapter, Pareto set and event log are the same bytes, whenever the run was killed."""
    text = (runs / "stderr.txt").read_text()
    assert statuses(runs)[moment] == [-signal.SIGKILL, 0], text
    assert weights(runs, moment) == weights(runs, "never")
    assert content(runs / moment) == content(runs / "never")
