"""The head that decides whether a call is about a sample: its numbers, and its place on disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_framework.core.adapter import CONFIG
from safe_framework.core.build import load
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_states import PromptEnd, PromptStates
from safe_framework.core.relevance import RelevanceHead, relevance_samples, relevance_states
from safe_framework.errors import AdapterError, SafeError
from safe_framework.utils.tensors import bitwise_equal
from tests.support.relevance import random_head
from tests.support.toys import DIM, HIDDEN, LAYERS, attached, bart, felt, gpt2, llama, texts


def test_a_score_is_what_attention_takes_of_each_position() -> None:
    """Law: of the positions that were read alone, in float32 whatever the base computes in."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 3, HIDDEN, generator=generator)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.bool)
    head, samples = random_head(sample=3), torch.randn(4, 3, generator=generator)
    mean, scale = head.mean.double(), head.scale.double()
    expected = []
    for row in range(4):
        one = (states[row][mask[row]].double() - mean[:HIDDEN]) / scale[:HIDDEN]
        share = (one @ head.queries.double().T).softmax(0)  # (positions, queries)
        heard = (samples[row].double() - mean[HIDDEN:]) / scale[HIDDEN:]
        taken = (share * (one @ head.weight.double().T)).sum()
        expected.append(taken + heard @ head.sample_weight.double() + head.bias.double())
    found = head(PromptEnd(states, mask), samples)
    torch.testing.assert_close(found, torch.stack(expected).float(), rtol=1e-4, atol=1e-4)
    assert head(PromptEnd(states.bfloat16(), mask), samples).dtype == torch.float32
    assert head.opens(torch.tensor([float("nan"), 1e9])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": [0.0]}, "a scale of 0 or below"),
        ({"weight": [[float("inf")]]}, "not finite"),
        ({"weight": [[1.0, 2.0]]}, "features"),
        ({"queries": [[1.0], [2.0]]}, "features"),
        ({"mean": [0.0, 0.0], "scale": [1.0, 1.0]}, "features"),
        ({"columns": 0}, "0 columns"),
    ],
)
def test_what_is_no_head_is_refused(changes: dict[str, Any], said: str) -> None:
    """Law: a head of impossible numbers says so when it is made."""
    arrays = {"mean": [0.0], "scale": [1.0], "queries": [[1.0]], "weight": [[1.0]], "bias": 0.0}
    with pytest.raises(SafeError, match=said):
        RelevanceHead(**(arrays | changes), layer=0)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_state_is_the_bases_at_the_end_of_the_prompt(make: Any, layer: int) -> None:
    """Law: what is read is the base's own output there, padded or before labels."""
    model = attached(make(), attend="answer")
    batch = texts(model.base, 3, 5)
    batch["attention_mask"][1, 3:] = 0
    labels = batch["input_ids"].clone()
    labels[2, :3] = -100
    seen: list[Tensor] = []
    hook = model.stack.of(model.base)[layer].register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model.base(**batch)
    hook.remove()
    found = relevance_states(model, {**batch, **felt(3)}, layer, columns=4)
    assert bitwise_equal(found.last, seen[0][torch.arange(3), torch.tensor([4, 2, 4])])
    assert found.mask.tolist() == [[True] * 4, [False, True, True, True], [True] * 4]
    assert bitwise_equal(found.states[0], seen[0][0, 1:])
    assert bitwise_equal(found.states[1, 1:], seen[0][1, :3])
    labelled = relevance_states(model, {**batch, "labels": labels}, layer)
    assert bitwise_equal(labelled.last[2], seen[0][2, 2])


@pytest.mark.parametrize("padded", [False, True])
def test_states_read_in_chunks_are_those_of_the_prompt(padded: bool) -> None:
    """Law: it is the prompt's last positions that are read, however the base is given it."""
    model = attached(llama(), attend="answer")
    batch = texts(model.base, 2, 7)
    if padded:
        batch["attention_mask"][1, :4] = 0
    ends, real = torch.tensor([6, 6]), batch["attention_mask"].bool()
    hidden = torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(0))
    seen = []
    for cuts in ([0, 7], [0, 2, 5, 7], [0, 6, 7]):
        states = PromptStates(ends, 7, model.stack, {1}, columns=5, real=real)
        done = [states.take(1, hidden[:, a:b]) for a, b in itertools.pairwise(cuts)]
        assert done == [False] * (len(cuts) - 2) + [True]
        seen.append(states.end(1))
    for one in seen:
        assert bitwise_equal(one.states, hidden[:, 2:])
        assert one.mask.tolist() == [[True] * 5, [not padded] * 2 + [True] * 3]
    behind = PromptStates(ends, 7, model.stack, {1}, columns=5, cached=4, real=real)
    assert behind.take(1, hidden[:, 4:])
    assert behind.end(1).mask.tolist() == [[False, False, True, True, True]] * 2


