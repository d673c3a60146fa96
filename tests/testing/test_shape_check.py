"""Shapes in annotations are checked when ``check_shapes`` calls."""

from typing import Annotated

import pytest
import torch
from torch import Tensor

from safe_framework import BaseFacts, Frames, Memory, Tokens
from safe_framework.testing import check_shapes
from safe_framework.testing.toys import ToyEncoder, ToyFusion, ToyProjector
from safe_framework_plugins.fusion.lora import LoraFusion

MASK = torch.ones(2, 3, dtype=torch.bool)


def outer(
    left: Annotated[Tensor, "rows"], right: Annotated[Tensor, "columns"] | None = None
) -> Annotated[Tensor, "rows columns"]:
    """Annotated, and wrong where ``right`` is not given."""
    return left[:, None] * (left if right is None else right)


def test_what_agrees_is_returned():
    """A call whose shapes agree gives what the function gives."""
    product = check_shapes(outer, torch.ones(2), torch.ones(3), sizes={"rows": 2})
    assert product.shape == (2, 3)
    assert check_shapes(outer, left=torch.ones(2)).shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "sizes", "message"),
    [
        ([torch.ones(2, 1)], {}, r"^`left` of `outer` must be \(rows\), not \(2, 1\)$"),
        ([torch.ones(2)], {"rows": 3}, r"must be \(rows\) with rows = 3, not \(2,\)$"),
        ([torch.ones(2), torch.ones(3)], {"columns": 4}, "^`right` of .* with columns = 4"),
        ([[1.0]], {}, "^`left` of `outer` must be a tensor, not list$"),
    ],
)
def test_what_differs_is_named(arguments, sizes, message):
    """The message names the value, what it must be and what it is."""
    with pytest.raises(AssertionError, match=message):
        check_shapes(outer, *arguments, sizes=sizes)


def test_a_plugin_is_held_to_its_interface():
    """A method without shapes of its own has those of the class that declares them."""
    adapter = LoraFusion(BaseFacts(8, 2, 2), layers=[0])
    memory = check_shapes(adapter.remember, Tokens(torch.ones(2, 3, 8), MASK))
    assert check_shapes(adapter, torch.ones(2, 4, 8), memory, 0).shape == (2, 4, 8)
    with pytest.raises(AssertionError, match=r"^`hidden` of `LoraFusion.forward` must be \(batch,"):
        check_shapes(adapter, torch.ones(2, 8), memory, 0)


def test_fields_are_held_to_theirs():
    """Inside Frames, Tokens and Memory every field has its axes, in one call the same."""
    with pytest.raises(AssertionError, match=r"^`mask` of `frames` of `ToyProjector.forward`"):
        check_shapes(ToyProjector(), Frames(torch.ones(2, 4, 4), MASK))
    with pytest.raises(AssertionError, match=r"^`mask` of `memory` of .* with batch = 1, not"):
        check_shapes(ToyFusion(), torch.ones(1, 3, 16), Memory({}, MASK), 0)
    with pytest.raises(AssertionError, match=r"^`values` of what `ToyEncoder.forward` returns"):
        check_shapes(ToyEncoder(), values=torch.ones(2, 3, 4), mask=MASK, sizes={"dim": 5})


def test_a_number_stands_for_itself():
    """An axis may be written as its size."""

    def rgb(image: Annotated[Tensor, "3 height width"]) -> None:
        """Take an image."""

    check_shapes(rgb, torch.ones(3, 1, 2))
    with pytest.raises(AssertionError, match=r"must be \(3, height, width\), not \(1, 1, 2\)$"):
        check_shapes(rgb, torch.ones(1, 1, 2))
