"""Several samples in one text: heard in order, beside rows with fewer, and off like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.core.segments import SegmentVectors, joined, numbers_in_rows
from safe_framework.errors import SampleError
from safe_framework.interfaces.types import Tokens
from safe_framework.utils.tensors import bitwise_equal
from tests.support.marked import SAMPLE, marking
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import DIM, HIDDEN, ToyEncoder, ToyProjector, llama, lora, tokenizer

FIRST, SECOND, LONG = torch.ones(2, DIM), -torch.ones(2, DIM), torch.linspace(-1, 1, 5 * DIM)
LONG = LONG.reshape(5, DIM)


def hearing(kind: str = "plain") -> SafeModel:
    """A model whose sense is heard, with segment vectors as training may leave them."""
    if kind == "plain":
        model = SafeModel(llama(), tokenizer())
        torch.manual_seed(0)
        parts: Any = {"encoder": ToyEncoder(), "projector": ToyProjector(), "fusion": lora(model)}
        model.add_modality("touch", **parts)
    else:
        model = marking(llama(), inline=kind == "inline", silent=True)
    torch.manual_seed(3)
    with torch.no_grad():
        for part in (model.modality("touch").segments, model.modality("touch").fusion):
            for parameter in part.parameters():
                parameter.normal_(std=0.5)
    return model


def logits(model: SafeModel, *held: Any, text: str = "w3 w4 w5", **options: Any) -> Tensor:
    """Of one text for each entry."""
    found: Tensor = model(**model.processor([text] * len(held), touch=list(held)), **options).logits
    return found


KINDS = ["plain", "markers", "inline"]


def samples_of(kind: str) -> tuple[Tensor, Tensor]:
    """Two samples, of as many frames as there are places in the text."""
    return (SAMPLE, -SAMPLE) if kind != "plain" else (FIRST, LONG)


@pytest.mark.parametrize("kind", KINDS)
def test_both_are_heard_and_their_order_counts(kind: str) -> None:
    """Law: two samples give other outputs than either alone, and than in the other order."""
    model, (one, other) = hearing(kind), samples_of(kind)
    both = logits(model, [one, other])[:, -1]
    for held in ([one], [other], [other, one], [one, one]):
        assert not torch.allclose(both, logits(model, held)[:, -1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_sample_in_slots_has_its_bits(kind: str) -> None:
    """Law: a row with one sample is the same with an axis of slots and without one."""
    model, (one, other) = hearing(kind), samples_of(kind)
    batch = dict(model.processor(["w3 w4", "w5 w6"], touch=[one, other]))
    slotted = {
        key: value.unsqueeze(1) if key.startswith("touch__") else value
        for key, value in batch.items()
    }
    assert bitwise_equal(model(**slotted).logits, model(**batch).logits)


def test_a_slot_that_is_left_out_changes_no_bit() -> None:
    """Law: absent slots, before a sample or behind it, are as good as none."""
    model = hearing()
    batch = dict(model.processor(["w3 w4"], touch=[[LONG, FIRST]]))
    alone = logits(model, LONG, text="w3 w4")
    batch["touch__present"] = torch.tensor([[True, False]])
    assert bitwise_equal(model(**batch).logits, alone)
    moved = {k: v.flip(1) if k.startswith("touch__") else v for k, v in batch.items()}
    assert bitwise_equal(model(**moved).logits, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_sample_are_the_bases(kind: str) -> None:
    """Law: beside a row with two, a row with none has the base's bits, in logits and tokens."""
    model, (one, other) = hearing(kind), samples_of(kind)
    given = model.processor(["w3 w4 w5", "w6 w7"], touch=[[one, other], None])
    plain = {key: given[key] for key in ("input_ids", "attention_mask")}
    size = model.base.config.vocab_size
    plain["input_ids"] = plain["input_ids"].masked_fill(plain["input_ids"] >= size, 3)
    assert bitwise_equal(model(**given).logits[1], model.base(**plain).logits[1])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
    ours, base = model.generate(**given, **options), model.base.generate(**plain, **options)
    assert torch.equal(ours[1], base[1])


@pytest.mark.parametrize("kind", KINDS)
def test_two_samples_are_off_like_one(kind: str) -> None:
    """Law: with the gate at 0, of a call or of a row, the outputs are the base's bit for bit."""
    model, (one, other) = hearing(kind), samples_of(kind)
    given = model.processor(["w3 w4 w5", "w3 w4 w5"], touch=[[one, other], [other]])
    base = model.base(**model.processor(["w3 w4 w5"] * 2)).logits
    assert bitwise_equal(model(**given, gate=0.0).logits[:, -3:], base)
    assert bitwise_equal(model(**given, gate=torch.zeros(2)).logits[:, -3:], base)
    with model.off():
        assert bitwise_equal(model(**given).logits[:, -3:], base)


