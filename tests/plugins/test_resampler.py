"""The projectors `resampler` and `adaptive`: the interface's laws, then each one's own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, all_real
from safe_framework_plugins.projectors.adaptive import AdaptiveProjector
from safe_framework_plugins.projectors.resampler import ResamplerProjector
from tests.support.tolerance import ATTENTION, assert_same_sums

DIM, HIDDEN, TOKENS = 4, 8, 5
TERMS = 3 * ATTENTION  # two blocks of attention and feed-forward parts, and a projection
Make = Callable[..., Projector]


def resampler(**options: object) -> ResamplerProjector:
    """A small one without dropout, in evaluation."""
    torch.manual_seed(0)
    small = {"tokens": TOKENS, "dim": 8, "heads": 2, "dropout": 0.0}
    return ResamplerProjector(DIM, HIDDEN, **small | options).eval()  # type: ignore[arg-type]  # joined


def adaptive(**options: object) -> AdaptiveProjector:
    """A small one without dropout, in evaluation, whose gates differ from sample to sample."""
    torch.manual_seed(0)
    small = {"max_tokens": TOKENS, "dim": 8, "heads": 2, "dropout": 0.0, "opening": 0.0}
    made = AdaptiveProjector(DIM, HIDDEN, **small | options).eval()  # type: ignore[arg-type]  # joined
    torch.nn.init.normal_(made.score.weight)
    for block in made.candidates.blocks:
        torch.nn.init.normal_(block.get_submodule("output").weight)  # type: ignore[arg-type]  # a Linear
    return made


both = pytest.mark.parametrize("make", [resampler, adaptive])


def frames(rows: int = 6, length: int = 7, seed: int = 0) -> Frames:
    """Random frames, all of them real."""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(rows, length, DIM, generator=generator)
    return Frames(values, all_real(values))


@both
@pytest.mark.parametrize("training", [False, True])
def test_tokens_shape(make: Make, training: bool) -> None:
    """Law: any number of frames gives (batch, tokens, hidden) and a mask (batch, tokens)."""
    projector = make().train(training)
    for length in (1, 2, 300):
        tokens = projector(frames(length=length))
        assert tokens.values.shape == (6, tokens.mask.shape[1], HIDDEN)
        assert 1 <= tokens.mask.shape[1] <= TOKENS
        assert tokens.mask.dtype == torch.bool
        assert tokens.mask.any(dim=1).all()


@both
@pytest.mark.parametrize("value", [0.0, 1e9, math.inf, math.nan])
def test_mask_respected(make: Make, value: float) -> None:
    """Law: what a masked frame holds, NaN included, changes no token and no gradient."""
    clean, given = make(), frames()
    filler = torch.full((6, 2, DIM), value)
    spoilt = Frames(
        torch.cat([given.values, filler], 1), functional.pad(given.mask, (0, 2), value=False)
    )
    assert_same_sums(clean(spoilt).values, clean(given).values, TERMS)
    assert torch.equal(clean(spoilt).mask, clean(given).mask)
    clean.train()(spoilt).values.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in clean.parameters() if p.grad is not None)


@both
def test_differentiable(make: Make) -> None:
    """Law: every parameter gets a gradient that is not zero, in training."""
    projector = make().train()
    tokens = projector(frames())
    (tokens.values * torch.randn(tokens.values.shape)).sum().backward()
    gradients = {name: p.grad for name, p in projector.named_parameters()}
    assert gradients
    assert not [name for name, g in gradients.items() if g is None or not g.any()]


@both
def test_a_sample_without_frames_has_no_tokens(make: Make) -> None:
    """Law: where every frame is masked, every token is, and the values are finite."""
    given = frames()
    given.mask[2] = False
    for training in (False, True):
        tokens = make().train(training)(given)
        assert tokens.mask.any(dim=1).tolist() == [True, True, False, True, True, True]
        assert torch.isfinite(tokens.values).all()


@both
def test_rows_do_not_depend_on_each_other(make: Make) -> None:
    """Law: a sample's real tokens are the same alone and in a batch."""
    projector = make()
    together, alone = projector(frames()), projector(frames().rows(torch.tensor([3])))
    assert_same_sums(alone.values[alone.mask], together.values[3][together.mask[3]], TERMS)


