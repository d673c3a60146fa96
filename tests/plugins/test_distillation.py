"""Counterfactual distillation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_framework_plugins.retention.distillation import DistillationRegularizer

temperatures = st.floats(0.1, 20)
seeds = st.integers(0, 10_000)


def logits(seed: int, scale: float = 3.0) -> Tensor:
    """Two rows of three positions over five words."""
    return scale * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))


EVERYWHERE = torch.ones(2, 3, dtype=torch.bool)


@given(seeds, temperatures)
def test_zero_at_base(seed: int, temperature: float) -> None:
    """Law: where the outputs are the base's, the penalty is exactly 0."""
    method = DistillationRegularizer(temperature=temperature)
    assert method.penalty(logits(seed), logits(seed), EVERYWHERE).item() == 0


@given(seeds, temperatures, st.floats(1e-4, 100))
def test_nonnegative(seed: int, temperature: float, scale: float) -> None:
    """Law: a penalty is never below 0, but for the rounding of 32-bit floats."""
    method = DistillationRegularizer(temperature=temperature)
    penalty = method.penalty(logits(seed, scale), logits(seed + 1, scale), EVERYWHERE)
    assert penalty.item() >= -1e-6 * temperature**2


@given(seeds, temperatures)
def test_it_is_the_scaled_divergence(seed: int, temperature: float) -> None:
    """Law: the penalty is T^2 times the mean KL from the softened base, as torch computes it."""
    ours, base = logits(seed), logits(seed + 1)
    expected = torch.nn.functional.kl_div(
        (ours / temperature).log_softmax(-1).flatten(0, 1),
        (base / temperature).log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    penalty = DistillationRegularizer(temperature=temperature).penalty(ours, base, EVERYWHERE)
    torch.testing.assert_close(penalty, expected * temperature**2, rtol=1e-4, atol=1e-5)


def test_a_high_temperature_keeps_the_size_of_the_gradient() -> None:
    """Law: the factor T^2 keeps gradients of one order, whatever the temperature."""
    sizes = []
    for temperature in (10.0, 100.0):
        ours = logits(0).requires_grad_()
        DistillationRegularizer(temperature=temperature).penalty(
            ours, logits(1), EVERYWHERE
        ).backward()
        assert ours.grad is not None
        sizes.append(ours.grad.norm().item())
    assert 0.8 < sizes[0] / sizes[1] < 1.25


def test_masked_positions_have_no_effect() -> None:
    """Law: what stands at a masked position, NaN included, changes neither penalty nor gradient."""
    mask = EVERYWHERE.clone()
    mask[1, 2] = False
    method = DistillationRegularizer()
    clean, spoilt = logits(0).requires_grad_(), logits(0)
    spoilt[1, 2] = math.nan
    spoilt.requires_grad_()
    penalties = [method.penalty(ours, logits(1), mask) for ours in (clean, spoilt)]
    assert penalties[0].item() == penalties[1].item()
    penalties[1].backward()
    assert spoilt.grad is not None
    assert torch.isfinite(spoilt.grad).all()
    assert not spoilt.grad[1, 2].any()


def test_half_precision_is_computed_in_full() -> None:
    """Law: logits of 16 bits are compared in 32."""
    ours, base = logits(0).bfloat16(), logits(1).bfloat16()
    method = DistillationRegularizer()
    exact = method.penalty(ours.float(), base.float(), EVERYWHERE)
    assert method.penalty(ours, base, EVERYWHERE).item() == exact.item()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "^`temperature` must be above 0, not 0.0"),
        ({"temperature": -1.0}, "^`temperature` must be above 0"),
        ({"temperature": math.nan}, "^`temperature` must be above 0, not nan"),
        ({"counterfactual": []}, "^`counterfactual` must name at least one"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        DistillationRegularizer(**options)  # type: ignore[arg-type]  # the wrong values are meant


def test_it_wants_every_kind_of_irrelevant_sample() -> None:
    """Law: by default retention batches carry silence, noise and shuffled samples."""
    assert DistillationRegularizer().counterfactual == ("silent", "noise", "shuffled")
