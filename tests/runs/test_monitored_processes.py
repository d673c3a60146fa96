"""Two processes that train a monitored model measure, roll back and move on as one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safe_framework.runs.run import run_recipe
from safe_framework.training.monitor.event_log import read_events
from tests.runs.monitored import MONITORED, STAGED, write_recipe
from tests.runs.test_launch import SCRIPT, environment

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one run by one process, and of one by two."""
    rate = "5e-3"
    recipe = write_recipe(
        world, "together", MONITORED, STAGED,
        projector='{ use = "standard", tokens = 2, hidden_dim = 8, dropout = 0.0 }',
        fusion='{ use = "lora", rank = 2, layers = [0, 1] }',
        projector_learning_rate=rate, fusion_learning_rate=rate, max_steps="8",
        warmup_steps="0", batch_size="4", save_steps="4",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("together")
    alone = run_recipe(recipe, output=folder / "alone", quiet=True)
    command = [sys.executable, SCRIPT, "unbroken", folder / "work", recipe]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unbroken"]["statuses"] == [0, 0], done.stderr
    return alone, folder / "unbroken"


def test_they_tell_the_same(pair: tuple[Path, Path]) -> None:
    """Law: a rollback and each change of stage come at the step at which one process has them."""
    alone, together = (read_events(folder / "monitor.jsonl") for folder in pair)
    assert {"rollback", "stage", "evaluation"} <= {event["event"] for event in alone}
    assert [(e["event"], e["step"]) for e in together] == [(e["event"], e["step"]) for e in alone]


def test_they_come_to_the_same_weights(pair: tuple[Path, Path]) -> None:
    """Law: after them the weights that are trained on are those of one process."""
    place = "checkpoints/checkpoint-8/model.safetensors"
    alone, together = (load_file(folder / place) for folder in pair)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5)
