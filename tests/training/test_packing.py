"""Texts side by side in fewer rows: where they stand, and that the base computes the same."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.text_trees import can_mask_pairs
from safe_framework.training.compute.base_properties import find_base_properties
from safe_framework.training.compute.calls import ForwardCall
from safe_framework.training.compute.forward import ForwardPlanner
from safe_framework.training.compute.packing import Packing, plan_packing
from tests.support.tolerance import ATTENTION, assert_same_sums
from tests.support.toys import LAYERS, gpt2, llama, mixtral, opt
from tests.training.conftest import model_with_modality, perturb
from tests.training.test_forward import gradients, texts

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=9)


def needed_of(lengths: list[int], length: int = 12) -> Tensor:
    """The first positions of each row, so many."""
    return torch.arange(length) < torch.tensor(lengths).unsqueeze(1)


def packing(lengths: list[int]) -> Packing:
    """Of rows that leave much out."""
    found = plan_packing(needed_of(lengths, 40))
    assert found is not None
    return found


@given(LENGTHS)
def test_every_position_stands_once_in_a_text_of_its_own(lengths: list[int]) -> None:
    """Law: what is needed is kept, in order, each text whole, in no more positions."""
    needed = needed_of(lengths)
    found = plan_packing(needed)
    if found is None:
        assert not any(lengths) or needed.sum() > 0.6 * needed.numel()
        return
    assert found.source.numel() < needed.numel()
    stand = found.text >= 0
    assert sorted(found.source[stand].tolist()) == needed.flatten().nonzero().flatten().tolist()
    for number, length in enumerate(lengths):
        rows, columns = (found.text == number).nonzero(as_tuple=True)
        assert len(set(rows.tolist())) <= 1
        assert columns.tolist() == [
            *range(columns[0] if length else 0, (columns[0] if length else 0) + length)
        ]
        assert found.position_ids[found.text == number].tolist() == list(range(length))


@given(LENGTHS)
def test_unpacked_is_what_was_packed(lengths: list[int]) -> None:
    """Law: at every needed position the values come back, and what is read there, in order."""
    needed = needed_of(lengths)
    found = plan_packing(needed)
    if found is None:
        return
    values = torch.randn(*needed.shape, 3)
    there = found.pack(values)
    assert torch.equal(found.unpack(there)[needed], values[needed])
    read = needed & (torch.arange(needed.shape[1]) % 2 == 0)
    positions = found.pack_mask(read)
    assert torch.equal(found.unpack_selected(there[positions], positions), values[read])


def test_gaps_are_filled_as_well_as_can_be() -> None:
    """Law: rows whose texts fit without a gap are found, where first-fit would leave some."""
    found = packing([7, 6, 5, 5, 4, 3])  # first-fit at 10: 7 3 / 6 4 / 5 5; at 15: 7 6 / 5 5 4 / 3
    assert found.source.numel() == 30
    assert (found.text >= 0).all()


def test_a_text_attends_to_itself_alone_and_backwards() -> None:
    """Law: scores are as they are where a text attends back to itself, and masked elsewhere."""
    found = packing([3, 2])
    seen = (found.mask(torch.float32) == 0).squeeze(1)
    for row in range(len(found.text)):
        for here in range(found.text.shape[1]):
            for there in range(found.text.shape[1]):
                same = bool(found.text[row, here] == found.text[row, there])
                assert bool(seen[row, here, there]) == (same and there <= here)


def doubled(call: ForwardCall) -> ForwardCall:
    """The same in double precision."""
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in call.inputs.items()}
    return attrs.evolve(call, inputs=inputs)


@pytest.mark.parametrize("make", [llama, gpt2, opt])
def test_packed_calls_predict_the_same(make: Callable[[], nn.Module]) -> None:
    """Law: with samples, predictions and gradients are those of texts in rows of their own."""
    model = model_with_modality(make()).double()
    perturb(model)
    known, positions = find_base_properties(model), list[int]()
    assert known.packs
    model.base.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: positions.append(args[0].numel())
    )
    asked = [doubled(texts()), doubled(texts([[5, 6], [7, 8, 9, 10, 11, 12, 13]]))]
    found = []
    for properties in (known, attrs.evolve(known, packs=False)):
        positions.clear()
        predictions = ForwardPlanner(model, properties=properties).predictions(asked)
        loss = torch.stack([one.logits.square().mean() for one in predictions]).sum()
        found.append((loss, gradients(model, loss), sum(positions)))
    assert found[0][2] < 0.8 * found[1][2]
    in_float32 = LAYERS * ATTENTION  # of the sense, whatever the base's precision
    assert_same_sums(found[0][:2], found[1][:2], in_float32, dtype=torch.float32)


def without(inner: str, key: str) -> Callable[[Any], None]:
    """Makes a module of a base ignore one of its arguments."""

    def forget(base: Any) -> None:
        base.get_submodule(inner).register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, key: None}), with_kwargs=True
        )

    return forget


@pytest.mark.parametrize(
    ("make", "ignore"),
    [
        (gpt2, without("transformer", "position_ids")),
        (llama, without("model.layers.0.self_attn", "attention_mask")),
        (mixtral, without("model.layers.1.self_attn", "attention_mask")),
    ],
    ids=["positions", "mask", "mask of experts"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_ignores_positions_or_mask_is_not_packed(
    make: Any, ignore: Any, dtype: torch.dtype
) -> None:
    """Law: where positions or the mask have no effect, rows stay as they are, in any precision."""
    assert find_base_properties(model_with_modality(make().to(dtype))).packs
    base = make().to(dtype)
    ignore(base)
    found = find_base_properties(model_with_modality(base))
    assert found.causal
    assert not found.packs


def windowed(model: SafeModel) -> None:
    """Layers that attend a few tokens back, which a mask of ours would widen."""
    model.base.config.sliding_window = 4


def parted(model: SafeModel) -> None:
    """Rows without a sample run in a call of their own."""
    model.split_rows = True


@pytest.mark.parametrize("change", [windowed, parted])
def test_known_obstacles_to_packing_are_heeded(model: SafeModel, change: Any) -> None:
    """Law: neither sliding windows nor rows that are called separately are packed."""
    assert can_mask_pairs(model)
    change(model)
    assert not can_mask_pairs(model)


def test_texts_padded_on_the_left_stay_in_their_rows(model: SafeModel) -> None:
    """Law: padding on the left, or inputs that nobody knows, and the call is left as it is."""
    known, call = find_base_properties(model), texts([[5, 6, 7, 8, 9, 10], [11], [12]])
    assert known.plan_packing(call) is not None
    mask = call.inputs["attention_mask"].clone()
    mask[0, 0] = 0
    late = ForwardCall({**call.inputs, "attention_mask": mask}, call.positions)
    more = ForwardCall({**call.inputs, "token_type_ids": mask}, call.positions)
    assert known.plan_packing(late) is None
    assert known.plan_packing(more) is None
