"""The laws with markers in the text, which the base never sees."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.base_model import installed_hooks
from safe_framework.core.model import SafeModel
from safe_framework.utils.hashing import fingerprint, tokenizer_fingerprint
from safe_framework.utils.tensors import bitwise_equal
from tests.laws.calls import DECODING, all_same, copy_of
from tests.laws.test_threads import COPIES
from tests.support.marked import SAMPLE, marking
from tests.support.toys import IMAGE, bart, gpt2, llama, llava, opt, t5, tokenizer

BASES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama, "gpt2": gpt2, "opt": opt, "llava": llava, "t5": t5, "bart": bart,
}  # fmt: skip
TEXTS = ["w3 w4 w5 w6", "w7 w8", "w9 w10 w11"]


def batch_of(model: SafeModel, given: list[Any], texts: list[str], **options: Any) -> Any:
    """A batch of the processor, with an image before every text where the base sees images."""
    pictures = hasattr(model.base.config, "vision_config")
    shown = [f"{f'w{IMAGE} ' * 4}{text}" if pictures else text for text in texts]
    batch = dict(model.processor(shown, touch=given, **options))
    if pictures:
        generator = torch.Generator().manual_seed(0)
        batch["pixel_values"] = torch.randn(len(texts), 3, 4, 4, generator=generator)
    return batch


def plain_of(model: SafeModel, texts: list[str], **options: Any) -> dict[str, Tensor]:
    """The batch of the same texts without any modality."""
    batch = batch_of(model, [None] * len(texts), texts, **options)
    return {key: value for key, value in batch.items() if not key.startswith("touch")}


def forward(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Logits, hidden states, and the loss where the text is its own label."""
    base = getattr(model, "base", model)
    if base.config.is_encoder_decoder:
        batch = batch | {"decoder_input_ids": torch.tensor([[3, 4]] * len(batch["input_ids"]))}
    else:
        batch = batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] < 3, -100)}
    with torch.no_grad():
        out = model(**batch, **options, output_hidden_states=True)
    states = out.get("decoder_hidden_states") or out.hidden_states
    return [out.logits, *states, *([out.loss] if "labels" in batch else [])]


