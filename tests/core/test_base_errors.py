"""What a base raises in a trial, and what the machine does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.base_model import base_facts
from safe_framework.core.loss_share import reads_count
from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError, UnsupportedBaseError
from tests.support.toys import llama

IDS = torch.tensor([[5, 6, 7]])
MACHINES = [torch.OutOfMemoryError("out of memory"), OSError(28, "No space left"), MemoryError()]
TRIALS: dict[str, Callable[[Any], Any]] = {
    "layers": SafeModel,
    "loss": lambda base: reads_count(base, {"input_ids": IDS}),
    "norm": lambda base: base_facts(base, SafeModel(llama()).stack).attention(0),
}


def failing(error: Exception) -> nn.Module:
    """A base whose norms fail."""
    base = llama()
    for module in base.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    return base


@pytest.mark.parametrize("error", MACHINES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_the_machines_errors_are_raised(trial: Callable[[Any], Any], error: Exception) -> None:
    """Law: a lack of memory or disk is never taken for something that a base cannot do."""
    with pytest.raises(type(error)) as caught:
        trial(failing(error))
    assert caught.value is error


def test_a_bases_errors_say_what_it_cannot_do() -> None:
    """Law: whatever a base raises itself is an answer to what was tried."""
    base = failing(NotImplementedError("no norm of mine"))
    with pytest.raises(UnsupportedBaseError, match="NotImplementedError: no norm of mine"):
        TRIALS["layers"](base)
    assert TRIALS["loss"](base) is False
    assert TRIALS["norm"](base) is not None


def test_errors_of_the_library_stay_what_they_are() -> None:
    """Law: an error that names its cause is not wrapped into another."""
    own = DataError("of a row")
    with pytest.raises(DataError) as caught, base_errors():
        raise own
    assert caught.value is own
