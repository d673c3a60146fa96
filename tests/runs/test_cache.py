"""What training keeps: losses are the same without it, and it can be computed beforehand."""

import json
from pathlib import Path

import pytest

from safe_framework.cli import main
from safe_framework.pretrained import cache_folder
from safe_framework.runs.run import run_recipe
from safe_framework.training.compute.activation_cache import ActivationStore
from tests.support.tolerance import FORWARD, rounding

pytestmark = pytest.mark.slow

SWITCHES = ['["prefix", "teacher"]', '["frames", "teacher"]', '["frames", "prefix"]', "[]"]
SPEEDUPS = {"usual": '"on"', "plain": '"off"'}
DRAWN = ["dropout = 0.2", "noise = 0.1", "dropout = 0.1"]


def recipe(world: Path, name: str, cache: str, grouped: str = "false") -> str:
    """The world's recipe with its sense in the last layer, and with what its cache holds."""
    text = (world / "recipe.toml").read_text("utf-8").replace("layers = [0, 1]", "layers = [1]")
    held = f"[training]\ncache = {cache}\ngroup_by_length = {grouped}"
    (world / f"{name}.toml").write_text(text.replace("[training]", held), "utf-8")
    return str(world / f"{name}.toml")


def losses(run: Path) -> list[float]:
    """The losses that a run logged last, over its steps."""
    states = sorted((run / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    log = json.loads((states[-1] / "trainer_state.json").read_text("utf-8"))["log_history"]
    return [row[key] for row in log for key in ("task_loss", "retention_loss") if key in row]


def test_losses_do_not_depend_on_what_is_kept(world: Path, tmp_path: Path) -> None:
    """Law: with any cache off, the losses are those with all on, to the rounding of their sum."""
    every = '["frames", "prefix", "teacher"]'
    kept = losses(run_recipe(recipe(world, "kept", every), output=tmp_path / "kept", quiet=True))
    assert len(kept) == 2
    assert min(kept) > 0
    for number, cache in enumerate(SWITCHES):
        source = recipe(world, f"without{number}", cache)
        found = losses(run_recipe(source, output=tmp_path / str(number), quiet=True))
        assert found == pytest.approx(kept, rel=0, abs=rounding(FORWARD, sum(kept)))


def test_losses_do_not_depend_on_speedups(world: Path, tmp_path: Path) -> None:
    """Law: where nothing is drawn in a step, a plain run's losses are a usual run's.

    Dropout and noise draw call by call; a usual step makes one call where a plain one makes two.
    """
    found = []
    for name, cache in {"usual": '["frames", "prefix", "teacher"]', "plain": '["frames"]'}.items():
        place = Path(recipe(world, name, cache + "\nspeedups = " + SPEEDUPS[name]))
        text = place.read_text("utf-8")
        for drawn in DRAWN:
            assert drawn in text
            text = text.replace(drawn, f"{drawn.partition(' ')[0]} = 0.0")
        place.write_text(text, "utf-8")
        found.append(losses(run_recipe(str(place), output=tmp_path / name, quiet=True)))
    assert len(found[0]) == 2
    assert min(found[0]) > 0
    assert found[1] == pytest.approx(found[0], rel=0, abs=rounding(FORWARD, sum(found[0])))


def test_what_is_cached_beforehand_is_not_computed_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: after `safe cache`, a run encodes no sample and reads no text."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "home"))
    source = recipe(world, "cached", '["frames", "prefix", "teacher"]', "true")
    assert main(["cache", source, "--quiet"]) == 0
    written = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.safetensors")}
    assert {path.parts[-3] for path in written} == {"frames", "texts"}
    computed: list[object] = []
    monkeypatch.setattr(ActivationStore, "_write", lambda *told: computed.append(told))
    run_recipe(source, output=tmp_path / "run", quiet=True)
    assert not computed
    frames = {path for path in cache_folder().rglob("*.safetensors") if "frames" in path.parts}
    assert frames == {path for path in written if "frames" in path.parts}


@pytest.mark.processes
def test_two_processes_compute_what_one_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: two processes make the same files as one, where each has as many threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this one; more add sums up in another order
    source = recipe(world, "shared", '["frames", "prefix", "teacher"]')
    found = []
    for count in ("1", "2"):
        monkeypatch.setenv("SAFE_CACHE", str(tmp_path / count))
        assert main(["cache", source, "--quiet", "--processes", count]) == 0
        files = sorted(cache_folder().rglob("*.safetensors"))
        found.append({path.relative_to(cache_folder()): path.read_bytes() for path in files})
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_no_number_of_processes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a number of processes that is none is refused with what was given."""
    with pytest.raises(SystemExit):
        main(["cache", "quickstart", "--processes", "none"])
    assert "'none' is no number of processes" in capsys.readouterr().err
