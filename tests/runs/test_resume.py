"""A run that was killed, at whatever moment, ends at the very weights of one that was not."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "killed_runs.py"
MOMENTS = [
    "aligning",
    "before_a_save",
    "within_an_epoch",
    "at_an_epochs_end",
    "last_step",
    "writing_weights",
    "writing_optimizer",
    "before_the_marker",
    "removing_an_old_one",
    "writing_the_adapter",
]
METHOD_MOMENTS = ["measuring_retention", "between_two_methods", "before_a_save", "within_an_epoch"]


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a run for each moment, and one that nobody killed."""
    return killed(world / "recipe.toml", tmp_path_factory.mktemp("killed"), MOMENTS)


@pytest.fixture(scope="module")
def method_runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every retention method switched on."""
    return killed(world / "every_method.toml", tmp_path_factory.mktemp("methods"), METHOD_MOMENTS)


def killed(recipe: Path, folder: Path, moments: list[str]) -> Path:
    """Run a recipe once for each moment, and once in peace."""
    command = [sys.executable, SCRIPT, recipe, folder, "never", *moments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "statuses.json").write_text(done.stdout.splitlines()[-1])
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def statuses(runs: Path) -> Mapping[str, list[int]]:
    """Exit statuses of the killed and of the resumed run, by moment."""
    found: dict[str, list[int]] = json.loads((runs / "statuses.json").read_text())
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_weights(runs: Path, moment: str) -> None:
    """Law: killed at any moment and resumed, a run ends at bitwise the unbroken run's adapter."""
    assert statuses(runs)[moment] == [-signal.SIGKILL, 0], (runs / "stderr.txt").read_text()
    assert weights(runs, moment) == weights(runs, "never")


@pytest.mark.parametrize("moment", METHOD_MOMENTS)
def test_so_does_one_with_every_retention_method(method_runs: Path, moment: str) -> None:
    """Law: what methods took from the start of a run outlives a kill, bit for bit."""
    text = (method_runs / "stderr.txt").read_text()
    assert statuses(method_runs)[moment] == [-signal.SIGKILL, 0], text
    assert weights(method_runs, moment) == weights(method_runs, "never")


def weights(runs: Path, moment: str) -> bytes:
    """The adapter of a run."""
    return (runs / moment / "adapter/adapter_model.safetensors").read_bytes()


def test_the_unbroken_run_was_not_killed(runs: Path) -> None:
    """Law: a run ends by itself, and a second call on its folder too."""
    assert statuses(runs)["never"] == [0, 0]
