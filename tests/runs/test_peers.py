"""``benchmarks/peers.py``: every arm on a tiny base, and what a prefix and retention compute."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from safe_framework import Frames
from safe_framework.config.plugins import regularizers
from safe_framework.core.build import build
from safe_framework.data.recipe_data import RecipeData
from safe_framework.training.train import prepare_training
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# whether the base's bits come with the sense absent, and with all switched off that can be
ABSENT_AND_OFF = {
    "safe": (True, True),
    "safe_multilayer": (True, True),
    "safe_tanh_gated": (True, True),
    "safe_input": (True, True),
    "prefix": (True, True),
    "resampler": (True, True),
    "lora": (False, True),
    "lora_ewc": (False, True),
    "lora_lwf": (False, True),
    "full": (False, False),
    "prefix_distilled": (True, True),
    "lora_distilled": (False, True),
}


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The scripts as modules."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("arms", "models", "retention", "training", "tables")
    yield SimpleNamespace(
        main=import_module("peers"), **{name: import_module(f"peer_{name}") for name in names}
    )
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def prefix(modules: Any, world: Path) -> Any:
    """A fresh model with a prefix and LoRA."""
    recipe = modules.arms.recipe_of(str(world / "recipe.toml"), modules.arms.ARMS["lora"], 0, 2)
    return modules.models.PrefixModel(build(recipe), "lora").eval()


def heard(model: Any, rows: int = 2) -> dict[str, torch.Tensor]:
    """Two texts of unequal length, filled up on the left, and frames."""
    torch.manual_seed(3)
    return {
        "input_ids": torch.tensor([[0, 0, 5, 6], [9, 10, 11, 12]])[:rows],
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])[:rows],
        "audio__present": torch.ones(rows, dtype=torch.bool),
        "audio__frames": torch.randn(2, 5, 16)[:rows],
        "audio__frames_mask": torch.ones(2, 5, dtype=torch.bool)[:rows],
    }


def test_every_arm_is_listed(modules: Any) -> None:
    """Law: the list above is the script's."""
    assert list(ABSENT_AND_OFF) == list(modules.arms.ARMS)
    assert set(modules.arms.USUAL) < set(ABSENT_AND_OFF)


@pytest.mark.parametrize("arm", ABSENT_AND_OFF)
def test_an_arm_trains_and_gives_its_numbers(
    modules: Any, world: Path, tmp_path: Path, arm: str
) -> None:
    """Law: two steps give every number, and only what was never trained is the base bit for bit."""
    words = ["--task", str(world / "recipe.toml"), "--arms", arm, "--seeds", "0", "--steps", "2"]
    modules.main.main([*words, "--output", str(tmp_path), "--here"])
    found = json.loads((tmp_path / f"recipe/{arm}-0.json").read_text())
    shown = {*modules.tables.PERCENT, *modules.tables.COSTS}
    assert shown <= found["estimates"].keys()
    assert all(found["estimates"][name]["value"] >= 0 for name in modules.tables.COSTS)
    assert (found["facts"]["absent"], found["facts"]["off"]) == ABSENT_AND_OFF[arm]
    assert found["facts"]["rows"] or not arm.startswith("safe")
    modules.main.main([*words, "--output", str(tmp_path)])  # it is not run again
    assert "gain" in (tmp_path / "recipe/table.md").read_text()
    assert (tmp_path / "recipe/gain_and_retention.svg").stat().st_size > 1000
    with pytest.raises(SystemExit, match="other settings"):
        modules.main.main([*words, "--output", str(tmp_path), "--texts", "1"])


def test_a_peer_trains_on_the_trainers_batches(modules: Any, world: Path, tmp_path: Path) -> None:
    """Law: the rows of each step are those of SAFE's trainer, in its order."""
    recipe = modules.arms.recipe_of(str(world / "recipe.toml"), modules.arms.ARMS["prefix"], 5, 4)
    safe, data = build(recipe), RecipeData(recipe)
    examples = data.examples("train", {"audio": safe.modality("audio").encoder})
    ready = prepare_training(
        safe, recipe, examples, tmp_path / "run", WorkProgress(Console(quiet=True)), data
    )
    trainer = ready.trainer
    loop = modules.training.PeerLoop(
        modules.models.PrefixModel(safe, "frozen"),
        modules.arms.ARMS["prefix"],
        recipe,
        trainer.examples,
        ready.alignment,
        None,
        data.weights,
    )
    expected = [trainer.examples[index] for index in loop.order]
    assert len(expected) == recipe.training.max_steps * recipe.training.batch_size
    assert all(one is other for one, other in zip(trainer.train_dataset, expected, strict=True))
    ready.caches.close()


def test_a_prefix_is_tokens_before_the_texts_embeddings(prefix: Any) -> None:
    """Law: logits are the base's own on scaled tokens and words, whatever fills a row up."""
    given = heard(prefix)
    logits = prefix(**given).logits
    tokens = prefix.scale * prefix.projector(_frames(given)).values
    words = prefix.language.get_input_embeddings()(given["input_ids"][:1, 2:])
    alone = prefix.language(inputs_embeds=torch.cat([tokens[:1], words], dim=1)).logits
    assert logits.shape[:2] == given["input_ids"].shape
    assert torch.allclose(logits[0, 2:], alone[0, tokens.shape[1] :], atol=1e-5)


