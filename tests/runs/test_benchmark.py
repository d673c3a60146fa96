"""The recipes that ``benchmarks/retention.py`` runs, and its intervals."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from safe_framework.config.read import read_recipe
from safe_framework.evaluation.metrics import Estimate

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ARMS = ["none", "distillation", "fisher", "nullspace", "together", "wider"]


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("retention")
    sys.path.remove(str(BENCHMARKS))


def test_every_arm_is_listed(script: Any) -> None:
    """Law: the list below is the script's, and those that run by default are some of it."""
    assert list(script.ARMS) == ARMS
    assert set(script.USUAL) < set(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_the_recipe_but_for_retention(script: Any, arm: str, tmp_path: Path) -> None:
    """Law: base, modality, data, and training are the recipe's; files are found anywhere."""
    place = tmp_path / f"{arm}.toml"
    place.write_text(script.recipe_text(script.ARMS[arm], 4, 7), "utf-8")
    own, made = read_recipe("one-question"), read_recipe(str(place))
    assert (made.base, made.modalities) == (own.base, own.modalities)
    assert (made.training.seed, made.training.max_steps) == (4, 7)
    assert made.training.fusion_learning_rate == own.training.fusion_learning_rate
    named = {key: path.resolve() for key, path in own.data_files().items()}
    files = {key: path.resolve() for key, path in made.data_files().items()}
    assert named.items() <= files.items()
    assert {"foreign", "foreign_test"} <= files.keys()
    assert len(made.retention) == len(script.ARMS[arm])
    if arm == "distillation":
        assert made.retention == own.retention


def test_one_run_keeps_its_interval_and_several_get_their_own(script: Any) -> None:
    """Law: with one seed the bootstrap's interval is shown, with more that of Student's t."""
    one = Estimate(0.4, 0.3, 0.6, 9)
    assert script.over_seeds([one]) == {"mean": 0.4, "low": 0.3, "high": 0.6, "runs": [0.4]}
    two = script.over_seeds([Estimate(0.4, 0, 1, 9), Estimate(0.6, 0, 1, 9)])
    assert two["mean"] == pytest.approx(0.5)
    assert two["high"] - two["mean"] == pytest.approx(12.71 * 0.1414 / 2**0.5, rel=1e-3)
