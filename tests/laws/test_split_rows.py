"""L4 on bases that mix rows: ``split_rows`` runs the rows without the modality apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import all_same, copy_of
from tests.support.toys import attached, bart, felt, llama, mixtral, texts

LENGTH = 5


def pair(split: bool) -> tuple[Any, SafeModel]:
    """A mixture of experts, and a copy of it with the modality."""
    base = mixtral()
    untouched, model = copy_of(base), attached(base)
    model.split_rows = split
    return untouched, model


def absent_row(untouched: Any, model: SafeModel, seed: int) -> tuple[Tensor, Tensor]:
    """The first row's logits where only the second row has a sample, and the base's."""
    batch = texts(model.base, 2, LENGTH, seed)
    with torch.no_grad():
        mixed = model(**batch, **felt(2, present=[False, True], seed=seed)).logits
        return mixed[0], untouched(**batch).logits[0]


def test_experts_mix_rows_and_split_rows_parts_them() -> None:
    """Without it the last bits of an absent row move in some batch, with it in none."""
    untouched, model = pair(split=False)
    together = [absent_row(untouched, model, seed) for seed in range(10)]
    assert not all(bitwise_equal(*rows) for rows in together)
    model.split_rows = True
    assert all(bitwise_equal(*absent_row(untouched, model, seed)) for seed in range(10))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_generated_rows_are_parted(options: dict[str, Any]) -> None:
    """Copies of absent rows have the base's tokens, those of present rows the ones with samples."""
    untouched, model = pair(split=True)
    batch, copies = texts(model.base, 2, LENGTH, 1), options.get("num_return_sequences", 1)
    options = options | {"max_new_tokens": 6, "min_new_tokens": 6}

    def generated(call: Any, **samples: Tensor) -> Tensor:
        torch.manual_seed(4)
        return call(**batch, **options, **samples)

    expected = generated(untouched.generate)
    mixed = generated(model.generate, **felt(2, present=[False, True], seed=1))
    active = generated(model.generate, **felt(2, seed=1))
    assert all_same([mixed[:copies]], [expected[:copies]])
    assert not torch.equal(mixed[copies:], expected[copies:])
    assert mixed.shape == active.shape == (2 * copies, LENGTH + 6)


def test_texts_of_different_lengths_are_filled_up() -> None:
    """A row that ends early is padded, whichever run it comes from."""
    _, model = pair(split=True)
    model.base.generation_config.eos_token_id = list(range(2, 20))
    for seed in range(8):
        batch = texts(model.base, 2, LENGTH, seed)
        samples = felt(2, present=[False, True], seed=seed)
        out = model.generate(**batch, **samples, max_new_tokens=12)
        assert torch.equal(out[:, :LENGTH], batch["input_ids"])


def test_hidden_states_are_parted_and_a_cache_is_not_given() -> None:
    """What has a row for each sample is merged; a cache of two runs would be neither's."""
    untouched, model = pair(split=True)
    batch = texts(model.base, 2, LENGTH)
    with torch.no_grad():
        mixed = model(**batch, **felt(2, present=[False, True]), output_hidden_states=True)
        expected = untouched(**batch, output_hidden_states=True)
    absent = [state[0] for state in mixed.hidden_states]
    assert all_same(absent, [state[0] for state in expected.hidden_states])
    assert mixed.past_key_values is None


@pytest.mark.parametrize("name", ["labels", "past_key_values"])
def test_what_cannot_be_parted_is_refused(name: str) -> None:
    """One loss over all rows, or a cache that only one of the two runs may extend."""
    _, model = pair(split=True)
    batch = texts(model.base, 2, LENGTH)
    given = batch["input_ids"] if name == "labels" else model.base(**batch).past_key_values
    with pytest.raises(SafeError, match=f"`split_rows` cannot take `{name}`"):
        model(**batch, **felt(2, present=[False, True]), **{name: given})


@pytest.mark.parametrize("base", [llama, bart])
def test_a_whole_batch_is_one_call(base: Any) -> None:
    """With a sample in every row, or in none, nothing is run twice."""
    model = attached(base())
    batch, calls = texts(model.base, 2, 3), []
    model.base.register_forward_pre_hook(lambda module, args: calls.append(module))
    plain = model(**batch, **felt(2)).logits
    model.split_rows = True
    assert bitwise_equal(model(**batch, **felt(2)).logits, plain)
    model(**batch)
    assert len(calls) == 3
