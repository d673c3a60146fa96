"""Runs from Python on rows in memory: the very runs that recipes make."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

import safe_framework
from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import Attend
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError, DataError, KeywordError
from safe_framework.runs.finished import open_run
from safe_framework.runs.run import Run, run_recipe
from tests.support.toys import llama
from tests.training.conftest import model_with_modality

Sources = dict[str, Any]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, its sounds as arrays."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        if "audio" in row:
            array, rate = soundfile.read(path.parent / row["audio"], dtype="float32")
            row["audio"] = {"array": array, "sampling_rate": rate}
    return rows


@pytest.fixture(scope="module")
def sources(world: Path) -> Sources:
    """What the recipe names, in memory."""
    return {
        "train": lines(world / "train.jsonl"),
        "test": lines(world / "test.jsonl"),
        "retention": iter(lines(world / "texts.jsonl")),
        "retention_test": lines(world / "texts_test.jsonl"),
    }


@pytest.fixture(scope="module")
def done(world: Path, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from Python; not to be changed."""
    model = safe_framework.build(world / "recipe.toml")
    folder = tmp_path_factory.mktemp("python") / "heard"
    return safe_framework.train(model, **sources, output=folder, quiet=True)


def test_it_is_the_run_of_a_recipe(world: Path, done: Run, tmp_path: Path) -> None:
    """Law: from the same rows, options and seed come the same bits and numbers as by a recipe."""
    folder = run_recipe(str(world / "recipe.toml"), output=tmp_path / "run", quiet=True)
    name = "adapter/adapter_model.safetensors"
    assert (done.folder / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = (
        json.loads((one / "metrics.json").read_text("utf-8")) for one in (done.folder, folder)
    )
    for part in ("gain", "retention", "gate_zero"):
        assert ours[part] == theirs[part]
    files = {one.name for one in folder.iterdir()} | {"heard.toml"}
    assert {one.name for one in done.folder.iterdir()} == files


def test_the_recipe_says_what_was_done(world: Path, done: Run) -> None:
    """Law: the model's recipe is that of its adapter, and has what the run was told."""
    text = done.model.recipe()
    assert (done.adapter / "recipe.toml").read_text("utf-8") == text
    found, first = parse_recipe(text), parse_recipe((world / "recipe.toml").read_text("utf-8"))
    assert (found.training, found.modalities) == (first.training, first.modalities)
    assert found.data is not None
    assert found.data.train == "memory:train"
    assert open_run(done.folder).recipe.text == text


def test_measuring_again_gives_the_same(done: Run, sources: Sources) -> None:
    """Law: ``evaluate`` measures what the run's report says."""
    assert done.evaluation is not None
    found = safe_framework.evaluate(
        done.model, sources["test"], train=sources["train"],
        retention_test=sources["retention_test"], max_new_tokens=2, bootstrap=20,
    )  # fmt: skip
    assert found.gain == done.evaluation.gain
    assert found.retention == done.evaluation.retention


def test_the_rows_of_a_finished_run_are_asked_for(done: Run) -> None:
    """Law: what needs the run's rows later says that they were in memory."""
    with pytest.raises(DataError, match="rows of `test` were in memory"):
        open_run(done.folder).examples("audio")


def test_a_folder_of_other_rows_is_refused(world: Path, done: Run, sources: Sources) -> None:
    """Law: a run goes on with the same rows alone."""
    other = [{**row, "answer": "low"} for row in sources["train"]]
    model = safe_framework.build(world / "recipe.toml")
    given = {**sources, "train": other, "retention": lines(world / "texts.jsonl")}
    with pytest.raises(DataError, match=r"other training data\nhint: .*`resume=False`"):
        safe_framework.train(model, **given, output=done.folder, quiet=True)


def by_hand(
    world: Path, dropout: float = 0.0, noise: float = 0.0, attend: Attend = "all"
) -> SafeModel:
    """A model of the world's parts, put together in Python; its projector may draw in training."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from safe_framework_plugins.encoders.whisper import WhisperEncoder
    from safe_framework_plugins.fusion.lora import LoraFusion
    from safe_framework_plugins.projectors.standard import StandardProjector

    base = AutoModelForCausalLM.from_pretrained(world / "base")
    model = safe_framework.attach(base, AutoTokenizer.from_pretrained(world / "base"))
    encoder = WhisperEncoder(model=str(world / "whisper"))
    model.add_modality(
        "audio", encoder=encoder,
        projector=StandardProjector(encoder.dim, 16, hidden_dim=8, dropout=dropout, noise=noise),
        fusion=LoraFusion(model.facts(), layers=[0, 1], rank=2),
        attend=attend,
    )  # fmt: skip
    return model


def test_training_alone_needs_no_held_out_rows(
    world: Path, sources: Sources, tmp_path: Path
) -> None:
    """Law: without test data a model is trained and saved, and its adapter alone is enough."""
    model = by_hand(world)

    def rows() -> Iterator[dict[str, Any]]:
        """The training rows, whenever they are asked for."""
        yield from sources["train"]

    ran = safe_framework.train(
        model, rows, max_steps=2, batch_size=2, question="what", output=tmp_path / "run", quiet=True
    )
    assert ran.evaluation is None
    again = safe_framework.load(ran.adapter)
    assert again.recipe() == model.recipe()
    assert again.processor(question="is", audio=None) is not None
    for name, tensor in model.adapter_tensors().items():
        assert again.adapter_tensors()[name].equal(tensor)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_step": 3}, KeywordError, "no option `max_step`\nhint: did you mean `max_steps`"),
        ({"max_steps": 0}, RecipeError, "safe_framework.train:.*`training.max_steps` must be at"),
        ({"schedule": "linaer"}, RecipeError, "did you mean `linear`"),
        ({"test": "nowhere.jsonl"}, RecipeError, "there is no file .*nowhere.jsonl"),
        ({"test": {"train": []}}, DataError, r"`test` is a mapping of .* \(`train`\), not rows"),
        ({"test": [3]}, DataError, r"test\[0\]: a row must be a mapping, not a `int`"),
        ({"monitor": {"eval_step": 3}}, RecipeError, "unknown key `monitor.eval_step`"),
    ],
)
def test_what_is_wrong_is_said_before_training(
    world: Path, sources: Sources, tmp_path: Path, options: Sources, error: Any, words: str
) -> None:
    """Law: options and rows are checked as a recipe is, and before the first step."""
    with pytest.raises(error, match=words):
        safe_framework.train(
            by_hand(world), sources["train"], output=tmp_path / "run", quiet=True, **options
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_model_that_could_not_be_saved_is_not_trained(tmp_path: Path) -> None:
    """Law: parts without a name are refused before the first step, or trained if one says so."""
    rows = [{"touch": {"array": [[0.1] * 4] * 3}, "question": "w3", "answer": "w5"}] * 4
    model = model_with_modality(llama())
    given: Sources = {"max_steps": 1, "batch_size": 2, "output": tmp_path / "run", "quiet": True}
    with pytest.raises(AdapterError, match="without_recipe=True"):
        safe_framework.train(model, rows, **given)
    ran = safe_framework.train(model, rows, without_recipe=True, **given)
    assert 'encoder = { use = "memory:ArrayEncoder" }' in model.recipe()
    with pytest.raises(AdapterError, match=r"load\(folder, model=model\)"):
        safe_framework.load(ran.adapter)
    safe_framework.load(ran.adapter, model=model_with_modality(llama()))


def test_a_recipe_takes_rows_in_memory_too(world: Path, sources: Sources, tmp_path: Path) -> None:
    """Law: rows given for a key of ``[data]`` stand in for what the recipe names there."""
    text = (world / "recipe.toml").read_text("utf-8")
    held = text[text.index("[data]") : text.index("[training]")]
    text = text.replace(held, "[data]\n").replace("max_steps = 9", "max_steps = 2")
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    data = {**sources, "retention": [{"text": "the dog ran"}]}
    folder = run_recipe(
        str(tmp_path / "recipe.toml"), output=tmp_path / "run", quiet=True, data=data
    )
    assert (folder / "metrics.json").is_file()
