"""Whole runs with a Stage B: what they say of the changed base, and that a kill changes nothing."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import safe_framework
from safe_framework.config.read import read_recipe
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import AdapterError, DataError, SafeError
from safe_framework.evaluation.base_drift import Drift, measure_drift
from safe_framework.experimental.base_finetuning.train import finetune_base
from safe_framework.runs.run import run_recipe
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.certificate import summary
from tests.runs.test_resume import killed, statuses

pytestmark = pytest.mark.slow

LORA = """
[stage_b]
method = "lora"
rank = 2
dropout = 0.1
learning_rate = 1e-2
max_steps = 6
warmup_steps = 0
"""
LAYERS = """
[stage_b]
method = "layers"
layers = [-1]
learning_rate = 1e-2
max_steps = 6
warmup_steps = 0

[[stage_b.retention]]
use = "fisher"

[[stage_b.retention]]
use = "distillation"
"""
MOMENTS = ["between_the_stages", "writing_stage_b", "late_in_stage_b"]
STARTED = ["measuring_fisher", "early_in_stage_b"]
CHANGED = {
    "lora": "base_lora/adapter_model.safetensors",
    "layers": "base_layers.safetensors",
}
WORDS = "THE BASE WAS CHANGED"


def recipe_of(world: Path, name: str, table: str) -> str:
    """The world's recipe with a ``[stage_b]``."""
    path = world / f"{name}.toml"
    path.write_text((world / "recipe.toml").read_text() + table)
    return str(path)


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method, and one of Stage A alone; not to be changed."""
    folder = tmp_path_factory.mktemp("stage_b")
    recipes = {
        "lora": recipe_of(world, "with_lora", LORA),
        "layers": recipe_of(world, "with_layers", LAYERS),
        "none": str(world / "recipe.toml"),
    }
    return {n: run_recipe(r, output=folder / n, quiet=True) for n, r in recipes.items()}


@pytest.mark.parametrize("method", CHANGED)
def test_metrics_report_and_card_say_it(finished: dict[str, Path], method: str) -> None:
    """Law: metrics, report, config and model card of a changed base say so, with its drift."""
    run = finished[method]
    changed = json.loads((run / "metrics.json").read_text())["base_changed"]
    assert changed["laws_given_up"] == ["L1", "L2"]
    assert changed["drift"]["largest"] > 0
    assert changed["drift"]["off_identical"] is (method == "lora")
    page, card = (run / "report.html").read_text(), (run / "adapter/README.md").read_text()
    assert WORDS in page
    assert "is meant to be the same model bit for bit" not in page
    assert "bit for bit the base model's" not in card
    assert "**The base was changed**" in card
    assert re.search(r"L1 and L2 do not hold.*largest logit difference \d", card)
    facts = json.loads((run / "adapter/adapter_config.json").read_text())["base_change"]
    assert facts["drift"]["agreement"] == changed["drift"]["agreement"]["value"]
    assert (run / "adapter" / CHANGED[method]).is_file()


def test_stage_a_says_none_of_it(finished: dict[str, Path]) -> None:
    """Law: a run without [stage_b] has no new file, key or sentence."""
    run = finished["none"]
    assert "base_changed" not in json.loads((run / "metrics.json").read_text())
    assert "base_change" not in json.loads((run / "adapter/adapter_config.json").read_text())
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.toml",
    }  # fmt: skip
    told = (run / "report.html").read_text() + (run / "adapter/README.md").read_text()
    assert "changed" not in told.lower().replace("unchanged", "")
    assert not (run / "checkpoints/stage_b").exists()


@pytest.mark.parametrize("method", CHANGED)
def test_verify_waives_the_two_laws(finished: dict[str, Path], method: str) -> None:
    """Law: the certificate waives L1 and L2, never says that they hold, and gives the drift."""
    model = safe_framework.load(finished[method] / "adapter")
    certificate = safe_framework.verify(model, calls="quick", texts=["the cat sat", "on a mat"])
    assert certificate.holds, certificate.failures
    of = {law.key: law.verdict.value for law in certificate.laws}
    assert (of["L1"], of["L2"]) == ("waived", "waived")
    assert of["B2"] == ("holds" if method == "lora" else "not applicable")
    assert certificate.base_changed is not None
    assert certificate.base_changed.drift.texts == 2
    console = Console(record=True, width=160, quiet=True)
    with console.capture() as shown:
        console.quiet = False
        console.print(summary(certificate))
    assert WORDS in shown.get()
    assert json.loads(certificate.to_json())["base_changed"]["drift"]["largest"] > 0


def test_a_certificate_of_stage_a_is_as_before(finished: dict[str, Path]) -> None:
    """Law: an unchanged base is asked L1 and L2 themselves, and nothing else is said."""
    model = safe_framework.load(finished["none"] / "adapter")
    certificate = safe_framework.verify(model, calls="quick")
    assert {law.key for law in certificate.laws} == {
        "",
        "L1",
        "L2",
        "L3",
        "L4",
        "L5",
        "L6",
        "L7",
        "L8",
        "L9",
    }
    assert "base_changed" not in json.loads(certificate.to_json())


def test_the_console_says_it(finished: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Law: the last lines of a run on the screen say that the base was changed."""
    place = str(finished["lora"].parent)
    recipe = json.loads((finished["lora"] / "run.json").read_text())
    assert recipe
    run_recipe(_recipe_text(finished), output=Path(place) / "lora")
    assert WORDS in capsys.readouterr().out


