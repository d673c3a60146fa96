"""Cross-attention with low-rank trainable parts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.interfaces.types import BaseFacts, Memory, Tokens
from safe_framework_plugins.fusion.lora import LoraFusion
from tests.support.tolerance import ATTENTION, assert_same_sums
from tests.support.toys import HIDDEN, LAYERS, attached, felt, gpt2, llama, lora

ROWS, LENGTH, COUNT = 3, 5, 4


def facts() -> BaseFacts:
    """Of the tiny Llama."""
    return attached(llama()).facts()


def adapter(**options: Any) -> LoraFusion:
    """One at every layer."""
    torch.manual_seed(0)
    return LoraFusion(facts(), **{"layers": [0, 1], "rank": 2} | options).eval()


def perturbed(spread: float = 1.0, **options: Any) -> LoraFusion:
    """An adapter after something has been learned."""
    fusion = adapter(**options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.requires_grad:
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return fusion


def hidden(seed: int = 0) -> Tensor:
    """Hidden states of a batch."""
    return torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int = 5) -> Tokens:
    """Tokens of a batch, of which some are masked."""
    values = torch.randn(ROWS, COUNT, HIDDEN, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(ROWS, COUNT, dtype=torch.bool)
    mask[1, 2:] = False
    return Tokens(values, mask)


@pytest.mark.parametrize("init", ["base", "random"])
def test_fresh_is_silent(init: str) -> None:
    """Law: a new adapter's delta is exactly zero, at every layer."""
    fusion = adapter(init=init)
    memory = fusion.remember(tokens())
    assert not any(fusion(hidden(), memory, layer).any() for layer in fusion.layers)


def test_delta_shape() -> None:
    """Law: the delta has the shape of the hidden states; once trained it is not zero."""
    fusion = perturbed()
    delta = fusion(hidden(), fusion.remember(tokens()), 0)
    assert delta.shape == (ROWS, LENGTH, HIDDEN)
    assert delta.any()


def test_hands_off() -> None:
    """Law: neither hidden states nor tokens are written to."""
    fusion, states, given = perturbed(), hidden(), tokens()
    fusion(states, fusion.remember(given), 0)
    assert torch.equal(states, hidden())
    assert torch.equal(given.values, tokens().values)


@pytest.mark.parametrize("cut", range(1, LENGTH))
def test_length_independent(cut: int) -> None:
    """Law: a position's delta depends on no later position."""
    fusion = perturbed()
    memory = fusion.remember(tokens())
    whole, part = fusion(hidden(), memory, 1), fusion(hidden()[:, :cut], memory, 1)
    assert_same_sums(part, whole[:, :cut], ATTENTION)


@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_masked_tokens_have_no_effect(value: float) -> None:
    """Law: what a masked token holds changes no bit of the delta."""
    fusion, given = perturbed(), tokens()
    expected = fusion(hidden(), fusion.remember(given), 0)
    values = given.values.masked_fill(~given.mask.unsqueeze(-1), value)
    assert torch.equal(fusion(hidden(), fusion.remember(Tokens(values, given.mask)), 0), expected)


def test_a_row_attends_to_its_own_tokens() -> None:
    """Law: another sample's tokens do not reach a row."""
    fusion, given = perturbed(), tokens()
    expected = fusion(hidden(), fusion.remember(given), 0)
    given.values[2] += 1
    changed = fusion(hidden(), fusion.remember(given), 0)
    assert torch.equal(changed[:2], expected[:2])
    assert not torch.equal(changed[2], expected[2])


def test_the_order_of_tokens_does_not_matter() -> None:
    """Law: attention has no positions, so permuted tokens give the same delta."""
    fusion, given = perturbed(spread=0.1), tokens()
    order = torch.tensor([2, 0, 3, 1])
    mixed = Tokens(given.values[:, order], given.mask[:, order])
    expected = fusion(hidden(), fusion.remember(given), 0)
    assert expected.any()
    assert_same_sums(fusion(hidden(), fusion.remember(mixed), 0), expected, ATTENTION)


@pytest.mark.parametrize("targets", [["query"], ["query", "key", "value"]])
def test_every_trainable_parameter_learns(targets: list[str]) -> None:
    """Law: once the output has moved from zero, every trainable parameter gets a gradient."""
    fusion = perturbed(targets=targets)
    memory = fusion.remember(tokens())
    weights = torch.randn(ROWS, LENGTH, HIDDEN)
    sum((fusion(hidden(), memory, layer) * weights).sum() for layer in fusion.layers).backward()
    trainable = {name: p.grad for name, p in fusion.named_parameters() if p.requires_grad}
    assert len(trainable) == LAYERS * (2 * (len(targets) + 1) + 1)
    assert not [name for name, gradient in trainable.items() if gradient is None]
    assert not [name for name, gradient in trainable.items() if not gradient.any()]