def _frames(given: Any) -> Frames:
    return Frames(given["audio__frames"], given["audio__frames_mask"])


def test_a_prefix_generates_what_its_logits_say(prefix: Any) -> None:
    """Law: the first generated word is the likeliest, and the text begins with the prompt."""
    given = heard(prefix)
    told = prefix.generate(**given, max_new_tokens=1, min_new_tokens=1, do_sample=False)
    logits = prefix(**given).logits[:, -1]
    logits[:, prefix.language.generation_config.eos_token_id] = -torch.inf  # as the least length
    assert told[:, :-1].tolist() == given["input_ids"].tolist()
    assert told[:, -1].tolist() == logits.argmax(-1).tolist()


def test_without_a_sample_a_prefix_is_the_student(prefix: Any) -> None:
    """Law: absent, or with the gate at 0, no token is put before the text."""
    given = heard(prefix)
    plain = {name: given[name] for name in ("input_ids", "attention_mask")}
    wanted = prefix.student(**plain).logits
    assert bitwise_equal(prefix(**plain).logits, wanted)
    assert bitwise_equal(prefix(**given, gate={"audio": 0.0}).logits, wanted)
    absent = given | {"audio__present": torch.zeros(2, dtype=torch.bool)}
    assert bitwise_equal(prefix(**absent).logits, wanted)


def test_elastic_weights_pull_by_fisher_information(modules: Any, world: Path) -> None:
    """Law: the penalty is half of weight times F times the squared move, and is 0 at the start."""
    recipe = modules.arms.recipe_of(str(world / "recipe.toml"), modules.arms.ARMS["lora"], 0, 2)
    safe = build(recipe)
    fisher = modules.retention.fisher_of(safe.base, [[5, 6, 7, 8], [9, 10, 11]], 0)
    assert len(fisher) == 14
    assert all((one >= 0).all() and one.sum() > 0 for one in fisher.values())
    assert not any(p.requires_grad for p in safe.base.parameters())
    model = modules.models.PrefixModel(safe, "lora")
    held = modules.retention.ElasticWeights(model, fisher, 4.0)
    assert held.backward(0) == 0.0
    layer = model.language.model.layers[1].mlp.up_proj
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    moved = layer.get_delta_weight("default")
    wanted = 2.0 * (fisher["model.layers.1.mlp.up_proj"] * moved.square()).sum().item()
    assert held.backward(0) == pytest.approx(wanted, rel=1e-4)


def test_text_alone_teaches_the_projector_nothing(modules: Any, prefix: Any, world: Path) -> None:
    """Law: LwF holds the base's weights on plain text, and a distilled prefix its projector too."""
    recipe = modules.arms.recipe_of(str(world / "recipe.toml"), modules.arms.ARMS["lora"], 0, 2)
    method = regularizers(recipe)[0][1]
    for name, parameter in prefix.student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    rows = [[5, 6, 7], [9, 10]]
    for frames, learns in ((None, False), ([_frames(heard(prefix, 1))] * 2, True)):
        prefix.zero_grad()
        modules.retention.Distilled(
            prefix, method, 1.0, lambda step, frames=frames: (rows, frames), 1
        ).backward(0)
        gradients = [p.grad for p in prefix.projector.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) is learns
        assert any(p.grad is not None for n, p in prefix.trained().items() if "lora" in n)


def test_documents_are_filled_between_their_marks(modules: Any, tmp_path: Path) -> None:
    """Law: only the block of the task is written, and a file without one is left as it is."""
    names = [*modules.tables.PERCENT, *modules.tables.COSTS]
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    run = {
        "estimates": dict.fromkeys(names, estimate),
        "facts": dict.fromkeys(modules.tables.FACTS, True),
        "settings": {"seed": 0},
    }
    arms = modules.tables.aggregated({"safe": [run], "full": [run | {"facts": {"off": False}}]})
    arms["full"]["facts"] = dict.fromkeys(modules.tables.FACTS, False)
    results = {"settings": {"task": "depth", "steps": 7, "seeds": [0]}, "arms": arms}
    (tmp_path / "docs").mkdir()
    page, other = tmp_path / "docs/comparison-tables.md", tmp_path / "docs/comparison.md"
    page.write_text("a\n<!-- peers-depth -->\nold\n<!-- /peers-depth -->\nb\n")
    other.write_text("nothing\n")
    assert modules.tables.write_docs(results, tmp_path) == [page]
    text = page.read_text()
    assert text.startswith("a\n<!-- peers-depth -->\n")
    assert text.endswith("<!-- /peers-depth -->\nb\n")
    assert "old" not in text
    assert "| SAFE | 50.0 [40.0, 60.0] |" in text
    assert "| prefix, full fine-tuning |" in text
    assert other.read_text() == "nothing\n"