def _recipe_text(finished: dict[str, Path]) -> str:
    """The file that the run of LoRA was made of."""
    text = (finished["lora"] / "adapter/recipe.toml").read_text()
    folder = Path(re.search(r'model = "(.*)/base"', text)[1])  # type: ignore[index]  # it is there
    return str(folder / "with_lora.toml")


def test_it_starts_from_an_adapter(world: Path, finished: dict[str, Path], tmp_path: Path) -> None:
    """Law: Stage B can begin with a finished Stage A, and then ends where one run of both does."""
    start = f'start = "{finished["none"] / "adapter"}"\n'
    run = run_recipe(recipe_of(world, "started", LORA + start), output=tmp_path / "r", quiet=True)
    assert not list((run / "checkpoints").glob("checkpoint-*"))
    for name in ("adapter_model.safetensors", CHANGED["lora"]):
        ours, both = (load_file(folder / "adapter" / name) for folder in (run, finished["lora"]))
        assert ours.keys() == both.keys()
        assert all(bitwise_equal(ours[key], both[key]) for key in ours)


def test_it_starts_from_no_changed_base(
    world: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    """Law: an adapter whose base was changed already is no start."""
    start = f'start = "{finished["lora"] / "adapter"}"\n'
    with pytest.raises(AdapterError, match="has been in stage B already"):
        run_recipe(recipe_of(world, "twice", LORA + start), output=tmp_path / "r", quiet=True)


def test_another_start_is_another_run(
    world: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    """Law: a run is not resumed once the adapter that it began with has other weights."""
    import shutil

    from safetensors.torch import save_file

    copy = Path(shutil.copytree(finished["none"] / "adapter", tmp_path / "start"))
    recipe = recipe_of(world, "moved", f'{LORA}start = "{copy}"\n')
    run_recipe(recipe, output=tmp_path / "r", quiet=True)
    place = copy / "adapter_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(place).items()}, place)
    with pytest.raises(DataError, match="holds a run of other training data"):
        run_recipe(recipe, output=tmp_path / "r", quiet=True)


def test_the_null_space_is_refused(world: Path, tmp_path: Path) -> None:
    """Law: a method that would hold the base still is refused before Stage A is trained."""
    table = LORA + '\n[[stage_b.retention]]\nuse = "nullspace"\n'
    with pytest.raises(SafeError, match="would hold the base still in stage B"):
        run_recipe(recipe_of(world, "null", table), output=tmp_path / "r", quiet=True)
    assert not list((tmp_path / "r/checkpoints").glob("checkpoint-*"))


def test_fisher_holds_the_base_too(finished: dict[str, Path]) -> None:
    """Law: Fisher information is kept of every base parameter that trains, and some is not 0."""
    kept = load_file(finished["layers"] / "checkpoints/stage_b/retention-0.safetensors")
    changed = load_file(finished["layers"] / "adapter" / CHANGED["layers"])
    found = [kept[f"fisher.base__change.{name}"] for name in changed]
    assert found
    assert all(bool((one >= 0).all()) and bool((one > 0).any()) for one in found)
    assert all(torch.isfinite(one).all() for one in found)


STRONG = """
[stage_b]
method = "{method}"
layers = [0, 1]
learning_rate = 1e-2
max_steps = 25
warmup_steps = 0
replay_weight = {replay}

[[stage_b.retention]]
use = "distillation"
weight = {beside}
"""


def drift(world: Path, start: Path, table: str, folder: Path) -> Drift:
    """How far Stage B takes the base on texts that it never saw."""
    recipe = read_recipe(recipe_of(world, folder.name, table))
    model, data = safe_framework.load(start), RecipeData(recipe)
    encoders = {"audio": model.modality("audio").encoder}
    rows = data.examples("train", encoders)
    progress = WorkProgress(Console(quiet=True))
    finetune_base(model, recipe, rows, folder, progress=progress, data=data)
    found = measure_drift(model, ["the dog sat on a mat", "a cat ran on this", "what is the cat"])
    assert found is not None
    return found.drift


@pytest.mark.parametrize("method", CHANGED)
def test_replay_and_distillation_reduce_the_drift(
    world: Path, finished: dict[str, Path], tmp_path: Path, method: str
) -> None:
    """Law: from the same seed, a defended base drifts at most half as far as one that is not."""
    start = finished["none"] / "adapter"
    bare, held = (
        drift(world, start, STRONG.format(method=method, replay=r, beside=b), tmp_path / name)
        for name, r, b in ((f"bare_{method}", 0, 0), (f"held_{method}", 5, 1))
    )
    assert held.kl.value < 0.5 * bare.kl.value
    assert held.largest < bare.largest


def test_senses_can_stand_still(world: Path, finished: dict[str, Path], tmp_path: Path) -> None:
    """Law: with train_senses off, the base's part trains and no sense moves by a bit."""
    table = f'{LORA}train_senses = false\nstart = "{finished["none"] / "adapter"}"\n'
    run = run_recipe(recipe_of(world, "still", table), output=tmp_path / "r", quiet=True)
    ours, before = (
        load_file(folder / "adapter/adapter_model.safetensors")
        for folder in (run, finished["none"])
    )
    assert all(bitwise_equal(ours[key], before[key]) for key in before)
    pairs = load_file(run / "adapter" / CHANGED["lora"])
    assert all(bool(pair.any()) for pair in pairs.values())


KILLED = [-signal.SIGKILL, 0]
"""How a run ends that is killed, and the one that goes on from it."""


@pytest.fixture(scope="module")
def lora_runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA for each moment, and one that nobody killed."""
    recipe = Path(recipe_of(world, "killed_lora", LORA))
    return killed(recipe, tmp_path_factory.mktemp("lora"), MOMENTS)


@pytest.fixture(scope="module")
def layer_runs(
    world: Path, finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same of layers that are trained in place, from an adapter of Stage A."""
    start = f'\nstart = "{finished["none"] / "adapter"}"\n'
    recipe = recipe_of(world, "killed_layers", LAYERS.replace("\n\n", start, 1))
    return killed(Path(recipe), tmp_path_factory.mktemp("layers"), STARTED)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_stage_b_with_lora(lora_runs: Path, moment: str) -> None:
    """Law: killed at any moment and resumed, Stage B ends at bitwise the same change."""
    assert statuses(lora_runs)[moment] == KILLED, (lora_runs / "stderr.txt").read_text()
    assert _unlike_unbroken(lora_runs, moment, CHANGED["lora"]) == []


@pytest.mark.parametrize("moment", STARTED)
def test_killed_in_stage_b_with_layers(layer_runs: Path, moment: str) -> None:
    """Law: the same of layers in place, whose originals a resumed run has again."""
    assert statuses(layer_runs)[moment] == KILLED, (layer_runs / "stderr.txt").read_text()
    assert _unlike_unbroken(layer_runs, moment, CHANGED["layers"]) == []


def _unlike_unbroken(runs: Path, moment: str, changed: str) -> list[str]:
    """Files of an adapter that are not those of the run that nobody killed."""
    unlike = []
    for name in ("adapter_model.safetensors", changed):
        ours, unbroken = (runs / m / "adapter" / name for m in (moment, "never"))
        if ours.read_bytes() != unbroken.read_bytes():
            unlike.append(name)
    return unlike
