"""Losses over the vocabulary without logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_framework.interfaces.retention import LogitComparison
from safe_framework.training.compute import chunked_vocabulary
from safe_framework.training.compute.calls import HiddenComparison
from safe_framework.training.compute.chunked_vocabulary import (
    SoftmaxStatistics,
    cross_entropy,
    softmax_statistics,
    softmax_statistics_of_all,
    supports_chunked_loss,
    with_custom_gradient,
)

WORDS, HIDDEN, VOCABULARY = 5, 6, 23
seeds = st.integers(0, 10_000)
scales = st.sampled_from([0.01, 1.0, 30.0, 1000.0])
temperatures = st.sampled_from([0.5, 1.0, 3.0, 20.0])


@pytest.fixture(autouse=True)
def narrow_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that the vocabulary does not fill evenly."""
    monkeypatch.setattr(chunked_vocabulary, "CHUNK_SIZE", 7)


def head_of(seed: int, *, bias: bool = False) -> nn.Linear:
    """Frozen output embeddings."""
    torch.manual_seed(seed)
    return nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(False)


def states(seed: int, scale: float = 1.0) -> Tensor:
    """What enters them."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(WORDS, HIDDEN, generator=generator)


class Spoken:
    """Either side of a comparison."""

    def __init__(self, hidden: Tensor, head: nn.Linear) -> None:
        self.hidden, self.head = hidden, head

    @property
    def logits(self) -> Tensor:
        return self.head(self.hidden)

    def softmax(self, temperature: float) -> SoftmaxStatistics:
        return softmax_statistics(self.hidden, self.head, temperature)


def compared(hidden: Tensor, before: Tensor, head: nn.Linear) -> HiddenComparison:
    """The model's logits beside those that it gave before."""
    return HiddenComparison(Spoken(hidden, head), Spoken(before, head))


@settings(deadline=None)
@given(seeds, scales, temperatures, st.booleans())
def test_expected_is_the_softmax(seed: int, scale: float, temperature: float, bias: bool) -> None:
    """Law: log-sum and mean row are those of the whole softmax, however large the logits."""
    head, hidden = head_of(seed, bias=bias), states(seed, scale)
    found = softmax_statistics(hidden, head, temperature)
    logits = head.double()(hidden.double()) / temperature
    torch.testing.assert_close(found.log_sum, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    mean = logits.softmax(-1) @ head.weight
    torch.testing.assert_close(found.embedding.double(), mean, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seeds, scales, st.lists(temperatures, min_size=1, max_size=4), st.booleans())
def test_readings_together_are_those_alone(
    seed: int, scale: float, each: list[float], bias: bool
) -> None:
    """Law: hidden states of several calls, at temperatures of their own, are read as if alone."""
    head = head_of(seed, bias=bias)
    asked = [(states(seed + i, scale)[: i + 1], t) for i, t in enumerate(each)]
    for found, (hidden, temperature) in zip(
        softmax_statistics_of_all(asked, head), asked, strict=True
    ):
        alone = softmax_statistics(hidden, head, temperature)
        torch.testing.assert_close(found.log_sum, alone.log_sum, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.embedding, alone.embedding, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seeds, scales, st.booleans())
def test_cross_entropy_is_torchs(seed: int, scale: float, bias: bool) -> None:
    """Law: value and gradient are those of the logits."""
    head, hidden = head_of(seed, bias=bias), states(seed, scale).requires_grad_()
    targets = torch.arange(WORDS) * 4
    loss = cross_entropy(hidden, head, targets, softmax_statistics(hidden, head))
    (gradient,) = torch.autograd.grad(loss, hidden)
    exact = hidden.detach().double().requires_grad_()
    wanted = nn.functional.cross_entropy(head.double()(exact), targets, reduction="sum")
    (wanted_gradient,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seeds, st.sampled_from([0.01, 1.0, 30.0]), temperatures, st.floats(1e-3, 3), st.booleans())
def test_a_divergence_is_that_of_the_logits(
    seed: int, scale: float, temperature: float, moved: float, bias: bool
) -> None:
    """Law: value and gradient are those of the logits, however little the model has moved."""
    head, before = head_of(seed, bias=bias), states(seed, scale)
    hidden = (before + moved * states(seed + 1, scale)).requires_grad_()
    value = compared(hidden, before, head).divergence(temperature)
    (gradient,) = torch.autograd.grad(value, hidden)
    exact, wide = hidden.detach().double().requires_grad_(), head.double()
    ours, base = wide(exact) / temperature, wide(before.double()) / temperature
    wanted = nn.functional.kl_div(
        ours.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    (wanted_gradient,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-3, atol=1e-4)


@given(seeds, scales, temperatures)
def test_a_model_that_is_its_base_diverges_by_nothing(
    seed: int, scale: float, temperature: float
) -> None:
    """Law: where the hidden states are the base's, divergence and gradient are exactly 0."""
    head, before = head_of(seed), states(seed, scale)
    hidden = before.clone().requires_grad_()
    value = compared(hidden, before, head).divergence(temperature)
    (gradient,) = torch.autograd.grad(value, hidden)
    assert value.item() == 0
    assert not gradient.any()


def test_a_comparison_of_hidden_states_has_logits() -> None:
    """Law: a method that wants logits finds those that the output embeddings make."""
    head, before, hidden = head_of(0), states(0), states(1)
    found = compared(hidden, before, head)
    assert torch.equal(found.logits, head(hidden)[None])
    assert torch.equal(found.base_logits, head(before)[None])
    assert found.mask.shape == (1, WORDS)
    assert found.mask.all()


@given(seeds, temperatures)
def test_masked_logits_do_not_count(seed: int, temperature: float) -> None:
    """Law: a comparison of logits is a mean over the positions that count."""
    head = head_of(seed)
    ours, base = head(states(seed))[None], head(states(seed + 1))[None]
    mask = torch.tensor([[True, True, False, True, False]])
    chosen = LogitComparison(ours[:, [0, 1, 3]], base[:, [0, 1, 3]], mask[:, [0, 1, 3]])
    assert LogitComparison(ours, base, mask).divergence(temperature) == chosen.divergence(
        temperature
    )


def test_which_heads_can_be_read_by_slices() -> None:
    """Law: a frozen linear map in float32, and outside of autocast."""
    assert supports_chunked_loss(head_of(0))
    assert not supports_chunked_loss(head_of(0).requires_grad_())
    assert not supports_chunked_loss(head_of(0).bfloat16())
    assert not supports_chunked_loss(nn.Sequential(head_of(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not supports_chunked_loss(head_of(0))


def test_a_slope_is_the_gradient() -> None:
    """Law: the value is untouched, and the gradient scales with what comes after."""
    hidden, slope = states(0).requires_grad_(), states(1)
    value = with_custom_gradient(torch.tensor(0.25), hidden, slope)
    assert value.item() == 0.25
    (gradient,) = torch.autograd.grad(3 * value, hidden)
    torch.testing.assert_close(gradient, 3 * slope)