def answer(call: Callable[..., Any], batch: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Texts and scores of a seeded ``generate``."""
    torch.manual_seed(11)
    wanted = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True}
    out = call(**batch, **options, **wanted, return_dict_in_generate=True)
    return [out.sequences, *out.logits]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("where", ["{}", "w30 <touch> {}"])
@pytest.mark.parametrize("name", BASES)
def test_off_is_the_base_on_the_text_without_markers(name: str, where: str, side: str) -> None:
    """L2: absent, gate 0 and ``off()`` give the base's bits for the text that has no markers.

    In a row without a sample, ``<touch>`` is a word like any other.
    """
    base = BASES[name]()
    untouched, model = copy_of(base), marking(base)
    given = [SAMPLE, None, SAMPLE]
    prompts = [where.format(text) for text in TEXTS]
    batch = batch_of(model, given, prompts, padding_side=side)
    assert (batch["input_ids"] >= 40).sum() == 4
    heard = zip(given, prompts, strict=True)
    texts = [text if one is None else text.replace("<touch>", "") for one, text in heard]
    plain = plain_of(model, texts, padding_side=side)
    expected = forward(untouched, plain)
    assert all_same(forward(model, batch, gate=0.0), expected)
    with model.off():
        assert all_same(forward(model, batch), expected)
    absent = {key: value for key, value in batch.items() if not key.startswith("touch")}
    assert all_same(forward(model, absent), expected)
    assert all_same(answer(model.generate, batch, gate=0.0), answer(untouched.generate, plain))


@pytest.mark.parametrize("kind", DECODING)
def test_off_decodes_as_the_base(kind: str) -> None:
    """L2: greedy, sampled, beam and uncached tokens and scores of a shut modality."""
    model, untouched = marking(llama(), inline=True), copy_of(llama())
    batch = batch_of(model, [SAMPLE] * 3, TEXTS)
    expected = answer(untouched.generate, plain_of(model, TEXTS), **DECODING[kind])
    assert all_same(answer(model.generate, batch, gate=0.0, **DECODING[kind]), expected)


@pytest.mark.parametrize("part", ["touch__values", "touch__mask"])
def test_a_broken_table_stays_out(part: str) -> None:
    """L2: whatever the vectors are, NaN among them, off is the base; and all masked is off."""
    model, untouched = marking(llama(), inline=True), copy_of(llama())
    model.modality("touch").markers.table.data.fill_(float("nan"))
    batch = batch_of(model, [SAMPLE] * 3, TEXTS)
    expected = forward(untouched, plain_of(model, TEXTS))
    assert all_same(forward(model, batch, gate=0.0), expected)
    assert forward(model, batch)[0].isnan().any()
    if part == "touch__mask":
        batch[part] = torch.zeros_like(batch[part])
        assert all_same(forward(model, batch), expected)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_rows_without_a_sample_are_the_bases(name: str, inline: bool) -> None:
    """L4: they are padded like the others, have no markers, and keep the base's bits."""
    base = BASES[name]()
    untouched, model = copy_of(base), marking(base, inline=inline)
    batch = batch_of(model, [SAMPLE, None, SAMPLE], TEXTS)
    assert not (batch["input_ids"][1] >= 40).any()
    shown = {key: value for key, value in batch.items() if not key.startswith("touch")}
    shown["input_ids"] = shown["input_ids"].where(shown["input_ids"] < 40, 13)
    mixed, expected = forward(model, batch)[0], forward(untouched, shown)[0]
    assert bitwise_equal(mixed[1], expected[1])
    assert not torch.equal(mixed[0], expected[0])


def test_a_shut_row_is_the_bases() -> None:
    """L4: a row whose gate is 0 loses its span and is padded where the batch is padded."""
    model, untouched = marking(llama()), copy_of(llama())
    batch = batch_of(model, [SAMPLE] * 3, TEXTS)
    mixed = forward(model, batch, gate=torch.tensor([1.0, 0.0, 1.0]))[0]
    ids, mask = torch.tensor([[0, 0, 0, 0, 7, 8]]), torch.tensor([[0, 0, 0, 0, 1, 1]])
    shown = {"input_ids": ids.repeat(3, 1), "attention_mask": mask.repeat(3, 1)}
    assert bitwise_equal(mixed[1], forward(untouched, shown)[0][1])


def test_nothing_of_base_or_tokenizer_changes() -> None:
    """L1: weights, modules, vocabulary and tokenizer are what they were, through training too."""
    base, words = llama(), tokenizer()
    before = fingerprint(base), tokenizer_fingerprint(words), len(words), words.all_special_tokens
    names = [name for name, _ in base.named_modules()]
    model = marking(base, inline=True, words=words)
    batch = batch_of(model, [SAMPLE] * 3, TEXTS)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    torch.optim.SGD(list(model.trainable_parameters().values()), 1.0).step()
    model.generate(**batch, max_new_tokens=2)
    after = fingerprint(base), tokenizer_fingerprint(words), len(words), words.all_special_tokens
    assert after == before
    assert [name for name, _ in base.named_modules()] == names
    assert installed_hooks(model.detach()) == []


def test_markers_change_outputs() -> None:
    """L5 does not hold with markers: a fresh modality's markers alone move the base's outputs."""
    model = marking(llama(), silent=True)
    batch = batch_of(model, [SAMPLE], ["w3 w4"])
    on = forward(model, batch)[0][:, -2:]
    assert not torch.allclose(on, forward(model.base, plain_of(model, ["w3 w4"]))[0][:, -2:])


def test_modalities_with_markers_compose() -> None:
    """L6: with one off, the model is the one that has only the other, bit for bit."""
    both, one = marking(llama(), "touch", "smell"), marking(llama(), "touch", "smell")
    one.remove_modality("smell")
    prompt = "w3 <smell> w4 <touch> w5"
    samples = {"touch": [SAMPLE, SAMPLE], "smell": [SAMPLE, None]}
    batch = both.processor([prompt, "w6"], **samples)
    alone = one.processor([prompt.replace("<smell>", ""), "w6"], touch=samples["touch"])
    with torch.no_grad():
        expected = one(**alone).logits
        found = both(**batch, gate={"smell": 0.0}).logits
    assert bitwise_equal(found, expected)


def test_threads_do_not_mix_their_markers() -> None:
    """Requests with markers in different positions, at once, equal the serial ones."""
    model = marking(llama())
    prompts = ["<touch> w3 w4", "w3 <touch> w4", "w3 w4 <touch>", "w3 w4"] * 10
    batches = [model.processor(text, touch=SAMPLE if "<" in text else None) for text in prompts]

    def serve(batch: Any) -> Tensor:
        found: Tensor = model.generate(**batch, max_new_tokens=3, use_cache=False)
        return found

    expected = [serve(batch) for batch in batches]
    assert len({tuple(row.flatten().tolist()) for row in expected}) == 4
    with ThreadPoolExecutor(8) as pool:
        assert all(map(torch.equal, pool.map(serve, batches), expected))


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_its_own_markers(way: str) -> None:
    """A copy answers as the original does, and detaching it leaves the original whole."""
    model = marking(llama(), inline=True)
    other = COPIES[way](model)
    batch = batch_of(model, [SAMPLE] * 3, TEXTS)
    expected = forward(model, batch)
    assert all_same(forward(other, batch), expected)
    assert installed_hooks(other.detach()) == []
    assert all_same(forward(model, batch), expected)
