"""The standard projector."""

import math

import pytest
import torch

from safe_framework.interfaces.types import Frames, all_real
from safe_framework_plugins.projectors.standard import StandardProjector

DIM, HIDDEN, TOKENS = 4, 8, 3


@pytest.fixture
def projector() -> StandardProjector:
    """A small one without dropout."""
    torch.manual_seed(0)
    return StandardProjector(DIM, HIDDEN, tokens=TOKENS, hidden_dim=16, dropout=0.0).eval()


def frames(rows: int = 5, length: int = 6, seed: int = 0) -> Frames:
    """Random frames, all of them real."""
    generator = torch.Generator().manual_seed(seed)
    values = 2 + 3 * torch.randn(rows, length, DIM, generator=generator)
    return Frames(values, all_real(values))


def padded(given: Frames, value: float) -> Frames:
    """The same frames, followed by two masked ones that hold ``value``."""
    rows = len(given.values)
    values = torch.cat([given.values, torch.full((rows, 2, DIM), value)], dim=1)
    mask = torch.cat([given.mask, torch.zeros(rows, 2, dtype=torch.bool)], dim=1)
    return Frames(values, mask)


def test_tokens_shape(projector: StandardProjector) -> None:
    """Law: any number of frames gives (batch, tokens, hidden) and a mask (batch, tokens)."""
    for length in (1, 2, 9):
        tokens = projector(frames(length=length))
        assert tokens.values.shape == (5, TOKENS, HIDDEN)
        assert tokens.mask.shape == (5, TOKENS)
        assert tokens.mask.all()


@pytest.mark.parametrize("value", [0.0, 1e9, math.inf, math.nan])
def test_mask_respected(projector: StandardProjector, value: float) -> None:
    """Law: what a masked frame holds, NaN included, has no effect on the tokens."""
    clean, spoilt = projector(frames()), projector(padded(frames(), value))
    torch.testing.assert_close(spoilt.values, clean.values)
    assert torch.equal(spoilt.mask, clean.mask)


def test_a_masked_frame_gets_no_gradient(projector: StandardProjector) -> None:
    """Law: NaN in a masked frame does not reach the parameters' gradients."""
    projector(padded(frames(), math.nan)).values.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in projector.parameters() if p.grad is not None)


def test_a_sample_without_frames_has_no_tokens(projector: StandardProjector) -> None:
    """Law: where every frame is masked, every token is, and the values are finite."""
    given = frames()
    given.mask[2] = False
    tokens = projector(given)
    assert tokens.mask.any(dim=1).tolist() == [True, True, False, True, True]
    assert torch.isfinite(tokens.values).all()


def test_rows_do_not_depend_on_each_other(projector: StandardProjector) -> None:
    """Law: a sample's tokens are the same alone and in a batch."""
    together = projector(frames()).values[3:4]
    torch.testing.assert_close(projector(frames().rows(torch.tensor([3]))).values, together)


def test_differentiable(projector: StandardProjector) -> None:
    """Law: every parameter gets a gradient that is not zero."""
    weights = torch.randn(5, TOKENS, HIDDEN)
    (projector(frames()).values * weights).sum().backward()
    gradients = {name: p.grad for name, p in projector.named_parameters()}
    assert gradients
    assert not [name for name, g in gradients.items() if g is None or not g.any()]


def test_silence_has_a_gradient(projector: StandardProjector) -> None:
    """Law: frames that never change give finite gradients."""
    values = torch.zeros(2, 4, DIM, requires_grad=True)
    projector(Frames(values, all_real(values))).values.square().sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_fit_makes_scale_and_offset_of_a_channel_irrelevant(projector: StandardProjector) -> None:
    """Law: fitted on frames, a projector gives the tokens that it gives for them rescaled."""
    given = frames(rows=40)
    stretched = Frames(100 * given.values - 7, given.mask)
    projector.fit(given)
    tokens = projector(given).values
    projector.fit(stretched)
    torch.testing.assert_close(projector(stretched).values, tokens, atol=1e-3, rtol=1e-3)


def test_fit_is_kept_with_the_weights(projector: StandardProjector) -> None:
    """Law: the statistics are part of the state that an adapter saves."""
    projector.fit(frames())
    copy = StandardProjector(DIM, HIDDEN, tokens=TOKENS, hidden_dim=16, dropout=0.0).eval()
    copy.load_state_dict(projector.state_dict())
    assert torch.equal(copy(frames(seed=1)).values, projector(frames(seed=1)).values)


def test_fit_survives_a_channel_that_never_changes(projector: StandardProjector) -> None:
    """Law: a constant channel does not blow up a sample in which it changes a little."""
    given = frames(rows=40)
    given.values[:, :, 0] = 1.0
    projector.fit(given)
    moved = Frames(given.values + 1e-3, given.mask)
    assert torch.isfinite(projector(moved).values).all()


def test_noise_acts_in_training_alone() -> None:
    """Law: noise changes tokens in training, and nothing otherwise."""
    torch.manual_seed(0)
    noisy = StandardProjector(DIM, HIDDEN, hidden_dim=16, dropout=0.0, noise=0.5)
    training = [noisy.train()(frames()).values for _ in range(2)]
    settled = [noisy.eval()(frames()).values for _ in range(2)]
    assert not torch.equal(*training)
    assert torch.equal(*settled)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_linear_layers(depth: int) -> None:
    """Law: `depth` is the number of linear layers."""
    projector = StandardProjector(DIM, HIDDEN, hidden_dim=16, depth=depth)
    linears = [m for m in projector.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == depth
    assert linears[-1].out_features == projector.tokens * HIDDEN


@pytest.mark.parametrize("name", ["tokens", "hidden_dim", "depth", "dropout", "noise"])
def test_an_option_out_of_range_is_named(name: str) -> None:
    """Law: the message starts with the option's name."""
    wrong = -0.5 if name in ("dropout", "noise") else 0
    with pytest.raises(ValueError, match=f"^`{name}` must be .*, not {wrong}$"):
        StandardProjector(DIM, HIDDEN, **{name: wrong})  # type: ignore[arg-type]  # joined types


def test_a_dropout_of_everything_is_refused() -> None:
    """Law: a dropout of 1 would train nothing, and is an error."""
    with pytest.raises(ValueError, match=r"^`dropout` must be from 0 up to 1, not 1\.0$"):
        StandardProjector(DIM, HIDDEN, dropout=1.0)
