"""Where in the text a modality acts: `attend`, and `NAME__from` of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.adapter import CONFIG
from safe_framework.core.attend import ActingPositions
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import IGNORED
from safe_framework.utils.tensors import bitwise_equal
from tests.support.fusions import with_modality
from tests.support.marked import SAMPLE, marking
from tests.support.toys import (
    DIM,
    HIDDEN,
    PAD,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    bart,
    felt,
    gpt2,
    llama,
    t5,
    texts,
    tokenizer,
)
from tests.zoo.models import tiny

LENGTH = 5


def changed(model: SafeModel, batch: dict[str, Tensor], **samples: Tensor) -> list[list[bool]]:
    """Where the input of the first layer is not the base's, by row and position."""
    seen: list[Tensor] = []
    layers: Any = model.stack.of(model.base)
    handle = layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**batch, **samples)
        model.base(**{key: batch[key] for key in ("input_ids", "attention_mask")})
    handle.remove()
    found: list[list[bool]] = (seen[0] != seen[1]).any(-1).tolist()
    return found


def from_position(first: int) -> list[bool]:
    """False before a position, True from there on."""
    return [position >= first for position in range(LENGTH)]


def test_it_acts_on_the_last_position_of_a_prompt() -> None:
    """Law: where nothing says more, a call is a prompt, and its last real word chooses."""
    model = attached(llama(), attend="answer")
    batch = texts(model.base, 2, LENGTH)
    batch["attention_mask"][1, 3:] = 0
    assert changed(model, batch, **felt(2)) == [from_position(4), from_position(2)]


def test_labels_say_where_an_answer_begins() -> None:
    """Law: a call that is to learn an answer acts from what predicts its first word."""
    model = attached(llama(), attend="answer")
    batch = texts(model.base, 3, LENGTH)
    labels = batch["input_ids"].clone()
    labels[0, :3], labels[2] = IGNORED, IGNORED
    found = changed(model, {**batch, "labels": labels}, **felt(3))
    assert found == [from_position(2), from_position(0), from_position(4)]


@pytest.mark.parametrize("attend", ["answer", "all"])
def test_a_batch_says_it_for_each_row(attend: Any) -> None:
    """Law: `NAME__from` counts, whatever the modality's own option is."""
    model = attached(llama(), attend=attend)
    batch, first = texts(model.base, 3, LENGTH), torch.tensor([0, 3, 9])
    found = changed(model, batch, **felt(3), touch__from=first)
    assert found == [from_position(0), from_position(3), from_position(9)]


def test_each_modality_begins_by_itself() -> None:
    """Law: two modalities may act from different positions of one text."""
    model = attached(gpt2(), "touch", "smell", fusion=ToyFusion(layers=(0,)), attend="answer")
    batch, first = texts(model.base, 1, LENGTH), torch.tensor([1])
    alone = changed(model, batch, **felt(1))
    assert alone == [from_position(4)]
    assert changed(model, batch, **felt(1), **felt(1, "smell"), smell__from=first) == [
        from_position(1)
    ]


