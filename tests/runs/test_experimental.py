"""Experimental parts of the package are imported only for recipes that ask for them."""

import json
import subprocess
import sys
from pathlib import Path

from tests.runs.test_stage_b import LORA, recipe_of

ROOT = Path(__file__).parents[2]

RUN = """
import json, sys
from pathlib import Path
import safe_framework
from safe_framework.runs.run import run_recipe
recipe, output = sys.argv[1:]
safe_framework.load(run_recipe(recipe, output=Path(output), quiet=True) / "adapter")
prefix = "safe_framework.experimental."
print(json.dumps([name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)]))
"""


def imported(recipe: str, output: Path) -> set[str]:
    """Which experimental parts a process has imported that ran a recipe and loaded its adapter."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, recipe, str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names}


def test_an_ordinary_run_imports_none(world: Path, tmp_path: Path) -> None:
    """Law: without `[stage_b]` and `[base.compose]`, a run and its adapter need neither part."""
    assert imported(str(world / "recipe.toml"), tmp_path / "run") == set()


def test_a_run_imports_what_it_asks_for(world: Path, tmp_path: Path) -> None:
    """Law: a run with `[stage_b]` imports base fine-tuning, and no other part."""
    recipe = recipe_of(world, "experimental", LORA)
    assert imported(recipe, tmp_path / "run") == {"base_finetuning"}
