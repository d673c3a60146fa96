"""Which calls are made as one, and what one they make."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_framework.training.compute.calls import ForwardCall, group_calls, merge_calls


def call(rows: int, length: int, frames: int = 2, dim: int = 3, **more: Tensor) -> ForwardCall:
    """Some rows with samples."""
    inputs = {
        "input_ids": torch.full((rows, length), 7),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "touch__present": torch.ones(rows, dtype=torch.bool),
        "touch__frames": torch.randn(rows, frames, dim),
        "touch__frames_mask": torch.ones(rows, frames, dtype=torch.bool),
    }
    return ForwardCall(inputs | more, torch.ones(rows, length, dtype=torch.bool))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4)), min_size=1))
def test_one_call_holds_all_rows(shapes: list[tuple[int, int, int]]) -> None:
    """Law: each row stands in the joined call as it stood in its own, with nothing behind it."""
    calls = [call(*shape) for shape in shapes]
    one, start = merge_calls(calls), 0
    for each in calls:
        rows = slice(start, start + len(each.positions))
        for key, value in {**each.inputs, "positions": each.positions}.items():
            held = (one.inputs | {"positions": one.positions})[key][rows]
            if value.ndim == 1:
                assert torch.equal(held, value)
            else:
                width = value.shape[1]
                assert torch.equal(held[:, :width], value)
                assert not held[:, width:].any()
        start = rows.stop
    assert len(one.positions) == start
    assert one.inputs["input_ids"].shape == one.positions.shape


def test_calls_of_like_length_are_one() -> None:
    """Law: calls are merged while this adds little padding, and separate beyond."""
    calls = [call(4, 10), call(4, 8), call(4, 40), call(1, 9)]
    assert group_calls(calls, 0.25) == [[0, 1, 3], [2]]
    assert group_calls(calls, 0.0) == [[0], [1], [2], [3]]
    assert group_calls(calls, 10.0) == [[0, 1, 2, 3]]
    assert group_calls([], 0.25) == []


@pytest.mark.parametrize(
    "other",
    [
        call(2, 6, dim=4),
        call(2, 6, pixel_values=torch.zeros(2, 3)),
        ForwardCall({"input_ids": torch.zeros(2, 6)}, torch.ones(2, 6, dtype=torch.bool)),
        ForwardCall(
            call(2, 6).inputs,
            torch.ones(2, 6, dtype=torch.bool),
            prefix_states=[torch.zeros(6, 3)] * 2,
        ),
    ],
    ids=["other width", "other inputs", "fewer inputs", "prefix_states"],
)
def test_unlike_calls_are_separate(other: ForwardCall) -> None:
    """Law: calls with other inputs, or prefix_states at another layer, are never made as one."""
    assert group_calls([call(2, 6), other], 10.0) == [[0], [1]]


def test_inputs_of_unknown_meaning_are_not_merged() -> None:
    """Law: nothing is known of filling up other inputs, so calls with them are not joined."""
    strange = [call(2, 6, pixel_values=torch.zeros(2, 3)) for _ in range(2)]
    assert group_calls(strange, 10.0) == [[0], [1]]


def test_prefix_states_stay_in_order() -> None:
    """Law: each row keeps its prefix states."""
    prefix_states = [[torch.full((3, 2), float(n))] for n in range(2)]
    calls = [
        ForwardCall({}, torch.ones(1, 3, dtype=torch.bool), prefix_states=one)
        for one in prefix_states
    ]
    assert [int(row[0, 0]) for row in merge_calls(calls).prefix_states or ()] == [0, 1]