@pytest.mark.parametrize("variant", ["lora", "gated", "multilayer, shared"])
@pytest.mark.parametrize("kind", ["cached", "uncached", "beams", "chunks"])
def test_an_answer_is_decoded_as_it_is_read(kind: str, variant: str) -> None:
    """Law: decoding acts on the positions on which a call with the answer's place acts."""
    options: dict[str, Any] = {
        "cached": {},
        "uncached": {"use_cache": False},
        "beams": {"num_beams": 2},
        "chunks": {"prefill_chunk_size": 2},
    }[kind]
    model = with_modality(variant, llama(), trained=True)
    model.modality("touch").attend = "answer"
    batch, samples = texts(model.base, 2, LENGTH), felt(2)
    written = model.generate(
        **batch, **samples, max_new_tokens=4, min_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    if kind == "beams":
        again = model.generate(
            **batch, **samples, max_new_tokens=4, min_new_tokens=4, num_beams=2, use_cache=False
        )
        assert torch.equal(written.sequences, again)
        return
    whole = {"input_ids": written.sequences, "attention_mask": torch.ones_like(written.sequences)}
    with torch.no_grad():
        read = model(**whole, **samples, touch__from=torch.tensor([LENGTH - 1] * 2)).logits
    for step, logits in enumerate(written.logits):
        torch.testing.assert_close(logits, read[:, LENGTH - 1 + step], rtol=1e-4, atol=1e-4)


def test_a_kept_cache_is_continued_from_the_new_prompts_end() -> None:
    """Law: in a later turn, the words of the question before its last are the base's."""
    base = llama()
    model = attached(base, attend="answer")
    batch = texts(base, 1, 3)
    out = model.generate(
        **batch, max_new_tokens=2, min_new_tokens=2, return_dict_in_generate=True
    )  # no sample yet
    whole = torch.cat([out.sequences, texts(base, 1, 4)["input_ids"]], 1)
    kept = out.past_key_values
    assert kept.get_seq_length() == 4
    options = {
        "max_new_tokens": 2,
        "return_dict_in_generate": True,
        "attention_mask": whole * 0 + 1,
    }
    heard = model.generate(whole, **felt(1), past_key_values=kept, **options)
    alone = base.generate(whole, **options)
    for one, other in zip(heard.past_key_values.layers, alone.past_key_values.layers, strict=True):
        last = whole.shape[1] - 1
        torch.testing.assert_close(one.keys[..., :last, :], other.keys[..., :last, :])
    assert not torch.equal(
        heard.past_key_values.layers[1].keys[..., last, :],
        alone.past_key_values.layers[1].keys[..., last, :],
    )


def test_decoding_in_more_words_than_the_prompt_has() -> None:
    """Law: steps with a cache act everywhere, however many candidates are looked at at once."""
    first = torch.tensor([1])
    kept, again = (ActingPositions(first, length=2) for _ in range(2))
    assert kept.within(0, 2, keeps=True).tolist() == [1]
    assert kept.within(0, 3, keeps=True) is None
    assert again.within(0, 2, keeps=False).tolist() == [1]
    assert again.within(0, 3, keeps=False).tolist() == [1]  # the whole text, again
    assert again.within(0, 1, keeps=False) is None


def test_a_prompt_in_chunks_is_counted_through() -> None:
    """Law: each layer counts what it was given; chunks before the place are left alone."""
    acting = ActingPositions(torch.tensor([4, 2]), length=5)
    assert acting.within(7, 2, keeps=True).tolist() == [4, 2]  # neither is among two columns
    assert acting.within(9, 3, keeps=True).tolist() == [4, 2]
    assert acting.within(7, 2, keeps=True).tolist() == [2, 0]
    assert acting.within(7, 1, keeps=True) is None


# Markers


def test_after_begins_at_the_marker() -> None:
    """Law: with `attend = "after"`, what stands before a sample's marker is not acted on."""
    model = marking(llama())
    model.modality("touch").attend = "after"
    batch = dict(model.processor(["w3 w4 <touch> w5 w6", "<touch> w7"], touch=[SAMPLE, SAMPLE]))
    shown: list[Any] = []
    model.modality("touch").fusion.register_forward_hook(
        lambda _, args, delta: shown.append(args[0].shape[1])
    )
    with torch.no_grad():
        whole = model(**batch).logits
        first = (batch["input_ids"] >= 40).int().argmax(1)
        said = model(**batch, touch__from=first).logits
    assert first.tolist() == [2, 3]
    assert shown[0] == batch["input_ids"].shape[1] - 2
    assert bitwise_equal(whole, said)


def test_a_text_without_the_place_is_refused() -> None:
    """L7: a sample whose place nobody knows is not heard from anywhere else instead."""
    model = marking(llama())
    model.modality("touch").attend = "after"
    batch = texts(model.base, 2, LENGTH)
    with pytest.raises(SampleError, match="row 1 has a sample of `touch`") as caught:
        model(**batch, **felt(2, present=[False, True]))
    assert "processor" in str(caught.value.hint)


def test_a_place_moves_with_its_word() -> None:
    """Law: where another modality's markers are taken out, `NAME__from` means the same word."""
    model = marking(llama(), "touch", "smell")
    given = {"touch": [SAMPLE], "smell": [SAMPLE]}
    text = ["w3 <smell> w4 <touch> w5 w6"]
    batch = dict(model.processor(text, **given))
    ids = batch["input_ids"][0].tolist()
    first = ids.index(tokenizer()("w5")["input_ids"][0])
    plain = dict(model.processor(["w3 w4 <touch> w5 w6"], touch=[SAMPLE]))
    with torch.no_grad(), model.off("smell"):
        moved = model(**batch, touch__from=torch.tensor([first])).logits
    with torch.no_grad():
        there = plain["input_ids"][0].tolist().index(ids[first])
        expected = model(**plain, touch__from=torch.tensor([there])).logits
    assert there == first - 2
    assert bitwise_equal(moved, expected)


# What it cannot mean


@pytest.mark.parametrize("attend", ["answer", "after"])
def test_an_encoders_text_has_no_answer(attend: Any) -> None:
    """L7: fused into an encoder, only "all" means something."""
    model = SafeModel(t5(), side="encoder")
    with pytest.raises(SafeError, match="has no meaning in an encoder"):
        model.add_modality(
            "touch",
            encoder=ToyEncoder(),
            projector=ToyProjector(),
            fusion=ToyFusion(layers=(0,)),
            attend=attend,
            markers=True,
        )
    assert not model.modalities


def test_after_needs_a_place() -> None:
    """L7: without markers, a text has no place of a sample."""
    with pytest.raises(SafeError, match='`attend = "after"` needs the place'):
        attached(llama(), attend="after")


def test_a_base_that_adds_positions_is_refused() -> None:
    """L7: where a base puts positions of its own to a text, the answer's are not known."""
    base = tiny("causal", "cpmant").model
    model = SafeModel(base)
    fusion = ToyFusion(layers=(0,))
    parts = {"encoder": ToyEncoder(), "projector": ToyProjector(DIM, HIDDEN), "fusion": fusion}
    with pytest.raises(SafeError, match="positions of a text of"):
        model.add_modality("touch", attend="answer", **parts)
    model.add_modality("touch", attend="all", **parts)


def test_a_place_for_each_text() -> None:
    """L7: one number for several texts is refused."""
    model = attached(llama(), attend="answer")
    with pytest.raises(SampleError, match="from"):
        model(**texts(model.base, 2, LENGTH), **felt(2), touch__from=torch.zeros(2, 1).long())


def test_a_decoder_of_its_own_answers_everywhere() -> None:
    """Law: beside an encoder, "answer" is the decoder's whole text."""
    base = bart()
    everywhere, answering = attached(base), attached(base, attend="answer")
    batch = texts(base, 2, LENGTH)
    with torch.no_grad():
        assert bitwise_equal(
            answering(**batch, **felt(2)).logits, everywhere(**batch, **felt(2)).logits
        )


# Batches and files


def test_a_training_batch_says_where_answers_begin() -> None:
    """Law: the batch of a loop of one's own has the place beside the labels."""
    model = attached(llama(), "audio", tokenizer=tokenizer(), attend="answer")
    sample = torch.ones(3, DIM)
    batch = model.prepare_multimodal_inputs(
        ["w3 w4", "w5"], audio=[sample, None], answers=["w6", "w7"], training_mode=True
    )
    assert batch["audio__from"].tolist() == [1, 0]
    asked = model.prepare_multimodal_inputs(["w3 w4", "w5"], audio=[sample, None])
    assert "audio__from" not in asked  # the call knows its last position


def test_it_is_saved_and_an_older_adapter_acts_everywhere(tmp_path: Path) -> None:
    """Law: an adapter acts where it was trained to; one that says nothing acts everywhere."""
    folder = attached(llama(), attend="answer").save_pretrained(
        tmp_path / "adapter", without_recipe=True
    )
    fresh = attached(llama())
    load_tensors(fresh, folder)
    assert fresh.attends == {"touch": "answer"}
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    del config["modalities"]["touch"]["attend"]
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")
    load_tensors(fresh, folder)
    assert fresh.attends == {"touch": "all"}


def test_the_probe_sees_where_it_acts() -> None:
    """Law: shares are those of the positions at which the modality acts, padding left out."""
    model = with_modality("cross_attention, nothing", llama(), trained=True)
    model.configure_attention_probe()
    batch = texts(model.base, 2, LENGTH) | felt(2)
    batch["attention_mask"][1, 3:] = 0
    batch["input_ids"][1, 3:] = PAD
    with torch.no_grad():
        model(**batch)
        everywhere = model.attention_probe.records
        model.attention_probe.clear()
        model.modality("touch").attend = "answer"
        model(**batch)
    for one, before in zip(model.attention_probe.records, everywhere, strict=True):
        assert one.answer.shape == before.answer.shape
        torch.testing.assert_close(one.answer[0], before.answer[0])  # of the first fused layer
        torch.testing.assert_close(one.over_tokens[0], one.answer[0, :, 0])
