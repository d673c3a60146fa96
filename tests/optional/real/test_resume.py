"""A killed run at real size: wide matrices round differently with other rows beside a row."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safe_framework.utils.catalogue import recipe_path

pytestmark = pytest.mark.real

STEPS, SAVED = 10, 4
LIMIT = 300.0  # seconds


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The quickstart, a few steps long and tested on a few rows."""
    data = recipe_path("quickstart").parent.parent / "data"
    text = recipe_path("quickstart").read_text("utf-8").replace("../data", str(data))
    for name in ("instruments", "text"):
        lines = (data / name / "test.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row |= {"audio": str(data / name / row["audio"])} if "audio" in row else {}
        short = tmp_path / f"{name}.jsonl"
        short.write_text("".join(f"{json.dumps(row)}\n" for row in rows[::12]), "utf-8")
        text = text.replace(str(data / name / "test.jsonl"), str(short))
    text = re.sub(r"^max_steps = \d+", f"max_steps = {STEPS}", text, flags=re.MULTILINE)
    text = re.sub(r"^save_steps = \d+", f"save_steps = {SAVED}", text, flags=re.MULTILINE)
    text = text.replace('attend = "answer"', 'attend = "answer"\nrelevance = false', 1)
    assert f"max_steps = {STEPS}" in text
    assert "relevance = false" in text
    assert f"save_steps = {SAVED}" in text
    path = tmp_path / "short.toml"
    path.write_text(text, "utf-8")
    return path


def start(recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    """`safe run`, in a process of its own."""
    command = [Path(sys.executable).with_name("safe"), "run", recipe, "--quiet"]
    return subprocess.Popen([*command, "--output", output], stdout=subprocess.DEVNULL)


def test_a_killed_run_ends_at_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then the same command: bitwise the unbroken run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(recipe, whole).wait(LIMIT) == 0
    process = start(recipe, killed)
    marker = killed / "checkpoints" / f"checkpoint-{SAVED}" / "complete"
    until = time.monotonic() + LIMIT
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(LIMIT) == -signal.SIGKILL
    assert start(recipe, killed).wait(LIMIT) == 0
    weights = Path("adapter", "adapter_model.safetensors")
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
