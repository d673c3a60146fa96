"""L1: the base is never changed."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from safe_framework.core.base_model import installed_hooks
from safe_framework.utils.hashing import fingerprint, tokenizer_fingerprint
from tests.support.toys import BASES, attached, felt, llama, lora, texts, tokenizer


@attrs.frozen
class Picture:
    """Everything of a base that must stay."""

    weights: str
    modules: tuple[tuple[str, type], ...]
    config: str
    generation: str
    words: str
    padding: tuple[Any, ...]


def picture(base: nn.Module, words: Any) -> Picture:
    """What ``base`` and its tokenizer are now."""
    return Picture(
        weights=fingerprint(base),
        modules=tuple((name, type(module)) for name, module in base.named_modules()),
        config=str(base.config.to_dict()),
        generation=str(base.generation_config.to_dict()),
        words=tokenizer_fingerprint(words),
        padding=(words.padding_side, words.pad_token, len(words)),
    )


def train_step(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """One step of Adam with weight decay on everything that is trainable."""
    parameters = model.trainable_parameters().values()
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    labels = batch.get("decoder_input_ids", batch["input_ids"])
    loss = model.train()(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    model.eval()
    return float(loss.detach())


@pytest.mark.parametrize("name", BASES)
def test_a_whole_life_leaves_the_base_as_it_was(name: str) -> None:
    """L1: attach, train, generate and detach change no weight, module, config or word."""
    base, words = BASES[name](), tokenizer()
    before = picture(base, words)
    model = attached(base, tokenizer=words)
    assert picture(base, words) == before
    batch = texts(base, 2, 4) | felt(2)
    for _ in range(3):
        train_step(model, batch)
    assert picture(base, words) == before
    prompt = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    model.generate(**prompt, max_new_tokens=3)
    assert picture(base, words) == before
    assert model.detach() is base
    assert picture(base, words) == before
    assert installed_hooks(base) == []


def test_the_picture_sees_one_flipped_sign_bit() -> None:
    """A fingerprint distinguishes 0.0 from -0.0, so that "unchanged" means every bit."""
    base = llama()
    base.model.norm.weight.data[0] = 0.0
    before = fingerprint(base)
    base.model.norm.weight.data[0] = -0.0
    assert fingerprint(base) != before


def test_attaching_installs_only_inert_hooks() -> None:
    """While attached, the base carries one hook for each fused layer and nothing else."""
    base = llama()
    model = attached(base, "touch", "smell")
    assert sorted(hook.layer for hook in installed_hooks(base)) == [0, 1]
    model.remove_modality("touch")
    assert [hook.layer for hook in installed_hooks(base)] == [1]


def test_training_moves_the_adapter_and_gives_the_base_no_gradient() -> None:
    """Every trainable parameter gets a gradient, none of the base's does."""
    base = llama()
    model = attached(base)
    train_step(model, texts(base, 2, 4) | felt(2))
    assert all(p.grad is not None for p in model.trainable_parameters().values())
    assert all(p.grad is None and not p.requires_grad for p in base.parameters())


def test_train_keeps_the_base_in_evaluation_mode() -> None:
    """``train()`` switches the new parts alone; the base's dropout never runs."""
    base = llama(attention_dropout=0.5)
    model = attached(base).train()
    assert not any(module.training for module in base.modules())
    assert model.modality("touch").projector.training
    assert not model.modality("touch").encoder.training


def test_copied_projections_share_no_memory_with_the_base() -> None:
    """Training or overwriting an adapter that starts from the base's attention leaves it be."""
    base = llama()
    before = fingerprint(base)
    model = attached(base)
    adapter = lora(model)
    for parameter in adapter.parameters():
        parameter.data.fill_(3)
    assert fingerprint(base) == before


def test_the_tokenizer_is_copied_before_it_is_padded() -> None:
    """A batch made by the processor changes nothing in the base's own tokenizer."""
    base, words = llama(), tokenizer(eos_token="end", unk_token="unknown")
    before = copy.deepcopy(words.__dict__["_special_tokens_map"])
    attached(base, tokenizer=words).processor(["w3 w4", "w5"], touch=[torch.ones(2, 4), None])
    assert words.pad_token is None
    assert words.__dict__["_special_tokens_map"] == before