def test_order_matters_if_positions_are_on() -> None:
    """Law: reversed frames give other tokens with positions, and the same without."""
    given = frames()
    backwards = Frames(given.values.flip(1), given.mask)
    plain, positioned = resampler(positions=False), resampler()
    assert_same_sums(plain(backwards).values, plain(given).values, TERMS)
    assert not torch.allclose(positioned(backwards).values, positioned(given).values, atol=1e-3)


def test_only_a_fixed_number_is_promised() -> None:
    """Law: `tokens` is the resampler's number, and the adaptive projector promises none."""
    assert resampler().tokens == TOKENS
    assert adaptive().tokens is None


def test_inference_is_hard_and_shorter() -> None:
    """Law: inference gives the tokens of open gates alone, as training gave them, in order."""
    projector, given = adaptive(), frames()
    soft, hard = projector.train()(given), projector.eval()(given)
    gates = torch.sigmoid(projector.score(projector.candidates(given).values)).squeeze(-1)
    counts = (gates >= 0.5).sum(1).clamp_min(1)
    assert soft.mask.all()
    assert len(set(counts.tolist())) > 1, "the samples must differ"
    assert hard.mask.sum(1).tolist() == counts.tolist()
    assert hard.mask.shape[1] == counts.max()
    for row in range(6):
        if (gates[row] >= 0.5).any():
            expected = soft.values[row][gates[row] >= 0.5]
            assert_same_sums(hard.values[row][hard.mask[row]], expected, TERMS)


def test_the_widest_gate_is_kept() -> None:
    """Law: where every gate is shut, the widest one's token is given."""
    projector = adaptive(opening=-50.0)
    tokens = projector(frames())
    assert tokens.mask.tolist() == [[True]] * 6


def test_the_mean_count_is_reported() -> None:
    """Law: `mean_tokens` is the mean number of tokens a sample, counted anew in each mode."""
    projector = adaptive()
    assert projector.mean_tokens == 0
    counts = torch.cat([projector(frames(seed=s)).mask.sum(1) for s in range(3)]).float()
    assert projector.mean_tokens == pytest.approx(float(counts.mean()))
    absent = frames()
    absent.mask[:] = False
    projector(absent)
    assert projector.mean_tokens == pytest.approx(float(counts.mean()))
    projector.train()
    assert projector.mean_tokens == 0
    assert not {"kept", "seen"} & set(projector.state_dict())


def test_cost_shuts_gates() -> None:
    """Law: `cost` adds the gradient of cost * mean(gate), and training on it alone shuts gates."""
    projector = adaptive(cost=2.0).train()
    given = projector.candidates(frames())
    gates = torch.sigmoid(projector.score(given.values))
    expected = torch.autograd.grad(2.0 * gates.mean(), projector.score.bias)[0]
    (projector(frames()).values.sum() * 0.0).backward()
    assert projector.score.bias.grad is not None
    torch.testing.assert_close(projector.score.bias.grad, expected)
    assert expected > 0


@both
@pytest.mark.parametrize(
    ("option", "wrong"), [("dim", 0), ("dim", 7), ("depth", 0), ("heads", 0), ("dropout", 1.0)]
)
def test_an_option_out_of_range_is_named(make: Make, option: str, wrong: float) -> None:
    """Law: the message starts with the option's name and ends with its value."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be .*, not {wrong}$"):
        make(**{option: wrong})


@pytest.mark.parametrize(
    ("option", "wrong"),
    [("max_tokens", 0), ("cost", -1.0), ("cost", math.nan), ("opening", math.inf)],
)
def test_an_option_of_adaptive_out_of_range_is_named(option: str, wrong: float) -> None:
    """Law: the message starts with the option's name and ends with its value."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be .*, not {wrong}$"):
        adaptive(**{option: wrong})
    with pytest.raises(ValueError, match=r"^`tokens` must be at least 1, not 0$"):
        resampler(tokens=0)