def test_beside_an_encoder_the_first_word_of_the_decoder_decides() -> None:
    """Law: the prompt is the encoder's; the position read chooses the answer's first token."""
    model = attached(bart(), attend="answer")
    batch = texts(model.base, 2, 5)
    found = relevance_states(model, batch, LAYERS - 1)
    with torch.no_grad():
        out = model.base(**batch, output_hidden_states=True)
    assert bitwise_equal(found.last, out.decoder_hidden_states[-1][:, 0])


def test_the_pooled_sample_is_the_mean_of_its_valid_frames() -> None:
    """Law: of all samples of a row, padding left out; zeros without one."""
    model = attached(llama(), attend="answer")
    batch = felt(2, present=[True, False])
    found = relevance_samples(model, "touch", batch)
    frames = model.modality("touch").encode(
        {"values": batch["touch__values"][:1], "mask": batch["touch__mask"][:1]}
    )
    expected = frames.values[0][frames.mask[0]].mean(0)
    torch.testing.assert_close(found, torch.stack([expected, torch.zeros(DIM)]))


def with_head(head: RelevanceHead | None, gate: Any = 1.0) -> SafeModel:
    """A toy with a head."""
    model = attached(llama(), attend="answer")
    model.set_relevance("touch", head)
    model.set_gate(gate)
    return model


def test_it_is_saved_and_loaded_with_the_adapter(tmp_path: Path) -> None:
    """Law: tensors, settings, statement and the gate come back; another model's head goes."""
    statement = {"risk": 0.01, "kinds": {"silence": [0, 300]}}
    head = random_head(threshold=0.25, statement=statement)
    model = with_head(head, "auto")
    model.save_pretrained(tmp_path / "one", without_recipe=True)
    loaded = load(tmp_path / "one", model=with_head(None))
    found = loaded.modality("touch").relevance
    assert found is not None
    assert found.settings() == head.settings()
    assert all(
        bitwise_equal(one, head.state_dict()[key]) for key, one in found.state_dict().items()
    )
    assert loaded.gates == {"touch": "auto"}
    with_head(None).save_pretrained(tmp_path / "none", without_recipe=True)
    assert "relevance" not in (tmp_path / "none" / CONFIG).read_text()
    assert load(tmp_path / "none", model=loaded).modality("touch").relevance is None


def test_a_broken_head_on_disk_is_named(tmp_path: Path) -> None:
    """Law: settings of other types or of another base, and tensors without any, are refused."""
    with_head(random_head(), "auto").save_pretrained(tmp_path, without_recipe=True)
    config = json.loads((tmp_path / CONFIG).read_text())
    touch = config["modalities"]["touch"]
    for relevance, said in (
        ({**touch["relevance"], "layer": "2"}, "in other types"),
        ({**touch["relevance"], "layer": 7}, "reads layer 7"),
        (None, "does not say"),
    ):
        changed = {"modalities": {"touch": {**touch, "relevance": relevance}}}
        (tmp_path / CONFIG).write_text(json.dumps(config | changed))
        with pytest.raises(SafeError, match=said):
            load(tmp_path, model=with_head(None))
    gateless = {key: value for key, value in touch.items() if key != "relevance"}
    (tmp_path / CONFIG).write_text(json.dumps(config | {"modalities": {"touch": gateless}}))
    with pytest.raises(AdapterError, match=r"touch\.relevance\.bias.* differ"):
        load(tmp_path, model=with_head(None))


def test_auto_may_wait_for_its_head_on_disk(tmp_path: Path) -> None:
    """Law: a recipe's `auto` is kept before a head is fitted; only a call cannot decide."""
    model = attached(llama(), attend="answer")
    model.modality("touch").gate = "auto"
    model.save_pretrained(tmp_path, without_recipe=True)
    loaded = load(tmp_path, model=attached(llama(), attend="answer"))
    assert loaded.gates == {"touch": "auto"}
    batch = {**texts(loaded.base, 1, 4), **felt(1)}
    loaded.train()(**batch)
    with pytest.raises(SafeError, match="has no relevance head"):
        loaded.eval()(**batch)


def test_it_is_never_trained_nor_cast() -> None:
    """Law: no parameter of it reaches an optimizer, and its numbers keep float32."""
    model = with_head(random_head())
    assert not any("relevance" in name for name in model.trainable_parameters())
    model.modalities.bfloat16()
    head = model.modality("touch").relevance
    assert head is not None
    assert {tensor.dtype for tensor in head.buffers()} == {torch.float32}


def test_auto_needs_a_head() -> None:
    """L7: nothing decides without one, and the message says what makes one."""
    with pytest.raises(SafeError, match="has no relevance head") as caught:
        attached(llama(), attend="answer").set_gate("auto")
    assert "safe calibrate" in str(caught.value)
    with pytest.raises(SafeError, match="reads 5 features"):
        with_head(RelevanceHead([0.0] * 5, [1.0] * 5, [[0.0] * 5], [[0.0] * 5], 0.0, layer=0))