def test_rows_do_not_influence_each_other() -> None:
    """Law: what a row with two samples gives does not depend on those of another row."""
    model = hearing()
    rows = [[FIRST, LONG], [SECOND, FIRST, LONG], [LONG], None]
    whole = logits(model, *rows)
    for number, row in enumerate(rows):
        assert_same_sums(whole[number], logits(model, row)[0], FORWARD)
    other = logits(model, [FIRST, LONG], [LONG, LONG, LONG], [FIRST], None)
    assert bitwise_equal(whole[[0, 3]], other[[0, 3]])


def test_beams_and_steps_share_them() -> None:
    """Law: copies of a row hear its samples, with a cache and without."""
    model = hearing()
    given = model.processor(["w3 w4 w5", "w6"], touch=[[FIRST, LONG], [LONG]])
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    greedy = model.generate(**given, **options)
    assert torch.equal(greedy, model.generate(**given, use_cache=False, **options))
    alone = model.processor(["w3 w4 w5"], touch=[[FIRST, LONG]])
    both = model.generate(**given, num_beams=2, num_return_sequences=2, **options)
    assert torch.equal(
        both[:2], model.generate(**alone, num_beams=2, num_return_sequences=2, **options)
    )


def test_each_place_has_its_own_samples_tokens() -> None:
    """Law: of two places in a text, the first holds the first sample's tokens, projected."""
    model = hearing("inline")
    modality = model.modality("touch")
    torch.nn.init.zeros_(modality.segments.weight)
    seen: list[Tensor] = []
    handle = model.base.model.layers[0].register_forward_pre_hook(
        lambda layer, args: seen.append(args[0].detach()), prepend=True
    )
    model(**model.processor("w3 <touch> w4 <touch>", touch=[SAMPLE, -SAMPLE]), gate=1.0)
    handle.remove()
    tokens = modality.projector(model.encode("touch", [SAMPLE, -SAMPLE])).values
    assert modality.markers is not None
    wanted = tokens * modality.markers.scale
    assert torch.equal(seen[0][0, 2:5], wanted[0])
    assert torch.equal(seen[0][0, 8:11], wanted[1])


def test_an_order_is_unknown_until_it_is_learned() -> None:
    """Law: fresh vectors are zero: two samples are heard, in no order; a single one never moves."""
    model = hearing()
    torch.nn.init.zeros_(model.modality("touch").segments.weight)
    both = logits(model, [FIRST, SECOND])
    assert_same_sums(both, logits(model, [SECOND, FIRST]), FORWARD)
    assert not torch.allclose(both, logits(model, [FIRST]), atol=1e-4)


def test_the_vectors_are_in_the_adapter(tmp_path: Path) -> None:
    """Law: what was saved and loaded answers as before, order included."""
    model = hearing()
    model.save_pretrained(tmp_path / "adapter", without_recipe=True)
    other = hearing()
    with torch.no_grad():
        other.modality("touch").segments.weight.zero_()
    load_tensors(other, tmp_path / "adapter")
    assert bitwise_equal(logits(other, [FIRST, LONG]), logits(model, [FIRST, LONG]))


def test_numbers_and_places_of_samples() -> None:
    """Law: a row's samples are counted from 0, and its tokens stand in their order."""
    present = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    number = numbers_in_rows(present)
    assert number.tolist() == [0, 1, 0]
    tokens = Tokens(torch.arange(6.0).reshape(3, 2, 1), torch.tensor([[1, 0], [1, 1], [1, 1]]) > 0)
    found = joined(tokens, present.nonzero()[:, 0], number)
    assert found.values[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 0, 0]]
    assert found.mask.tolist() == [[True, False, True, True], [True, True, False, False]]


def test_many_samples_are_told_apart() -> None:
    """Law: no two of forty samples have the same vector, nor has any the first one's, none."""
    segments = SegmentVectors(HIDDEN)
    torch.nn.init.normal_(segments.weight)
    tokens = Tokens(torch.zeros(40, 1, HIDDEN), torch.ones(40, 1, dtype=torch.bool))
    moved = segments(tokens, torch.arange(40)).values[:, 0]
    assert not moved[0].any()
    assert (torch.cdist(moved, moved) + 9 * torch.eye(40)).min() > 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"touch__values": torch.zeros(1, 3, 2, DIM)},
        {"touch__mask": torch.ones(1, 3, 2, dtype=torch.bool)},
        {"touch__present": torch.ones(1, 2, 2, dtype=torch.bool)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_slots_of_all_tensors_agree(change: dict[str, Tensor]) -> None:
    """Law: tensors whose slots differ are refused with their shapes."""
    model = hearing()
    batch = dict(model.processor(["w3"], touch=[[FIRST, SECOND]])) | change
    with pytest.raises(SampleError, match="have different slots for samples: "):
        model(**batch)


def test_gradients_reach_both_and_the_vectors() -> None:
    """Law: the projector learns of every sample, and the vectors of all but the first."""
    model = hearing()
    logits(model, [FIRST, LONG]).square().mean().backward()
    gradient = model.modality("touch").segments.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
