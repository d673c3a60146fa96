"""The diagonal Fisher information and the pull that it makes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_framework import RetentionStore, SafeModel
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    RetentionExamples,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework_plugins.retention.fisher import FisherRegularizer
from tests.support.toys import DIM, PAD, llama
from tests.training.conftest import KINDS, ROWS, model_with_modality, perturb


@pytest.fixture
def model() -> SafeModel:
    """A trained modality, so that every parameter matters."""
    model = model_with_modality(llama())
    perturb(model)
    return model


@pytest.fixture
def examples(model: SafeModel, tmp_path: Path) -> RetentionExamples:
    """Four texts beside irrelevant samples."""
    random = np.random.default_rng(0)
    samples = [random.normal(size=(3, DIM)).astype(np.float32) for _ in range(6)]
    stores = {"touch": model.modality("touch").frame_cache(tmp_path / "frames")}
    pools = distractor_pools(KINDS, {"touch": samples}, stores, seed=3)
    retention = CounterfactualRetention(
        model, [WeightedRegularizer(1.0, FisherRegularizer())], ROWS, pools,
        kinds=(), batch_size=2, seed=3, pad=PAD,
    )  # fmt: skip
    return RetentionExamples(retention, KINDS)


def begun(
    model: SafeModel, examples: RetentionExamples, folder: Path, count: int = 128
) -> FisherRegularizer:
    """The method after its start."""
    method = FisherRegularizer(examples=count)
    method.begin(model, examples, RetentionStore(folder / "f.safetensors", dict, start="s"))
    return method


def kept(folder: Path) -> dict[str, Tensor]:
    """What a method has kept."""
    return RetentionStore(folder / "f.safetensors", dict, start="s").once(dict)


def test_the_penalty_is_zero_at_the_anchor(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law zero_at_base: where training starts, the parameter penalty is exactly 0."""
    assert begun(model, examples, tmp_path).parameter_penalty().item() == 0


def test_the_penalty_is_never_negative(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law nonnegative: wherever the parameters go, the penalty is above 0 or 0."""
    method = begun(model, examples, tmp_path)
    for step in range(5):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in model.trainable_parameters().values():
                parameter.add_(torch.randn_like(parameter))
        assert method.parameter_penalty().item() > 0


def test_before_the_start_there_is_no_penalty() -> None:
    """Law: a method that holds nothing yet penalises nothing."""
    assert FisherRegularizer().parameter_penalty().item() == 0


def test_it_is_a_brute_force_loop(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: F is the mean over positions of each text's own squared gradient.

    It is not the square of all texts' gradient together, in which opposite signs cancel.
    """
    begun(model, examples, tmp_path)
    parameters = model.trainable_parameters()
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    together = {name: torch.zeros_like(p) for name, p in parameters.items()}
    positions, draw = 0, torch.Generator().manual_seed(0)
    for example in examples:
        model.zero_grad()
        likelihood = model(**example).logits[0].log_softmax(-1)
        words = likelihood.detach().exp().multinomial(1, generator=draw)
        likelihood.gather(1, words).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        positions += len(words)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            expected[name] += parameter.grad**2
            together[name] += parameter.grad
    assert positions == sum(map(len, ROWS))
    assert not expected.pop("touch.segments.weight").any()  # of second samples: there is none
    for name, total in expected.items():
        found = kept(tmp_path)[f"fisher.{name}"]
        torch.testing.assert_close(found, total / positions, rtol=1e-4, atol=1e-9)
        assert not torch.allclose(found, together[name] ** 2 / positions, rtol=0.1)


@pytest.mark.slow
def test_half_of_it_is_the_divergence(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: for a small step of one parameter, half the penalty is the divergence in expectation.

    Estimated on many draws; the divergence is the mean over the same positions.
    """
    repeated = [examples[i % len(examples)] for i in range(800)]
    method = FisherRegularizer(examples=800)
    method.begin(model, repeated, RetentionStore(tmp_path / "f.safetensors", dict, start="s"))
    parameter = model.trainable_parameters()["touch.projector.mlp.0.bias"]
    with torch.no_grad():
        before = [model(**example).logits[0].log_softmax(-1) for example in examples[:]]
        parameter[0] += 1e-2
        after = [model(**example).logits[0].log_softmax(-1) for example in examples[:]]
    divergence = sum(
        nn.functional.kl_div(new, old, log_target=True, reduction="sum")
        for new, old in zip(after, before, strict=True)
    ) / sum(map(len, before))
    assert method.parameter_penalty().item() / 2 == pytest.approx(float(divergence), rel=0.1)


def test_at_the_silent_start_only_the_last_projections_are_held(
    examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: behind an output path of zeros nothing has influence yet, so nothing is held there."""
    fresh = model_with_modality(llama())
    examples.retention.model = fresh
    begun(fresh, examples, tmp_path)
    held = {
        name.removeprefix("fisher.")
        for name, tensor in kept(tmp_path).items()
        if name.startswith("fisher.") and tensor.any()
    }
    assert held == {n for n in fresh.trainable_parameters() if "output.lora_B" in n}


def test_what_was_kept_makes_the_same_penalty(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: a run that goes on from later weights is pulled to the first ones, bit for bit."""
    first = begun(model, examples, tmp_path)
    perturb(model)
    second = FisherRegularizer()
    second.begin(model, [], RetentionStore(tmp_path / "f.safetensors", dict, start=None))
    assert second.parameter_penalty().item() == first.parameter_penalty().item() > 0


def test_the_callers_random_numbers_are_not_drawn(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: the words come from a generator of the method's own, and decide what is kept."""
    before = torch.random.get_rng_state()
    begun(model, examples, tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), before)
    begun(model, examples, tmp_path / "two")
    one, two = kept(tmp_path / "one"), kept(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": 0}, "^`examples` must be at least 1, not 0"),
        ({"counterfactual": []}, "^`counterfactual` must name at least one"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        FisherRegularizer(**options)  # type: ignore[arg-type]  # the wrong values are meant
