"""Runs whose encoder trains with the rest: from the recipe to the report, killed and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import safe_framework
from safe_framework.errors import SafeError
from safe_framework.runs.run import run_recipe
from safe_framework.training import objective
from tests.runs.broken import broken_off
from tests.runs.conftest import write_rows

pytestmark = pytest.mark.slow

SENSOR = """
[base]
model = "{folder}/base"

[modalities.touch]
encoder = {{ use = "sensor", channels = 2, rate = 50, patch = 4, dim = 8 }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8, dropout = 0.2 }}
fusion = {{ use = "lora", rank = 2, layers = [1] }}

[[retention]]
use = "distillation"

[[retention]]
use = "fisher"
examples = 2

[data]
train = "felt.jsonl"
test = "felt.jsonl"
retention = "texts.jsonl"
retention_test = "texts_test.jsonl"

[training]
max_steps = 5
batch_size = 3
retention_batch_size = 2
projector_learning_rate = 1e-2
fusion_learning_rate = 1e-2
encoder_learning_rate = 2e-2
warmup_steps = 0
align_steps = 3
align_weight = 0.5
save_steps = 2

[evaluation]
max_new_tokens = 2
bootstrap = 20
"""


@pytest.fixture(scope="module")
def recipe(world: Path) -> Path:
    """A recipe whose sensor trains, on recordings of several lengths and a row without one."""
    random = np.random.default_rng(0)
    rows = [{"question": "what is this", "answer": "low"}]
    for number in range(6):
        slow = np.sin(np.arange(12 + 2 * number) / (1 + 3 * (number % 2)))
        noise = random.normal(size=(len(slow), 2)) / 9
        np.save(world / f"felt{number}.npy", slow[:, None] + noise)
        answer = "high" if number % 2 else "low"
        rows.append({"question": "what is this", "answer": answer, "touch": f"felt{number}.npy"})
    write_rows(world / "felt.jsonl", rows)
    (world / "sensor.toml").write_text(SENSOR.format(folder=world))
    return world / "sensor.toml"


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run; not to be changed."""
    return run_recipe(str(recipe), output=tmp_path_factory.mktemp("sensor") / "run", quiet=True)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors."""
    return load_file(folder / "adapter/adapter_model.safetensors")


def test_every_part_is_trained_and_saved(recipe: Path, finished: Path) -> None:
    """Law: a run moves every trainable tensor, the encoder's too, and the adapter holds it."""
    fresh = safe_framework.build(recipe).trainable_parameters()
    trained = saved(finished)
    assert [name for name in fresh if ".encoder." in name]
    assert fresh.keys() - trained.keys() == {"touch.segments.weight"}  # no row has two samples
    assert not [name for name in fresh.keys() & trained.keys() if fresh[name].equal(trained[name])]


def test_the_adapter_hears_what_the_run_heard(finished: Path) -> None:
    """Law: the loaded model's encoder is the trained one."""
    model = safe_framework.load(finished / "adapter")
    trained = saved(finished)
    held = model.modality("touch").encoder.state_dict()
    assert held
    assert all(tensor.equal(trained[f"touch.encoder.{key}"]) for key, tensor in held.items())


@pytest.mark.parametrize(("rate", "moves"), [("2e-2", True), ("0.0", False)])
def test_alignment_trains_the_encoder_too(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str, moves: bool
) -> None:
    """Law: the alignment stage alone moves the encoder, unless its rate is 0."""
    own, path = "encoder_learning_rate = ", recipe.with_name(f"rate{rate}.toml")
    path.write_text(recipe.read_text().replace(f"{own}2e-2", own + rate))
    seen: list[dict[str, torch.Tensor]] = []

    def breaking(reader, calls):  # type: ignore[no-untyped-def]  # as the original
        named = reader.model.trainable_parameters()
        seen.append({n: p.detach().cpu().clone() for n, p in named.items() if ".encoder." in n})
        raise KeyboardInterrupt

    monkeypatch.setattr(objective.ForwardPlanner, "predictions", breaking)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(str(path), output=tmp_path / "run", quiet=True)
    fresh = safe_framework.build(path).trainable_parameters()
    assert seen[0]
    assert moves is not all(tensor.equal(fresh[name]) for name, tensor in seen[0].items())


def test_a_broken_run_resumes_to_the_same_weights(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    """Law: broken off after a save and resumed, the encoder too ends at bitwise the same."""
    broken_off(recipe, tmp_path / "run", loss=4)
    assert (tmp_path / "run/checkpoints/checkpoint-2").is_dir()
    run_recipe(str(recipe), output=tmp_path / "run", quiet=True)
    one, two = saved(finished), saved(tmp_path / "run")
    assert one.keys() == two.keys()
    assert all(tensor.equal(two[key]) for key, tensor in one.items())


def test_a_sample_that_the_encoder_refuses_is_named_by_its_row(
    recipe: Path, tmp_path: Path
) -> None:
    """Law: a bad recording stops the run before it trains, with the row's line."""
    folder = recipe.parent
    np.save(folder / "wide.npy", np.zeros((9, 3)))
    rows = (folder / "felt.jsonl").read_text().replace("felt1.npy", "wide.npy")
    (folder / "wide.jsonl").write_text(rows)
    text = recipe.read_text().replace('train = "felt.jsonl"', 'train = "wide.jsonl"')
    (folder / "wide.toml").write_text(text)
    with pytest.raises(SafeError, match=r"^wide\.jsonl:3: .*shape \(9, 3\)"):
        run_recipe(str(folder / "wide.toml"), output=tmp_path / "run", quiet=True)
