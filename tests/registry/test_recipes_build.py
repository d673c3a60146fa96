"""Every recipe of the catalogue builds, trains and is off as the base is, on tiny stand-ins."""

import io
import json

import pytest
import torch
from rich.console import Console

from safe_framework.config.read import read_recipe
from safe_framework.core import build
from safe_framework.data.examples import read_examples
from safe_framework.data.readers import read_rows
from safe_framework.runs.model_sizes import sizes_of
from safe_framework.training.train import train
from safe_framework.utils import catalogue
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal
from tests.registry.stand_ins import small_recipe

NAMES = list(catalogue.recipes())
assert len(NAMES) >= 7


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """A folder that all recipes share, so that a stand-in is made once."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.fixture(scope="module", params=NAMES)
def small(request, shared_folder):
    """A recipe of the catalogue on stand-ins, and its model."""
    recipe = small_recipe(request.param, shared_folder)
    return recipe, build.build(recipe)


def examples(model, recipe, folder):
    """Four training rows of the recipe's own data."""
    path = next(path for key, path in recipe.data_files().items() if key.startswith("train"))
    rows = [row for _, row in read_rows(path)][:4]
    for row in rows:
        row |= {name: str(path.parent / row[name]) for name in model.modalities}
        row.setdefault("question", "What is it?")  # of a bank, where the row has none
    few = folder / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    encoders = model.encoders
    return read_examples(few, encoders, recipe.data.prompt)


def test_it_has_the_sizes_that_are_reckoned(small):
    """What ``safe check --sizes`` counts without weights is what a built model has."""
    recipe, model = small
    sizes = sizes_of(recipe)
    built = [parameter.numel() for parameter in model.trainable_parameters().values()]
    assert sizes.trainable == sum(built) > 0
    more = sizes.total - sum(parameter.numel() for parameter in model.parameters())
    # A stand-in's tokenizer leaves room for `<image>` in its table, a real one does not.
    assert more == (0 if recipe.base.compose is None else 2 * model.stack.hidden_size)


@pytest.mark.slow
def test_a_step_trains_it_and_off_is_the_base(small, tmp_path, monkeypatch):
    """One step moves projector and adapter; off, the trained model is the base bit for bit."""
    recipe, model = small
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    before = {name: value.clone() for name, value in model.trainable_parameters().items()}
    few = examples(model, recipe, tmp_path)
    progress = WorkProgress(Console(file=io.StringIO()))
    (row,) = train(model, recipe, few, tmp_path / "run", progress=progress)
    assert torch.tensor(row["loss"]).isfinite()
    after = model.trainable_parameters()
    moved = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
    assert moved >= {"projector", "fusion"}
    (name,) = model.modalities
    batch = model.processor(question=["what is this"], **{name: [few[0].samples[name]]})
    words = model.processor(question=["what is this"])  # without the markers of a sample
    with torch.no_grad():
        base, active = model.base(**words).logits, model(**batch).logits
        with model.off():
            assert bitwise_equal(model(**batch).logits, base)
    assert not bitwise_equal(active, base)


@pytest.mark.parametrize("name", NAMES)
def test_its_checkpoints_are_cards(name):
    """A recipe of the catalogue names cards, of which more is known than a hub id."""
    recipe = read_recipe(name)
    parts = recipe.base.compose
    named = [recipe.base.model] if parts is None else [parts.vision, parts.language]
    for spec in recipe.modalities.values():
        options = spec.encoder.options  # of one, or of several side by side
        named += [one.options["model"] for one in options.get("encoders", (spec.encoder,))]
    assert set(named) <= catalogue.cards().keys()