def test_a_fresh_adapter_can_start() -> None:
    """Law: although its delta is zero, a fresh adapter's output pair gets a gradient."""
    fusion = adapter()
    fusion(hidden(), fusion.remember(tokens()), 0).sum().backward()
    moved = [n for n, p in fusion.named_parameters() if p.grad is not None and p.grad.any()]
    assert [name for name in moved if name.startswith("blocks.0.output")]


def test_what_is_frozen_gets_no_gradient() -> None:
    """Law: the four projections themselves are never trained."""
    fusion = perturbed()
    frozen = [n for n, p in fusion.named_parameters() if not p.requires_grad]
    assert len(frozen) == 4 * LAYERS
    assert {name.split(".")[2] for name in frozen} == {"query", "key", "value", "output"}


def test_keys_and_values_are_computed_once_for_a_generation() -> None:
    """Law: `remember` runs once for a call of generate, however many steps and beams it takes."""
    model = attached(llama(), fusion=perturbed())
    calls: list[int] = []
    remember = LoraFusion.remember
    fusion = model.modality("touch").fusion

    def counted(given: Tokens) -> Memory:
        calls.append(1)
        assert isinstance(fusion, LoraFusion)
        return remember(fusion, given)

    fusion.remember = counted  # type: ignore[method-assign]
    ids = torch.arange(3, 9).reshape(2, 3)
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4,
        num_beams=3, do_sample=False, **felt(2),
    )  # fmt: skip
    assert calls == [1]


def test_a_beam_uses_its_own_rows_sample() -> None:
    """Law: with beams, a row of a batch gives what it gives alone."""
    model = attached(llama(), fusion=perturbed())
    ids, samples = torch.arange(3, 9).reshape(2, 3), felt(2)
    options: dict[str, Any] = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    together = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **samples, **options
    )
    for row in range(2):
        alone = model.generate(
            input_ids=ids[row : row + 1],
            attention_mask=torch.ones(1, 3, dtype=torch.long),
            **{key: value[row : row + 1] for key, value in samples.items()},
            **options,
        )
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_base_projections_are_copied() -> None:
    """Law: `init = "base"` starts from the layer's own attention, `"random"` does not."""
    given = facts()
    for layer in range(LAYERS):
        weights = given.attention(layer)
        assert weights is not None
        block = adapter().blocks[str(layer)]
        assert torch.equal(block.query.base_layer.weight, weights.query)
        assert torch.equal(block.value.base_layer.weight, weights.value)
        drawn = adapter(init="random").blocks[str(layer)]
        assert not torch.equal(drawn.query.base_layer.weight, weights.query)


def test_a_base_of_another_kind_gets_random_projections() -> None:
    """Law: where the base's attention is not four plain projections, they are drawn."""
    model = attached(gpt2())
    assert model.facts().attention(0) is None
    fusion = lora(model)
    assert fusion.blocks["0"].query.base_layer.weight.any()


@pytest.mark.parametrize("init", ["base", "random"])
def test_what_is_rebuilt_is_rebuilt_equal(init: str) -> None:
    """Law: `rebuilt` names frozen parameters that another construction gives bit for bit."""
    first = adapter(init=init)
    torch.manual_seed(99)
    second = LoraFusion(facts(), layers=[0, 1], rank=2, init=init)  # type: ignore[arg-type]
    assert len(first.rebuilt) == LAYERS * (4 if init == "base" else 1)
    states, parameters = (first.state_dict(), second.state_dict()), dict(first.named_parameters())
    for name in first.rebuilt:
        assert not parameters[name].requires_grad
        assert torch.equal(states[0][name], states[1][name])


def test_frozen_parameters_that_are_not_rebuilt_are_saved() -> None:
    """Law: with random projections, a copy made from what is saved gives the same delta."""
    first = perturbed(init="random")
    saved = {n: t for n, t in first.state_dict().items() if n not in first.rebuilt}
    torch.manual_seed(99)
    second = LoraFusion(facts(), layers=[0, 1], rank=2, init="random").eval()
    second.load_state_dict(saved, strict=False)
    deltas = [one(hidden(), one.remember(tokens()), 0) for one in (first, second)]
    assert torch.equal(*deltas)


