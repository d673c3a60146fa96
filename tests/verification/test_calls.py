"""The calls of a certificate are given what a base takes."""

from __future__ import annotations

import torch

from safe_framework.verification.calls import first_row, pad_batch, plain_batch, with_other_tokens
from safe_framework.verification.outcome import Operation, capture_outcome, trace_difference
from tests.support.toys import IMAGE, llama, llava, t5, texts

CPU = torch.device("cpu")


def test_words_are_ordinary() -> None:
    """No made-up word is a special token, and an encoder-decoder also gets an answer's words."""
    batch = plain_batch(t5(), CPU)
    assert batch.keys() == {"input_ids", "attention_mask", "decoder_input_ids"}
    for key in ("input_ids", "decoder_input_ids"):
        assert not torch.isin(batch[key], torch.tensor([0, 1])).any()
    assert len(set(batch["input_ids"][0].tolist())) > 1


def test_padding_makes_longer_and_changes_no_word() -> None:
    """The first row is padded, the others go on, and all entries of tokens follow."""
    base = llama()
    batch = plain_batch(base, CPU)
    batch["per_token"] = torch.ones(2, 8, 5)
    for side, kept in (("left", slice(3, None)), ("right", slice(None, -3))):
        longer = pad_batch(base, batch, side)
        assert torch.equal(longer["input_ids"][:, kept], batch["input_ids"])
        assert longer["attention_mask"].sum(1).tolist() == [8, 11]
        assert longer["per_token"].shape == (2, 11, 5)
        assert longer["input_ids"][0].tolist().count(0) == 3


def test_other_words_leave_images_and_other_rows() -> None:
    """Only ordinary words of one row change."""
    base = llava()
    batch = texts(base, 2, 6)
    changed = with_other_tokens(base, batch, 1)["input_ids"]
    assert torch.equal(changed[0], batch["input_ids"][0])
    assert not torch.equal(changed[1], batch["input_ids"][1])
    assert torch.equal(changed == IMAGE, batch["input_ids"] == IMAGE)


def test_one_row_is_the_first() -> None:
    """Every tensor with a row for each text loses the others."""
    batch = first_row({"input_ids": torch.ones(2, 3), "grid": torch.ones(5, 3), "use_cache": True})
    assert batch["input_ids"].shape == (1, 3)
    assert batch["grid"].shape == (5, 3)
    assert batch["use_cache"] is True


def test_an_outcome_is_from_the_same_random_state() -> None:
    """Two calls draw the same numbers, and neither changes what it was given."""
    given = {"values": torch.zeros(3)}

    def draw(values: torch.Tensor) -> torch.Tensor:
        return values.add_(torch.rand(3))

    first, second = capture_outcome(draw, given), capture_outcome(draw, given)
    assert torch.equal(first.leaves["result"], second.leaves["result"])
    assert not given["values"].any()


def operations(*names: str) -> list[Operation]:
    """A trace of these names."""
    return [Operation(f"aten.{name}", "float32[2]", "layer") for name in names]


def test_a_trace_names_what_is_too_many_missing_or_other() -> None:
    """The first difference, where it is and its module."""
    base = operations("a", "b", "c", "d", "e")
    assert trace_difference(base, base) == ""
    extra = trace_difference(operations("a", "x", "y", "b", "c", "d", "e"), base)
    assert extra == "at operation 2, in `layer`: aten.x, aten.y are too many"
    assert trace_difference(operations("a", "c", "d", "e"), base).endswith("aten.b is missing")
    other = trace_difference(operations("a", "x", "c", "d", "e"), base)
    assert other.endswith("aten.x(float32[2]) instead of aten.b(float32[2])")
    assert trace_difference(operations("a", "b"), base).startswith("at operation 3: aten.c")
    longer = trace_difference(operations("a", "b", "c", "d", "e", "f"), base)
    assert longer.endswith("at operation 6, in `layer`: aten.f is too many")
