"""Several processes that train one model come to the weights of one process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safe_framework.config.read import read_recipe
from safe_framework.errors import SafeError
from safe_framework.runs.run import run_recipe
from safe_framework.training.distributed import StepShard, requested_sharding
from safe_framework.training.sampling import balanced_order
from safe_framework.utils import catalogue
from tests.runs.conftest import write_rows

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SCRIPT = Path(__file__).parent / "two_processes.py"
ROOT = Path(__file__).parents[2]
ANSWERS = ("high", "low cat mat", "dog")  # of unequal lengths


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Of nine, every third has a sound."""
    return [
        {"question": "what is this", "answer": ANSWERS[number % 3]}
        | ({"audio": f"train{number % 8}.wav"} if number % 3 == 0 else {})
        for number in range(9)
    ]


@pytest.fixture(scope="module")
def plain(world: Path, rows: list[dict[str, str]]) -> Path:
    """A recipe without dropout, on rows of which few have a sound, that takes steps whole."""
    write_rows(world / "sparse.jsonl", rows)
    text = (world / "recipe.toml").read_text()
    changes = {
        "dropout = 0.2, noise = 0.1": "dropout = 0.0",
        "layers = [0, 1], dropout = 0.1": "layers = [1], dropout = 0.0",  # a prefix is kept
        'train = "train.jsonl"': 'train = "sparse.jsonl"',
        "\nbatch_size = 3": "\nbatch_size = 4",
        "retention_batch_size = 2": "retention_batch_size = 4",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (world / "plain.toml").write_text(text)
    return world / "plain.toml"


def with_training(recipe: Path, name: str, lines: str) -> Path:
    """The same recipe with more lines in its ``[training]``."""
    other = recipe.with_name(f"{name}.toml")
    other.write_text(recipe.read_text().replace("[training]\n", f"[training]\n{lines}\n"))
    return other


@pytest.fixture(scope="module")
def expected(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, torch.Tensor]:
    """The adapter of a run by one process."""
    return adapter(run_recipe(str(plain), output=tmp_path_factory.mktemp("one"), quiet=True))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """What a run learned."""
    return load_file(folder / "adapter/adapter_model.safetensors")


def environment(**more: str) -> dict[str, str]:
    """Of processes that are to find the tests, on one core each."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def test_some_devices_hear_nothing_at_some_steps(rows: list[dict[str, str]], plain: Path) -> None:
    """The rows are such that there are steps at which one process alone has a sound."""
    spec = read_recipe(str(plain)).training
    answers = [row["answer"] for row in rows]
    order = balanced_order(spec.seed, answers, spec.max_steps * spec.batch_size)
    heard = ["audio" in rows[place] for place in order]
    steps = [heard[at : at + 4] for at in range(0, len(heard), 4)]
    # Rows 0 and 2 are the first process's, one after another; 1 and 3 the second's.
    alone = [any(StepShard(0, 2).of(step)) != any(StepShard(1, 2).of(step)) for step in steps]
    assert sum(alone) >= 3


@pytest.mark.parametrize(
    ("launch", "lines", "says"),
    [
        ("ddp", "gradient_accumulation_steps = 2", "2 processes\n"),
        (
            "fsdp2",
            "gradient_accumulation_steps = 2\ngradient_checkpointing = true",
            "2 processes, which share the base's layers\n",
        ),
        pytest.param(
            "deepspeed",
            "gradient_accumulation_steps = 2",
            "2 processes\n",
            marks=pytest.mark.deepspeed,
        ),
    ],
)
def test_two_processes_come_to_the_weights_of_one(
    plain: Path,
    expected: Mapping[str, torch.Tensor],
    tmp_path: Path,
    launch: str,
    lines: str,
    says: str,
) -> None:
    """Law: launched by Accelerate, in parts, where a process often hears nothing: the same 1e-5."""
    recipe = with_training(plain, launch, lines)
    config = catalogue.launch_path(launch)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", config, "--main_process_port", "0", "-m", "safe_framework.cli"]
    command += ["run", recipe, "--output", tmp_path / "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count(says), done.stdout.count("\nreport   ")) == (1, 1)  # one prints
    found = adapter(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["retention"]["absent"]["identical"] is True


def in_two(what: str, folder: Path, *more: str, **variables: str) -> dict[str, Any]:
    """What ``two_processes.py`` tells of each thing that it did."""
    done = subprocess.run(
        [sys.executable, SCRIPT, what, folder, *more],
        capture_output=True, text=True, check=False, env=environment(**variables), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}
    return told


def test_a_shared_base_computes_what_a_whole_one_does(tmp_path: Path) -> None:
    """Law: shared out among devices, layers give the same bits, hooks fire, gradients are equal.

    One process hears nothing in one of its calls, and neither waits for the other forever.
    """
    told = in_two("sharded", tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    laws = ("shared", "absent", "heard", "tokens", "gradients", "same", "fingerprint")
    assert told["sharded"]["statuses"] == [0, 0], told["stderr"]
    assert told["sharded"]["found"] == [dict.fromkeys(laws, True)] * 2


def test_a_killed_run_of_two_processes_goes_on(world: Path, plain: Path, tmp_path: Path) -> None:
    """Law: killed between two saves and resumed, with dropout and in parts, the bits are equal."""
    text = with_training(plain, "noisy", "gradient_accumulation_steps = 2").read_text()
    recipe = world / "noisy.toml"
    recipe.write_text(text.replace("dropout = 0.0", "dropout = 0.2"))
    told = in_two("killed,resumed,unbroken", tmp_path / "killed", str(recipe))
    assert told["killed"]["statuses"] == [-signal.SIGKILL] * 2, told["stderr"]
    assert told["resumed"]["statuses"] == told["unbroken"]["statuses"] == [0, 0], told["stderr"]
    unbroken = adapter(tmp_path / "unbroken")
    assert unbroken
    found = adapter(tmp_path / "killed")
    assert not [name for name, tensor in unbroken.items() if not torch.equal(tensor, found[name])]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"FSDP_VERSION": "1"}, "version 1 is not supported\nhint: set `fsdp_version: 2`"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "cannot be offloaded too\nhint: "),
    ],
)
def test_what_cannot_be_shared_out_so_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], words: str
) -> None:
    """Law: a launch configuration that would not be carried out is an error with its fix."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SafeError, match=words), requested_sharding():
        pass
