"""Decoding with a modality on: a cache, beams and batches change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safe_framework.core.model import SafeModel
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import (
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    felt,
    gpt2,
    llama,
    lora,
    t5,
    texts,
)

KINDS = {"greedy": {}, "beams": {"num_beams": 3}}


def with_lora(base: Any, *, trained: bool = True) -> SafeModel:
    """A base with a LoRA modality whose output has been moved away from zero."""
    model = SafeModel(base)
    model.add_modality(
        "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=lora(model, rank=4)
    )
    if trained:
        torch.manual_seed(4)
        for parameter in model.modality("touch").fusion.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
    return model


def answer(model: SafeModel, batch: Any, **options: Any) -> torch.Tensor:
    """Eight new tokens for each row."""
    return model.generate(**batch, **options, max_new_tokens=8, min_new_tokens=8)


def prompt(model: SafeModel, rows: int = 2) -> dict[str, torch.Tensor]:
    """Texts with a sample for each."""
    batch = texts(model.base, rows, 4) | felt(rows)
    return {key: value for key, value in batch.items() if key != "decoder_input_ids"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [llama, gpt2, t5])
def test_cached_and_uncached_decoding_agree(base: Any, kind: str) -> None:
    """The same tokens come with a key-value cache and without, the modality being on."""
    model = with_lora(base())
    cached = answer(model, prompt(model), **KINDS[kind])
    assert torch.equal(cached, answer(model, prompt(model), **KINDS[kind], use_cache=False))


@pytest.mark.parametrize("base", [llama, gpt2, t5])
def test_the_modality_is_active_while_decoding(base: Any) -> None:
    """The agreement above can fail: the tokens differ from those without the modality."""
    model = with_lora(base())
    on = answer(model, prompt(model))
    with model.off():
        assert not torch.equal(on, answer(model, prompt(model)))


def test_a_step_of_cached_decoding_is_a_step_of_the_whole() -> None:
    """Logits of a token given its cache are those of the whole text, to rounding."""
    model = with_lora(llama())
    batch = prompt(model)
    samples = {key: value for key, value in batch.items() if key.startswith("touch")}
    ids = batch["input_ids"]
    whole = model(input_ids=ids, **samples).logits
    first = model(input_ids=ids[:, :3], **samples, use_cache=True)
    last = model(input_ids=ids[:, 3:], **samples, past_key_values=first.past_key_values).logits
    assert_same_sums(last[:, 0], whole[:, 3], FORWARD)


def test_tokens_and_memory_are_made_once_for_a_generation() -> None:
    """Encoder, projector and ``remember`` run once, however many tokens and beams follow."""
    model = SafeModel(llama())
    fusion = _Counting()
    model.add_modality("touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=fusion)
    calls: list[str] = []
    modality = model.modality("touch")
    modality.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    modality.projector.register_forward_hook(lambda *_: calls.append("projector"))
    answer(model, prompt(model), num_beams=2)
    assert calls == ["encoder", "projector"]
    assert fusion.remembered == 1


class _Counting(ToyFusion):
    remembered = 0

    def remember(self, tokens: Any) -> Any:
        self.remembered += 1
        return super().remember(tokens)


def test_a_row_of_a_batch_answers_as_it_does_alone() -> None:
    """Greedy tokens of a row are those of a batch that holds only that row."""
    model = with_lora(llama())
    batch = prompt(model, rows=3)
    together = answer(model, batch)
    for row in range(3):
        alone = answer(model, {key: value[row : row + 1] for key, value in batch.items()})
        assert torch.equal(together[row], alone[0])


def test_bfloat16_bases_take_float32_adapters() -> None:
    """The adapter keeps its precision; logits and their gradient keep the base's dtype."""
    model = with_lora(llama().bfloat16())
    out = model(**prompt(model), labels=prompt(model)["input_ids"])
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    parameters = model.trainable_parameters().values()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in parameters)
