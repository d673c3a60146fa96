"""Questions that share a row are answered as they would be alone."""

import pytest
import torch

from safe_framework.core.output_head import logits_at
from safe_framework.experimental.vision_language.packed_rows import Row, Segment, pack
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import llama

ROWS = [
    Row([3, 4, 5], [Segment([6, 7], [8, 1]), Segment([9], [10, 11, 1])]),
    Row([3, 12], [Segment([13, 14, 15], [16, 1])]),
    Row([], [Segment([17], [18, 19]), Segment([20], [21])]),
]


@pytest.fixture(scope="module")
def model():
    """A tiny language model in float64, whose attention is written out."""
    model = llama().double().eval()
    model.set_attn_implementation("eager")
    return model


def test_targets_follow_their_positions():
    """Each scored token is predicted from the one before it, row after row."""
    packed = pack(ROWS, pad=0)
    assert packed.targets.tolist() == [8, 1, 10, 11, 1, 16, 1, 18, 19, 21]
    assert packed.ends == [2, 5, 7, 9, 10]
    ids = packed.inputs["input_ids"]
    after = ids.roll(-1, 1)[packed.positions]
    assert after.tolist() == packed.targets.tolist()
    assert packed.inputs["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6]


def test_logits_are_those_of_each_question_alone(model):
    """Packing changes no prediction but by rounding, which norms do to float32."""
    packed = pack(ROWS, 0, torch.float64)
    with torch.no_grad():
        together = logits_at(model, model, packed.inputs, packed.positions)
        alone = []
        for row in ROWS:
            for segment in row.segments:
                ids = [*row.beginning, *segment.given, *segment.scored]
                logits = model(input_ids=torch.tensor([ids])).logits[0]
                alone.append(logits[-len(segment.scored) - 1 : -1])
    assert_same_sums(together, torch.cat(alone), FORWARD, dtype=torch.float32)


def test_a_long_answer_counts_as_much_as_a_short_one():
    """The weights of each answer but its end add up alike, and the end's are alike."""
    weights = pack(ROWS[:2], 0).weights
    shares = [weights[:1], weights[2:4], weights[5:6]]
    assert [round(float(one.sum()), 6) for one in shares] == [round(1 / 3, 6)] * 3
    assert torch.equal(weights[[1, 4, 6]], weights[1].expand(3))
