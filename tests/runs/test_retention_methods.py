"""Whole runs with each retention method, alone and together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_framework import SafeError
from safe_framework.errors import DataError
from safe_framework.runs.run import run_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all three methods; not to be changed."""
    folder = tmp_path_factory.mktemp("together") / "run"
    return run_recipe(str(world / "every_method.toml"), output=folder, quiet=True)


def recipe_of(world: Path, name: str, retention: str) -> str:
    """The world's recipe with other retention tables."""
    text = (world / "recipe.toml").read_text()
    start, end = text.index("[[retention]]"), text.index("[data]")
    (world / f"{name}.toml").write_text(text[:start] + retention + text[end:])
    return str(world / f"{name}.toml")


def adapter(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run."""
    return load_file(run / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("method", ["distillation", "fisher", "nullspace"])
def test_each_method_runs_alone(world: Path, tmp_path: Path, method: str) -> None:
    """Law: a recipe with one method alone trains and is evaluated."""
    recipe = recipe_of(world, f"only_{method}", f'[[retention]]\nuse = "{method}"\n\n')
    run = run_recipe(recipe, output=tmp_path / "run", quiet=True)
    kept = list((run / "checkpoints").glob("retention-*.safetensors"))
    assert len(kept) == (0 if method == "distillation" else 1)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["retention"]["absent"]["identical"] is True


def test_together_each_does_its_part(together: Path) -> None:
    """Law: with all of them on, the null space still holds, and the loss is logged."""
    kept = load_file(together / "checkpoints/retention-0.safetensors")
    trained, checked = adapter(together), 0
    for name, free in kept.items():
        weight = f"{name.removeprefix('free.')}.weight"
        if not name.startswith("free.") or f"start.{weight.replace('.weight', '.bias')}" in kept:
            continue
        change = trained[weight] - kept[f"start.{weight}"]
        outside = change - change @ free @ free.T
        assert outside.norm() <= 1e-5 * trained[weight].norm() + 1e-8
        checked += 1
    assert checked >= 6
    assert "fisher.audio.projector.norm.weight" in load_file(
        together / "checkpoints/retention-1.safetensors"
    )


def test_foreign_samples_are_measured(together: Path) -> None:
    """Law: a recipe that names foreign test samples is measured beside them too."""
    metrics = json.loads((together / "metrics.json").read_text())
    kinds = metrics["retention"]["counterfactual"]
    assert list(kinds) == ["silent", "noise", "shuffled", "foreign"]
    assert kinds["foreign"]["positions"] == kinds["silent"]["positions"] > 0


def test_foreign_samples_move_no_other_number(world: Path, tmp_path: Path, together: Path) -> None:
    """Law: the other kinds are measured as they are without foreign samples."""
    text = (world / "every_method.toml").read_text().replace("foreign_test = ", "# ")
    (world / "unmeasured.toml").write_text(text)
    run = run_recipe(str(world / "unmeasured.toml"), output=tmp_path / "run", quiet=True)
    without, beside = (
        json.loads((folder / "metrics.json").read_text())["retention"]["counterfactual"]
        for folder in (run, together)
    )
    assert {kind: beside[kind] for kind in without} == without


def test_foreign_without_a_file_is_refused(world: Path, tmp_path: Path) -> None:
    """Law: a method that wants foreign samples says which key of [data] names them."""
    tables = '[[retention]]\nuse = "distillation"\ncounterfactual = ["foreign"]\n\n'
    recipe = recipe_of(world, "no_foreign", tables)
    with pytest.raises(DataError, match=r'hint: add `foreign = "foreign\.jsonl"` to \[data\]'):
        run_recipe(recipe, output=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("method", ["fisher", "nullspace"])
def test_what_was_kept_for_another_start_is_refused(
    world: Path, tmp_path: Path, method: str
) -> None:
    """Law: a stale file is an error that says what has changed; nothing is trained with it."""
    recipe = recipe_of(world, f"stale_{method}", f'[[retention]]\nuse = "{method}"\n\n')
    run = run_recipe(recipe, output=tmp_path / "run", quiet=True)
    place = run / "checkpoints/retention-0.safetensors"
    from safetensors import safe_open

    with safe_open(place, framework="pt") as file:
        held = file.metadata()
    save_file(load_file(place), place, metadata=held | {"version of the code": "old"})
    words = r"retention-0\.safetensors` is stale: it was made for another version of the code\n"
    with pytest.raises(DataError, match=words + "hint: start anew with --no-resume"):
        run_recipe(recipe, output=run, quiet=True)
    place.unlink()
    with pytest.raises(SafeError, match=r"retention-0\.safetensors` is missing"):
        run_recipe(recipe, output=run, quiet=True)
    run_recipe(recipe, output=run, resume=False, quiet=True)
    assert place.exists()
