"""A run that is killed at twenty random moments, while it writes its files too."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SCRIPT = Path(__file__).parent / "random_kills.py"
COUNT, SEED = 20, 0


@pytest.fixture(scope="module")
def kills(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of each killed run."""
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, SCRIPT, world / "recipe.toml", folder, str(SEED), str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_run_was_killed(kills: list[dict[str, Any]]) -> None:
    """Law: twenty moments are tried, at least five each in the adapter's and checkpoints' files."""
    assert [one["killed"] for one in kills] == [-signal.SIGKILL] * COUNT
    assert sum("/.adapter-" in one["moment"] for one in kills) >= 5
    assert sum("/checkpoint-" in one["moment"] for one in kills) >= 5
    assert any(one["moment"] == "computing" for one in kills)
    assert any(one["moment"].startswith("half") for one in kills)


def test_each_goes_on_to_the_same_weights(kills: list[dict[str, Any]]) -> None:
    """Law: whenever a run is killed, the next call ends at bitwise the unbroken run's adapter."""
    assert [one for one in kills if one["resumed"] or not one["same"]] == []


def test_no_half_written_adapter_loads(kills: list[dict[str, Any]]) -> None:
    """Law: right after a kill, any folder that loads as an adapter is the whole one."""
    assert [one for one in kills if one["loadable"]] == []
