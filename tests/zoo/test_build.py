"""Tiny random models of a sample of types; ``types()`` names them all."""

import pytest
import torch

from tests.zoo.models import CannotBuild, generates, text_inputs, tiny, types
from tests.zoo.models.shrink import special_ids

pytestmark = pytest.mark.slow

SAMPLE = [
    ("causal", "llama"),
    ("causal", "gpt2"),
    ("causal", "mamba"),
    ("causal", "jamba"),
    ("causal", "gemma2"),
    ("causal", "deepseek_v3"),
    ("causal", "musicgen"),
    ("image_text", "llava"),
    ("image_text", "qwen2_vl"),
    ("image_text", "mllama"),
    ("image_text", "vision-encoder-decoder"),
    ("seq2seq", "t5"),
]
ON_TEXT = [("causal", "llama"), ("image_text", "llava"), ("seq2seq", "t5")]


@pytest.fixture(scope="module")
def bases():
    """A tiny model of each type of the sample."""
    return {model_type: tiny(task, model_type) for task, model_type in SAMPLE}


@pytest.fixture(scope="module", params=ON_TEXT, ids=lambda key: key[1])
def reader(request):
    """A tiny model that takes plain text, one of each task."""
    return tiny(*request.param).model


def logits(model, inputs):
    """What the model says of the inputs."""
    with torch.no_grad():
        return model(**inputs).logits


def test_they_run(bases):
    """The inputs run, and what comes out is finite and not one constant."""
    for name, base in bases.items():
        out = logits(base.model, base.inputs)
        assert out.isfinite().all(), name
        assert out.std() > 0.01, name


def test_they_are_tiny(bases):
    """No tiny model has more than a million parameters, all of them float32."""
    for name, base in bases.items():
        assert sum(parameter.numel() for parameter in base.model.parameters()) < 1_000_000, name
        assert {p.dtype for p in base.model.parameters()} == {torch.float32}, name
        assert not base.model.training, name


def test_a_seed_is_a_model(bases):
    """The same seed makes the same weights and the same inputs; another makes other weights."""
    for name, base in bases.items():
        again, other = tiny(base.task, base.model_type), tiny(base.task, base.model_type, seed=1)
        weights, same, moved = (one.model.state_dict() for one in (base, again, other))
        assert all(torch.equal(weights[key], same[key]) for key in weights), name
        assert any(not torch.equal(weights[key], moved[key]) for key in weights), name
        assert all(torch.equal(base.inputs[key], again.inputs[key]) for key in base.inputs), name


def test_building_leaves_the_random_state():
    """Building a model draws nothing from the caller's random numbers."""
    for task, model_type in SAMPLE:
        before = torch.random.get_rng_state()
        tiny(task, model_type)
        assert torch.equal(torch.random.get_rng_state(), before), model_type


@pytest.mark.parametrize(("task", "model_type"), [SAMPLE[7], SAMPLE[8], SAMPLE[9]])
def test_an_image_matters(task, model_type):
    """An image-text model's inputs carry an image that changes what it says."""
    found = tiny(task, model_type)
    other = found.inputs | {"pixel_values": -found.inputs["pixel_values"]}
    assert not torch.equal(logits(found.model, found.inputs), logits(found.model, other))


def test_text_is_ordinary(reader):
    """Random text holds no id that the config, or one within it, calls special."""
    ids = set(text_inputs(reader, 8, 32)["input_ids"].unique().tolist())
    assert not ids & special_ids(reader.config.to_dict())


@pytest.mark.parametrize(("side", "first"), [("left", 0), ("right", -1)])
def test_padding_is_on_its_side(reader, side, first):
    """Every row after the first has one more padded position, all on the side asked for."""
    mask = text_inputs(reader, 3, 5, padding=side)["attention_mask"]
    assert mask.sum(1).tolist() == [5, 4, 3]
    assert mask[:, first].tolist() == [1, 0, 0]


def test_padded_text_runs(reader):
    """Padded plain text runs on a model of each task."""
    assert logits(reader, text_inputs(reader, 3, 5, padding="left")).isfinite().all()


def test_every_task_has_types():
    """Types are named for each task in a fixed order, and none twice with one class."""
    found = types()
    assert {task for task, _ in found} == {"causal", "image_text", "seq2seq"}
    assert found == sorted(set(found))
    assert set(SAMPLE) <= set(found)
    assert ("causal", "git") not in found


def test_who_generates():
    """A language model generates, and a plain module does not."""
    assert generates(tiny("causal", "llama").model)
    assert not generates(torch.nn.Linear(1, 1))


def test_a_type_that_cannot_be_built_says_why():
    """The error of a type that reads no text alone names it and the error of transformers."""
    with pytest.raises(CannotBuild, match=r"`pi0`.*TypeError.*state"):
        tiny("image_text", "pi0")


def test_an_unknown_type_says_why():
    """The error of a type that transformers does not know names it."""
    with pytest.raises(CannotBuild, match="llama9"):
        tiny("causal", "llama9")