def test_alpha_over_rank_scales_a_pair() -> None:
    """Law: twice the alpha gives twice the delta where the output's pair alone has been trained."""
    deltas = []
    for alpha in (4.0, 8.0):
        fusion = adapter(alpha=alpha)
        with torch.no_grad():
            for name, parameter in fusion.named_parameters():
                if "output.lora_B" in name:
                    parameter.fill_(0.5)
        deltas.append(fusion(hidden(), fusion.remember(tokens()), 0))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    """Law: a pair adds alpha over the root of its rank; of rank 4, twice what LoRA adds."""
    deltas = []
    for rslora in (False, True):
        fusion = adapter(rank=4, rslora=rslora)
        with torch.no_grad():
            for name, parameter in fusion.named_parameters():
                if "output.lora_B" in name:
                    parameter.fill_(0.5)
        deltas.append(fusion(hidden(), fusion.remember(tokens()), 0))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


def test_dora_learns_the_length_of_rows() -> None:
    """Law: DoRA's lengths start as those of the frozen rows, and scale what the target gives."""
    fusion, plain = adapter(dora=True), adapter()
    value = fusion.blocks["0"].value
    lengths = value.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(lengths, value.base_layer.weight.norm(dim=1))
    states = hidden()
    assert_same_sums(value(states), plain.blocks["0"].value(states), HIDDEN)
    with torch.no_grad():
        lengths.mul_(3.0)
    assert_same_sums(value(states), 3 * plain.blocks["0"].value(states), HIDDEN)


def test_dora_leaves_the_output_a_plain_pair() -> None:
    """Law: the output, frozen at zero, has no direction; the targets alone are decomposed."""
    names = [name for name, _ in adapter(dora=True).named_parameters() if "magnitude" in name]
    assert {name.split(".")[2] for name in names} == {"query", "value"}
    assert len(names) == 2 * LAYERS


def test_dropout_acts_in_training_alone() -> None:
    """Law: dropout changes the delta in training, and nothing otherwise."""
    fusion = perturbed(dropout=0.5)
    memory = fusion.remember(tokens())
    fusion.train()
    assert not torch.equal(fusion(hidden(), memory, 0), fusion(hidden(), memory, 0))
    fusion.eval()
    assert torch.equal(fusion(hidden(), memory, 0), fusion(hidden(), memory, 0))


def test_layers_count_from_either_end() -> None:
    """Law: negative layers count from the last; the result is ascending and without repeats."""
    assert adapter(layers=[-1, 0, 1]).layers == (0, 1)
    assert adapter(layers=[-1]).layers == (LAYERS - 1,)


def test_rank_is_the_width_of_every_pair() -> None:
    """Law: each pair holds rank times (inputs + outputs) parameters."""
    trainable = {n: p for n, p in adapter(rank=3).named_parameters() if "lora_" in n}
    assert trainable
    assert {min(p.shape) for p in trainable.values()} == {3}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "^`rank` must be at least 1, not 0$"),
        ({"dropout": 1.0}, r"^`dropout` must be from 0 up to 1, not 1\.0$"),
        ({"dropout": -0.1}, r"^`dropout` must be from 0 up to 1"),
        ({"dropout": math.nan}, r"^`dropout` must be from 0 up to 1"),
        ({"dora": True, "targets": []}, "^`dora` must have at least one projection in `targets`$"),
        ({"layers": []}, "^`layers` must name at least one"),
        ({"layers": [LAYERS]}, rf"^`layers` must be between -{LAYERS} and {LAYERS - 1}"),
        ({"layers": [-LAYERS - 1]}, rf"^`layers` must be between -{LAYERS}"),
        ({"heads": 3, "init": "random"}, f"^`heads` must divide {HIDDEN}, not 3$"),
        ({"heads": 0, "init": "random"}, "^`heads` must be at least 1, not 0$"),
        ({"heads": -2, "init": "random"}, "^`heads` must be at least 1, not -2$"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        adapter(**options)


def test_the_base_is_not_shared() -> None:
    """Law: an adapter's frozen projections are copies; the base's own are out of its reach."""
    base = llama()
    model = attached(base)
    fusion = lora(model)
    own = {p.data_ptr() for p in fusion.parameters()}
    assert not own & {p.data_ptr() for p in base.parameters()}
