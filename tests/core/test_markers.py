"""Markers in the text: what the base looks up, what it returns, what is learned and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import safe_framework
from safe_framework.config.diagnostics import RecipeError
from safe_framework.core.base_model import installed_hooks
from safe_framework.core.build import load_tensors
from safe_framework.core.markers.embeddings import embeddings_of
from safe_framework.core.model import SafeModel
from safe_framework.errors import InjectionError, SafeError, SampleError, UnsupportedBaseError
from safe_framework.utils.tensors import bitwise_equal
from tests.support.marked import SAMPLE, TOKENS, ThreeTokens, batch_of, marking
from tests.support.toys import (
    HIDDEN,
    VOCABULARY,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    bart,
    gpt2,
    llama,
    t5,
    tokenizer,
)

START, CLOSE, INSIDE = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2
FILLER = VOCABULARY // 3


def looked_up(model: SafeModel) -> list[tuple[Tensor, Tensor]]:
    """A list that gets the ids and the vectors of each look-up."""
    seen: list[tuple[Tensor, Tensor]] = []
    for module in embeddings_of(model.base):
        module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    return seen


def table(model: SafeModel, name: str = "touch") -> Tensor:
    """A modality's two vectors."""
    markers = model.modality(name).markers
    assert markers is not None
    return markers.table.detach()


# What the base looks up


def test_the_base_sees_ordinary_words_and_gets_the_table() -> None:
    """A marker's id becomes one ordinary word, and its vector the table's; other rows stay."""
    model = marking(llama())
    batch, seen = batch_of(model, padding_side="right"), looked_up(model)
    assert batch["input_ids"].tolist() == [
        [3, START, CLOSE, 4, 5], [6, 0, 0, 0, 0], [START, CLOSE, 7, 8, 0]
    ]  # fmt: skip
    model(**batch)
    ((ids, vectors),) = seen
    assert ids.tolist() == [[3, FILLER, FILLER, 4, 5], [6, 0, 0, 0, 0], [FILLER, FILLER, 7, 8, 0]]
    expected = model.base.model.embed_tokens.weight[ids].detach()
    expected[0, 1:3] = expected[2, 0:2] = table(model)
    assert bitwise_equal(vectors, expected)


def test_inline_tokens_stand_between_the_markers() -> None:
    """The vectors inside are each row's own projected tokens, at the size of the base's words."""
    model = marking(llama(), inline=True)
    batch = model.processor(["w3", "w4"], touch=[SAMPLE, -SAMPLE])
    assert batch["input_ids"][0].tolist() == [START, *[INSIDE] * TOKENS, CLOSE, 3]
    seen = looked_up(model)
    model(**batch)
    modality, words = model.modality("touch"), model.base.model.embed_tokens.weight
    inputs = {key.removeprefix("touch__"): value for key, value in batch.items() if "__" in key}
    del inputs["present"]
    tokens = modality.projector(modality.encode(inputs)).values
    sizes = (tokens / seen[0][1][:, 1 : 1 + TOKENS]).flatten()
    torch.testing.assert_close(sizes, sizes[:1].expand_as(sizes))
    torch.testing.assert_close(1 / sizes[0], words[3:].square().mean().sqrt(), atol=0.1, rtol=0.1)


