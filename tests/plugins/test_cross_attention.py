"""Cross-attention with plain trainable projections."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.types import Tokens
from safe_framework_plugins.fusion.cross_attention import CrossAttentionFusion
from tests.support.fusions import learned
from tests.support.toys import HIDDEN, llama


def adapter(**options: Any) -> CrossAttentionFusion:
    """A new one at the first layer of the tiny Llama, in evaluation mode."""
    torch.manual_seed(0)
    return CrossAttentionFusion(SafeModel(llama()).facts(), **options).eval()


def hidden() -> Tensor:
    """Hidden states of two rows."""
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))


def tokens() -> Tokens:
    """Three tokens for each row."""
    values = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1))
    return Tokens(values, torch.ones(2, 3, dtype=torch.bool))


def delta(fusion: CrossAttentionFusion) -> Tensor:
    """What it proposes at the first layer."""
    return fusion(hidden(), fusion.remember(tokens()), 0)


def test_it_computes_its_equation() -> None:
    """Law: the delta is the projected attention of normalised states to normalised tokens."""
    fusion = adapter(silent_start=False, residual_scale=0.3)
    block = fusion.blocks.at(0)

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (4, HIDDEN // 4)).transpose(1, 2)

    text, sample = rms_norm(hidden(), (HIDDEN,)), rms_norm(tokens().values, (HIDDEN,))
    context = scaled_dot_product_attention(
        heads(text @ block.query.weight.T),
        heads(sample @ block.key.weight.T),
        heads(sample @ block.value.weight.T),
    )
    expected = 0.3 * context.transpose(1, 2).flatten(2) @ block.output.weight.T
    torch.testing.assert_close(delta(fusion), expected)


def test_all_four_projections_are_trained() -> None:
    """Law: nothing is frozen, so nothing is rebuilt from the base."""
    fusion = adapter()
    assert sorted(name for name, _ in fusion.named_parameters()) == [
        f"blocks.0.{name}.weight" for name in ("key", "output", "query", "value")
    ]
    assert all(parameter.requires_grad for parameter in fusion.parameters())
    assert not fusion.rebuilt


@pytest.mark.parametrize("init", ["base", "random"])
def test_a_fixed_start_changes_outputs(init: str) -> None:
    """Law: with the fixed start a fresh adapter has an effect, in proportion to its scale."""
    soft = delta(adapter(silent_start=False, residual_scale=0.05, init=init))
    loud = delta(adapter(silent_start=False, residual_scale=0.1, init=init))
    assert soft.any()
    torch.testing.assert_close(loud, 2 * soft)


@pytest.mark.parametrize("option", ["attention_dropout", "output_dropout"])
def test_dropout_acts_in_training_alone(option: str) -> None:
    """Law: either dropout changes the delta in training, and nothing otherwise."""
    off = {"attention_dropout": 0.0, "output_dropout": 0.0}
    fusion = learned(adapter(**off | {option: 0.5}))
    assert isinstance(fusion, CrossAttentionFusion)
    assert torch.equal(delta(fusion), delta(fusion))
    fusion.train()
    assert not torch.equal(delta(fusion), delta(fusion))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"residual_scale": 0.0}, r"^`residual_scale` must be above 0, not 0\.0$"),
        ({"residual_scale": math.nan}, "^`residual_scale` must be above 0, not nan$"),
        ({"residual_scale": math.inf}, "^`residual_scale` must be above 0, not inf$"),
        ({"attention_dropout": 1.0}, r"^`attention_dropout` must be from 0 up to 1, not 1\.0$"),
        ({"output_dropout": -0.1}, r"^`output_dropout` must be from 0 up to 1, not -0\.1$"),
        ({"heads": 3, "init": "random"}, f"^`heads` must divide {HIDDEN}, not 3$"),
        ({"heads": 0}, "^`heads` must be at least 1, not 0$"),
        ({"layers": []}, "^`layers` must name at least one"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        adapter(**options)
