"""An adapter on a base that is not bit for bit the one that it was made for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from safe_framework.core.adapter import CARD, CONFIG
from safe_framework.core.base_identity import recorded_weights, same_weights
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError
from safe_framework.utils.hashing import content_fingerprints, fingerprint
from safe_framework.verification.certificate import Certificate, summary
from safe_framework.verification.verify import verify
from tests.support.toys import ToyEncoder, ToyProjector, llama, lora, tokenizer


def with_modality(base: Any = None, words: Any = None) -> SafeModel:
    """A base with a LoRA modality."""
    model = SafeModel(llama() if base is None else base, tokenizer() if words is None else words)
    torch.manual_seed(0)
    model.add_modality("touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=lora(model))
    return model


def saved(tmp_path: Path, base: Any = None, words: Any = None) -> Path:
    """An adapter that was saved on a base."""
    return with_modality(base, words).save_pretrained(tmp_path / "adapter", without_recipe=True)


def told_on_loading(model: SafeModel, folder: Path, **options: Any) -> str:
    """What is said while an adapter is loaded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_tensors(model, folder, **options)
    return "\n".join(str(one.message) for one in caught)


TYPES = [
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("float64", "float32"),
    ("float32", "float64"),
]


@pytest.mark.parametrize(("then", "now"), TYPES)
def test_the_same_weights_in_another_type_are_the_same_base(
    tmp_path: Path, then: str, now: str
) -> None:
    """Law: weights that were rounded or widened are known again, and the note names both types."""
    folder = saved(tmp_path, llama().to(getattr(torch, then)))
    base = llama().to(getattr(torch, then)).to(getattr(torch, now))
    told = told_on_loading(with_modality(base), folder)
    assert f"its weights are {now} and were {then}" in told


@pytest.mark.parametrize(("then", "now"), TYPES)
def test_other_weights_in_another_type_are_refused(tmp_path: Path, then: str, now: str) -> None:
    """Law: a weight that differs by more than rounding is another base, in whatever type."""
    folder = saved(tmp_path, llama().to(getattr(torch, then)))
    base = llama().to(getattr(torch, now))
    base.model.norm.weight.data[0] *= 1.1
    found = rf"weights \({now} here, {then} there\) differ\nhint: .*`allow_other_base=True`"
    with pytest.raises(AdapterError, match=found):
        load_tensors(with_modality(base), folder)


def test_rounding_excuses_nothing_in_the_same_type(tmp_path: Path) -> None:
    """Law: weights of the same type are compared bit for bit."""
    folder = saved(tmp_path)
    base = llama()
    base.model.norm.weight.data[0] += 1e-6  # less than bfloat16 can tell
    with pytest.raises(AdapterError, match="weights differ"):
        load_tensors(with_modality(base), folder)


def _pads_with_end(words: Any) -> None:
    words.pad_token = words.eos_token


def _new_pad(words: Any) -> None:
    words.add_special_tokens({"pad_token": "[PAD]"})


def _no_pad(words: Any) -> None:
    words.pad_token = None


PADS = [_pads_with_end, _new_pad, _no_pad]


@pytest.mark.parametrize("change", PADS)
@pytest.mark.parametrize("first", [True, False])
def test_another_pad_token_is_no_other_base(
    tmp_path: Path, change: Callable[[Any], None], first: bool
) -> None:
    """Law: what a tokenizer pads with changes no text's tokens; given before or after saving."""
    other, own = tokenizer(), tokenizer()
    change(other)
    folder = saved(tmp_path, words=other if first else own)
    told = told_on_loading(with_modality(words=own if first else other), folder)
    assert "another pad token" in told


def _more_words(words: Any) -> None:
    words.add_tokens(["new"])


def _other_end(words: Any) -> None:
    words.eos_token = words.convert_ids_to_tokens(5)


@pytest.mark.parametrize("change", [_more_words, _other_end])
def test_other_words_are_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    """Law: a word more, or another end of text, is another tokenizer."""
    other = tokenizer()
    change(other)
    with pytest.raises(AdapterError, match="tokenizer differ"):
        load_tensors(with_modality(words=other), saved(tmp_path))


def test_rows_behind_the_vocabulary_change_nothing(tmp_path: Path) -> None:
    """Law: a table that was made longer for a pad token is the same base; one with others is not.

    So it is with a type of its own at the same time.
    """
    folder = saved(tmp_path)
    longer, words = llama(), tokenizer()
    before = longer.config.vocab_size
    _new_pad(words)
    longer.resize_token_embeddings(before + 1, mean_resizing=False)
    told = told_on_loading(with_modality(longer.to(torch.bfloat16), words), folder)
    assert f"its vocabulary has {before + 1} rows and had {before}" in told
    longer.model.embed_tokens.weight.data[0] += 1
    with pytest.raises(AdapterError, match=r"weights .*differ"):
        load_tensors(with_modality(longer, words), folder)


def test_modules_of_other_names_hold_the_same_weights() -> None:
    """Law: names do not count where numbers and shapes are the same; shared ones count once."""
    torch.manual_seed(0)
    first = nn.ModuleDict({"model": nn.Linear(4, 8), "head": nn.Linear(8, 4)})
    renamed = nn.ModuleDict({"language_model": nn.ModuleDict(dict(first.items()))})
    renamed["tied"] = first["head"]
    recorded = recorded_weights(first, fingerprint(first))
    assert same_weights(recorded, renamed) == ["its modules have other names"]
    other = nn.ModuleDict({"model": nn.Linear(4, 8), "head": nn.Linear(8, 4)})
    assert same_weights(recorded, other) is None
    types = [torch.float32]
    assert content_fingerprints(first, types) == content_fingerprints(renamed, types)


def test_an_allowed_base_is_recorded(tmp_path: Path) -> None:
    """Law: what was allowed is said on loading, in the certificate, and in what is saved next."""
    folder = saved(tmp_path)
    base = llama()
    base.model.norm.weight.data[0] += 1
    model = with_modality(base)
    differing = "weights differ, by `allow_other_base`"
    assert differing in told_on_loading(model, folder, allow_other_base=True)
    certificate = verify(model, calls="quick")
    assert certificate.holds
    assert certificate.accepted == (differing,)
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert any(differing in str(part) for part in summary(certificate).renderables)
    again = model.save_pretrained(tmp_path / "again", without_recipe=True)
    assert differing in (again / CARD).read_text("utf-8")
    assert json.loads((again / CONFIG).read_text("utf-8"))["accepted"] == [differing]
    third = with_modality(base)
    assert told_on_loading(third, again) == ""  # it was made for this base now
    assert third.base_snapshot.accepted == (differing,)


def test_what_is_equal_is_not_recorded(tmp_path: Path) -> None:
    """Law: on its own base an adapter loads without a word, and its config says no more."""
    folder = saved(tmp_path)
    assert told_on_loading(with_modality(), folder) == ""
    assert "accepted" not in json.loads((folder / CONFIG).read_text("utf-8"))