def test_masked_tokens_are_hidden() -> None:
    """A token that the projector masks is masked for the base's attention too."""
    model = marking(llama(), inline=True)
    batch, seen = model.processor(["w3", "w4"], touch=[SAMPLE, SAMPLE]), []
    batch["touch__mask"][1, -1] = False
    model.base.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    model(**batch)
    del batch["attention_mask"]
    model(**batch)
    for call in seen:
        assert call["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 1, 1]]


def test_a_positional_text_is_marked_too() -> None:
    """Positional arguments of the base mean what its signature says."""
    model = marking(llama())
    batch = dict(batch_of(model))
    named = model(**batch).logits
    ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    assert bitwise_equal(model(ids, mask, **batch).logits, named)


def test_labels_at_markers_are_ignored() -> None:
    """The loss is that of the words alone."""
    model = marking(llama())
    batch = batch_of(model)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = ids.masked_fill((mask == 0) | (ids >= VOCABULARY), -100)
    own = model(**batch, labels=ids.masked_fill(mask == 0, -100)).loss
    assert bitwise_equal(own, model(**batch, labels=labels).loss)


@pytest.mark.parametrize("base", [t5, bart])
def test_a_decoder_that_shares_the_table_is_left_alone(base: Callable[[], nn.Module]) -> None:
    """Only the encoder's text is marked, even where the decoder is given the same words."""
    model = marking(base())
    batch, seen = batch_of(model), looked_up(model)
    fed = batch["input_ids"].where(batch["input_ids"] < VOCABULARY, FILLER)
    model(**batch, decoder_input_ids=fed)
    words = [embedded for module, (ids, embedded) in zip("ed", seen, strict=True) if module == "d"]
    assert [ids.tolist() for ids, _ in seen] == [fed.tolist()] * 2
    assert bitwise_equal(words[0], embeddings_of(model.base)[-1](fed))
    assert not torch.equal(seen[0][1], seen[1][1])


def test_a_row_is_fused_through_its_markers_alone() -> None:
    """The same sample elsewhere in a text is another input; without fusion it is used inline."""
    model = marking(llama(), inline=True, silent=True)
    first, second = (model.processor("w3 w4", touch=sample) for sample in (SAMPLE, 2 * SAMPLE))
    assert not torch.allclose(model(**first).logits, model(**second).logits)


# What is learned and kept


def test_the_table_begins_as_the_mean_word() -> None:
    """Both markers start as the mean of what the embedding gives for ordinary words."""
    model = SafeModel(llama(), tokenizer())
    add(model, markers=True)
    words = [n for n in range(VOCABULARY) if n not in (0, 1)]
    mean = model.base.model.embed_tokens.weight[words].mean(0)
    torch.testing.assert_close(table(model), mean.expand(2, -1))


@pytest.mark.parametrize("base", [llama, gpt2, t5, bart])
def test_the_table_and_inline_tokens_get_gradients(base: Callable[[], nn.Module]) -> None:
    """The loss reaches the table and, through the text alone, the projector."""
    model = marking(base(), inline=True, silent=True)
    batch = dict(batch_of(model))
    labels = batch["input_ids"] if base in (llama, gpt2) else torch.tensor([[3, 4]] * 3)
    model(**batch, labels=labels).loss.backward()
    modality = model.modality("touch")
    assert modality.markers is not None
    for parameter in (modality.markers.table, modality.projector.linear.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.base.parameters())


def test_an_adapter_carries_its_markers(tmp_path: Path) -> None:
    """Saved and loaded, outputs are the same bits; an adapter without markers does not fit."""
    model, other = marking(llama(), inline=True), marking(llama(), inline=True)
    torch.nn.init.normal_(table(model))
    batch = batch_of(model)
    assert not torch.equal(other(**batch).logits, model(**batch).logits)
    load_tensors(other, model.save_pretrained(tmp_path / "adapter", without_recipe=True))
    assert bitwise_equal(other(**batch).logits, model(**batch).logits)
    plain = SafeModel(llama(), tokenizer())
    torch.manual_seed(0)
    add(plain)
    with pytest.raises(SafeError, match=r"touch\.markers\.table"):
        load_tensors(plain, tmp_path / "adapter")


def test_low_precision_bases_take_them() -> None:
    """The table stays in float32, the base gets its own type."""
    model = marking(llama().bfloat16(), inline=True)
    assert table(model).dtype == torch.float32
    assert model(**batch_of(model)).logits.dtype == torch.bfloat16


# Ids, hooks, and what is refused


def add(model: SafeModel, name: str = "touch", **options: Any) -> None:
    """A fresh modality."""
    model.add_modality(
        name, encoder=ToyEncoder(), projector=ThreeTokens(), fusion=ToyFusion(), **options
    )


def test_ids_of_modalities_are_apart() -> None:
    """Each gets three ids of its own; those of a removed one are free again."""
    model = SafeModel(llama(), tokenizer())
    for name in ("touch", "smell"):
        add(model, name, markers=True)
    batch = model.processor("<smell> w3 <touch>", touch=SAMPLE, smell=SAMPLE)
    assert batch["input_ids"].tolist() == [[43, 44, 3, 40, 41]]
    model.remove_modality("touch")
    add(model, "sight", markers=True)
    assert model.processor("w3", sight=SAMPLE)["input_ids"].tolist() == [[40, 41, 3]]


def test_ids_lie_behind_all_that_a_base_names() -> None:
    """An id that the config names behind the vocabulary, as some do for images, is not taken."""
    unset = {"pad_token_id": None, "eos_token_id": None}
    for named, first in (({}, VOCABULARY), ({"image_token_id": 45}, 46)):
        model = SafeModel(llama(**unset, **named), tokenizer())
        add(model, markers=True)
        assert model.processor("w3", touch=SAMPLE)["input_ids"][0, 0] == first


def test_markers_are_off_by_default() -> None:
    """A modality without them leaves the text alone, and no embedding is hooked."""
    model = SafeModel(llama(), tokenizer())
    add(model)
    assert model.processor("w3 w4", touch=SAMPLE)["input_ids"].tolist() == [[3, 4]]
    assert len(installed_hooks(model.base)) == 2
    add(model, "smell", markers=True)
    assert len(installed_hooks(model.base)) == 5
    model.remove_modality("smell")
    assert len(installed_hooks(model.base)) == 2


def test_an_id_of_no_one_is_refused() -> None:
    """An id behind the vocabulary that no modality has is an error and not a neighbour's row."""
    model = marking(llama())
    with pytest.raises(SampleError, match=r"ids \[42, 99\].*\nhint: "):
        model(input_ids=torch.tensor([[3, START, 99, INSIDE]]))


def test_another_number_of_tokens_is_refused() -> None:
    """The text must have room for exactly the tokens that the projector gives."""
    model = marking(llama(), inline=True)
    batch = dict(model.processor("w3", touch=SAMPLE[:2]))
    with pytest.raises(SampleError, match="room for 3 tokens of `touch`, its projector gives 2"):
        model(**batch)


def test_a_base_that_looks_nothing_up_is_refused() -> None:
    """Where the words never reach the hooked embedding, the call raises."""
    model = marking(llama())
    other = nn.Embedding.from_pretrained(model.base.model.embed_tokens.weight.clone())
    model.base.model.embed_tokens = other
    with pytest.raises(InjectionError, match="markers of `touch` never reached the base"):
        model(**batch_of(model))


def test_a_base_without_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the base does not name its input embeddings, markers are refused when asked for."""
    base = llama()

    def unnamed(self: object) -> nn.Module:
        raise NotImplementedError

    monkeypatch.setattr(type(base), "get_input_embeddings", unnamed)
    model = SafeModel(base, tokenizer())
    with pytest.raises(UnsupportedBaseError, match=r"does not name its input embeddings.*\nhint:"):
        add(model, markers=True)
    add(model)


def test_positions_that_would_move_are_refused() -> None:
    """Logits at named positions are not silently those of other words."""
    model = marking(llama())
    kept = torch.tensor([3])
    model(**batch_of(model), logits_to_keep=kept)
    with pytest.raises(SafeError, match=r"`logits_to_keep` names positions"):
        model(**batch_of(model), logits_to_keep=kept, gate=0.0)


def test_inline_needs_a_fixed_number_of_tokens() -> None:
    """A projector that does not say how many tokens it gives cannot stand in the text."""
    model = SafeModel(llama(), tokenizer())
    with pytest.raises(SafeError, match=r"`inline` needs .*`ToyProjector` gives\nhint: "):
        model.add_modality(
            "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion(), inline=True
        )
    assert installed_hooks(model.base) == []


def test_inline_needs_words_of_the_hidden_size() -> None:
    """Where a base widens its words, markers serve and tokens are refused."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, ffn_dim=24,
        num_attention_heads=2, word_embed_proj_dim=8, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    model = SafeModel(OPTForCausalLM(config), tokenizer())
    with pytest.raises(UnsupportedBaseError, match="of width 16 among words of width 8"):
        add(model, inline=True)
    add(model, markers=True)
    assert table(model).shape == (2, 8)
    model(**batch_of(model))


# Recipes


@pytest.mark.parametrize(("key", "inside"), [("markers", 0), ("inline", 2)])
def test_a_recipe_asks_for_them(recipe: Callable[..., Path], key: str, inside: int) -> None:
    """``markers`` and ``inline`` are keys of a modality; a built and a loaded model have them."""
    path = recipe()
    path.write_text(path.read_text("utf-8").replace("gate =", f"{key} = true\ngate ="), "utf-8")
    model = safe_framework.build(path)
    wave = {"audio": torch.zeros(800), "sampling_rate": 16000}
    batch = model.processor("w3 <audio> w4", **wave)
    assert batch["input_ids"].tolist() == [[3, START, *[INSIDE] * inside, CLOSE, 4]]
    torch.nn.init.normal_(table(model, "audio"))
    other = safe_framework.load(model.save_pretrained(path.parent / "adapter"))
    assert bitwise_equal(other(**batch).logits, model(**batch).logits)


def test_a_recipe_is_shown_where_inline_cannot_be(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is shown at the key."""
    from safe_framework_plugins.projectors.standard import StandardProjector

    make = StandardProjector.__init__

    def varying(projector: Any, *args: Any, **options: Any) -> None:
        make(projector, *args, **options)
        projector.tokens = None

    monkeypatch.setattr(StandardProjector, "__init__", varying)
    path = recipe()
    path.write_text(path.read_text("utf-8").replace("gate =", "inline = true\ngate ="), "utf-8")
    with pytest.raises(RecipeError, match=r"recipe\.toml:8:10: `inline` of `audio` needs to know"):
        safe_framework.build(path)
