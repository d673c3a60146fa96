"""L9: where the gate of `auto` stays closed, the row is the base's bit for bit."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, StaticCache

import safe_framework
from safe_framework.core.last_position import LastPosition
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import IGNORED
from safe_framework.utils.tensors import bitwise_equal
from safe_framework.verification.outcome import trace_call
from tests.laws.calls import MODES, copy_of
from tests.laws.test_prompt import padded
from tests.support.marked import batch_of, marking
from tests.support.relevance import deciding, head_of, open_rows, random_head
from tests.support.toys import (
    VOCABULARY,
    bart,
    felt,
    gpt2,
    llama,
    llava,
    mixtral,
    opt,
    t5,
    texts,
)

ROWS, LENGTH = 3, 6
BASES = {"llama": llama, "gpt2": gpt2, "opt": opt, "bart": bart, "t5": t5}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 4},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "uncached": {"use_cache": False},
    "states": {"output_hidden_states": True, "output_attentions": True},
}
DECODED = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def prompts(base: Any, lengths: list[int], side: str = "left") -> dict[str, Tensor]:
    """Texts to be answered, without what a decoder beside an encoder would be given."""
    return padded(base, lengths, side)


def rows_of(out: Any, row: int, rows: int) -> list[Tensor]:
    """Tokens, logits, keys and values of a row, of all of its copies."""
    found = [out.sequences, *out.logits]
    cache = getattr(out, "past_key_values", None)
    for part in (getattr(cache, name, cache) for name in ("self_attention_cache",)):
        for layer in getattr(part, "layers", ()):
            found += [layer.keys, layer.values]
    each = [one.unflatten(0, (rows, -1))[row] for one in found if one is not None]
    assert len(each) > 1
    return each


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether all are bit for bit the same."""
    return all(bitwise_equal(*pair) for pair in zip(first, second, strict=True))


@given(
    lengths=st.lists(st.integers(2, LENGTH), min_size=1, max_size=ROWS),
    base=st.sampled_from(list(BASES)),
    way=st.sampled_from(list(WAYS)),
    layer=st.integers(0, 1),
    pooled=st.booleans(),
    data=st.data(),
)
def test_a_closed_row_is_the_bases(
    lengths: list[int], base: str, way: str, layer: int, pooled: bool, data: st.DataObject
) -> None:
    """L9: tokens, logits, keys and values of closed rows; open ones hear, however they decode."""
    rows, whole = len(lengths), BASES[base]()
    present = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    untouched, model = copy_of(whole), deciding(whole, layer=layer)
    batch = prompts(whole, lengths)
    opened = data.draw(st.integers(0, rows))
    open_rows(model, batch, opened)
    if pooled:  # a head that reads samples too, and gives them no weight: what opens is known
        head = head_of(model)
        features = [torch.cat([one, torch.ones(4)]) for one in (head.mean, head.scale)]
        model.set_relevance(
            "touch",
            type(head)(
                *features, head.queries, head.weight, head.bias, sample_weight=torch.zeros(4),
                layer=layer, columns=head.columns, threshold=head.threshold,
            ),
        )  # fmt: skip
    samples, options = felt(rows, "touch", present), DECODED | WAYS[way]
    torch.manual_seed(3)
    heard = model.generate(**batch, **samples, **options)
    gates = model.last_gates["touch"].tolist()
    torch.manual_seed(3)
    expected = untouched.generate(**batch, **options)
    assert all(not gate or here for gate, here in zip(gates, present, strict=True))
    if all(present):
        assert sum(gates) == opened
    for row, gate in enumerate(gates):
        pair = rows_of(heard, row, rows), rows_of(expected, row, rows)
        assert same(*pair) != bool(gate)


@given(
    lengths=st.lists(st.integers(2, LENGTH), min_size=1, max_size=ROWS),
    side=st.sampled_from(["left", "right"]),
    base=st.sampled_from(["llama", "gpt2", "opt"]),
    mode=st.sampled_from(list(MODES)),
    labels=st.booleans(),
    data=st.data(),
)
def test_a_closed_row_of_one_call_is_the_bases(
    lengths: list[int], side: str, base: str, mode: str, labels: bool, data: st.DataObject
) -> None:
    """L9: logits of each row of a plain call, padded on either side, with labels or without."""
    rows, whole = len(lengths), BASES[base]()
    untouched, model = copy_of(whole), deciding(whole)
    batch = padded(whole, lengths, side)
    if labels:
        wanted = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        batch["labels"] = wanted.masked_fill(torch.arange(LENGTH) < LENGTH // 2, IGNORED)
    with MODES[mode]():
        model(**batch, **felt(rows))  # where the heads see what they decide on
        opened = data.draw(st.integers(0, rows))
        scores = list[float]()
        hook = head_of(model).register_forward_hook(lambda _, __, out: scores.extend(out.tolist()))
        model(**batch, **felt(rows))
        hook.remove()
        ranked = sorted(scores, reverse=True)
        edges = [ranked[0] + 1, *map(_middle, ranked, ranked[1:]), ranked[-1] - 1]
        head_of(model).threshold = edges[opened]
        heard, expected = model(**batch, **felt(rows)), untouched(**batch)
    gates = model.last_gates["touch"]
    assert int(gates.sum()) == opened
    for row in range(rows):
        assert bitwise_equal(heard.logits[row], expected.logits[row]) != bool(gates[row])


def _middle(first: float, second: float) -> float:
    return (first + second) / 2


@pytest.mark.parametrize("base", ["llama", "gpt2", "bart", "t5"])
@pytest.mark.parametrize("alone", [True, False])
def test_open_is_as_at_gate_1(base: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: an open row hears what it hears at gate 1, whether its last position ran again or all.

    One position computed apart rounds otherwise, so that is compared in float64; a call that
    begins again is gate 1's own.
    """
    whole = BASES[base]().double()
    model, ran = deciding(whole), list[bool]()
    again = LastPosition.again

    def counted(self: LastPosition, *given: Any) -> Tensor | None:
        out = again(self, *given) if alone else None
        ran.append(out is not None)
        return out

    batch = prompts(whole, [6, 4, 5])
    open_rows(model, batch, 2)
    model.generate(**batch, **felt(3), max_new_tokens=1)  # which probes the base
    monkeypatch.setattr(LastPosition, "again", counted)
    heard = model.generate(**batch, **felt(3), **DECODED)
    gates = model.last_gates["touch"]
    forced = model.generate(**batch, **felt(3), gate=gates, **DECODED)
    assert ran == [alone]
    assert torch.equal(heard.sequences, forced.sequences)
    for one, other in zip(heard.logits, forced.logits, strict=True):
        if alone:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        else:
            assert bitwise_equal(one, other)


def test_each_sense_decides_for_itself() -> None:
    """L9: of two senses either, both or none opens on a row; a number stands beside `auto`."""
    whole = llama()
    untouched, model = copy_of(whole), deciding(whole, "touch", "smell")
    batch, samples = prompts(whole, [6, 6, 4]), felt(3) | felt(3, "smell", seed=1)
    open_rows(model, batch, 1, "touch")
    open_rows(model, batch, 2, "smell")
    expected = untouched.generate(**batch, **DECODED)

    def told(gate: Any = None) -> tuple[Any, dict[str, list[float]]]:
        out = model.generate(**batch, **samples, gate=gate, **DECODED)
        return out, {name: one.tolist() for name, one in model.last_gates.items()}

    both, gates = told()
    assert sum(gates["touch"]) == 1
    assert sum(gates["smell"]) == 2
    for row in range(3):
        closed = not (gates["touch"][row] or gates["smell"][row])
        assert same(rows_of(both, row, 3), rows_of(expected, row, 3)) == closed
    out, forced = told({"touch": 1.0, "smell": "auto"})
    assert forced == {"smell": gates["smell"]}  # decided on the base's state, not on touch's
    assert not any(same(rows_of(out, row, 3), rows_of(expected, row, 3)) for row in range(3))
    out, alone = told({"touch": "auto", "smell": 0})
    assert alone == {"touch": gates["touch"]}
    out, mixed = told({"touch": ["auto", 0.0, 1.0], "smell": 0.0})
    assert mixed["touch"] == [gates["touch"][0], 0.0, 1.0]
    assert same(rows_of(out, 1, 3), rows_of(expected, 1, 3))


def test_with_a_picture_it_is_the_bases() -> None:
    """L9: where the base has put a picture in, too."""
    whole = llava()
    untouched, model = copy_of(whole), deciding(whole)
    batch = texts(whole, 2, 5)
    open_rows(model, batch, 1)
    heard = model.generate(**batch, **felt(2), **DECODED)
    gates, expected = model.last_gates["touch"], untouched.generate(**batch, **DECODED)
    assert int(gates.sum()) == 1
    for row in range(2):
        pair = rows_of(heard, row, 2), rows_of(expected, row, 2)
        assert same(*pair) != bool(gates[row])


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_turn_decides_behind_a_kept_cache(kind: Any) -> None:
    """L9: each turn anew, behind what the cache kept, which a call that begins again puts back."""
    whole = llama()
    untouched, model = copy_of(whole), deciding(whole)
    first, later = prompts(whole, [4])["input_ids"][:, 2:], torch.tensor([[5, 6, 7]])

    def talk(called: Any, samples: dict[str, Tensor], *gates: Any) -> list[Tensor]:
        cache = kind(config=whole.config, **({"max_cache_len": 32} if kind is StaticCache else {}))
        ids, answers = first, list[Tensor]()
        for gate in gates:
            options = {} if gate is None else {**samples, "gate": gate}
            out = called.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options,
                **DECODED, do_sample=False, disable_compile=True,
            )  # fmt: skip
            answers += [out.sequences, *out.logits]
            ids = torch.cat([out.sequences, later], 1)
        return answers

    head_of(model).threshold = float("inf")
    plain = talk(untouched, {}, None, None)
    assert same(talk(model, felt(1), "auto", "auto"), plain)
    half = len(plain) // 2
    changed = talk(model, felt(1), 0.0, 1.0)
    head_of(model).threshold = float("-inf")
    found = talk(model, felt(1), 0.0, "auto")  # opened between turns
    assert same(found[:half], plain[:half])
    for one, other in zip(found[half:], changed[half:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not same(found[half:], plain[half:])


def test_markers_leave_the_text_of_closed_rows() -> None:
    """L9: the heads read the text without markers, and a closed row is answered on it."""
    whole = llama()
    untouched, model = copy_of(whole), marking(whole)
    model.set_relevance("touch", random_head(threshold=float("inf")))
    model.set_gate("auto")
    batch = batch_of(model)
    assert bool((batch["input_ids"] >= VOCABULARY).any())
    plain = model.processor(["w3 w4 w5", "w6", "w7 w8"])
    out, expected = model.generate(**batch, **DECODED), untouched.generate(**plain, **DECODED)
    assert all(same(rows_of(out, row, 3), rows_of(expected, row, 3)) for row in range(3))
    head_of(model).threshold = float("-inf")
    forced = model.generate(**batch, **DECODED, gate=1.0)
    assert same([model.generate(**batch, **DECODED).sequences], [forced.sequences])


def test_rows_of_a_base_that_mixes_them_run_apart() -> None:
    """L9: with `split_rows`, closed rows are the base's on a mixture of experts."""
    whole = mixtral()
    untouched, model = copy_of(whole), deciding(whole)
    model.split_rows = True
    batch = prompts(whole, [6, 5, 6])
    open_rows(model, batch, 1)
    heard = model.generate(**batch, **felt(3), **DECODED)
    gates, expected = model.last_gates["touch"], untouched.generate(**batch, **DECODED)
    for row in range(3):
        mine = [one[row] for one in (heard.sequences, *heard.logits)]
        theirs = [one[row] for one in (expected.sequences, *expected.logits)]
        assert same(mine, theirs) != bool(gates[row])


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf")])
def test_drafts_of_an_assistant_are_no_part_of_the_prompt(threshold: float) -> None:
    """L9: assisted by its own prompt, a call reads more than the prompt at once."""
    whole = llama()
    untouched, model = copy_of(whole), deciding(whole, threshold=threshold)
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    options = {**DECODED, "prompt_lookup_num_tokens": 2}
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    heard = model.generate(**given, **felt(1), **options)
    expected = untouched.generate(**given, **options)
    forced = model.generate(**given, **felt(1), **options, gate=1.0)
    assert same([heard.sequences, *heard.logits], [expected.sequences, *expected.logits]) == (
        threshold > 0
    )
    if threshold < 0:
        assert same([heard.sequences, *heard.logits], [forced.sequences, *forced.logits])


class _Shown:
    """A streamer that keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.shown.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.shown.append([])


@pytest.mark.parametrize("again", [True, False])
def test_a_stream_shows_its_prompt_once(again: bool) -> None:
    """Law: a call that begins again shows a streamer nothing twice."""
    model = deciding(llama(), threshold=float("-inf"))
    batch = prompts(model.base, [4])
    streams = [_Shown(), _Shown()]
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": not again}
    for stream, gate in zip(streams, ("auto", 1.0), strict=True):
        model.generate(**batch, **felt(1), gate=gate, streamer=stream, **options)
    assert streams[0].shown == streams[1].shown


def test_off_in_another_thread_is_no_matter_of_this_one() -> None:
    """L9: each thread has its own decisions, and `off()` of one closes nothing in another."""
    model = deciding(llama(), threshold=float("-inf"))
    batch, found = prompts(model.base, [4]), dict[str, Any]()
    expected = model.base.generate(**batch, **DECODED).sequences
    inside, done = threading.Event(), threading.Event()

    def off() -> None:
        with model.off():
            inside.set()
            done.wait(10)
            found["off"] = model.generate(**batch, **felt(1), **DECODED).sequences
            found["gates"] = model.last_gates

    thread = threading.Thread(target=off)
    thread.start()
    inside.wait(10)
    logits = model.generate(**batch, **felt(1), **DECODED).logits
    assert model.last_gates["touch"].tolist() == [1.0]
    done.set()
    thread.join()
    assert torch.equal(found["off"], expected)
    assert found["gates"] == {}
    assert not bitwise_equal(logits[0], model.base.generate(**batch, **DECODED).logits[0])


def test_a_compiled_base_is_called_compiled_where_nothing_opens() -> None:
    """L9: the compiled base's own bits; the heads decide beforehand."""
    whole = llama().bfloat16()
    untouched, model = copy_of(whole), safe_framework.compile(deciding(whole), backend="aot_eager")
    untouched.compile(backend="aot_eager")
    batch = texts(whole, 2, 5)
    head_of(model).threshold = float("inf")
    with torch.no_grad():
        assert bitwise_equal(model(**batch, **felt(2)).logits, untouched(**batch).logits)


def test_while_training_it_is_1() -> None:
    """Law: a gate that a head will decide learns what it opens to."""
    model = deciding(llama(), threshold=float("inf"))
    batch = texts(model.base, 2, 5)
    model.train()
    trained, forced = model(**batch, **felt(2)), model(**batch, **felt(2), gate=1.0)
    assert bitwise_equal(trained.logits, forced.logits)
    assert not bitwise_equal(trained.logits, model.eval()(**batch, **felt(2)).logits)


def test_what_cannot_be_decided_is_refused() -> None:
    """L7: no head, or rows and strengths that do not match."""
    model = deciding(llama())
    batch = prompts(model.base, [4, 4])
    model.modality("touch").relevance = None
    with pytest.raises(SafeError, match="no relevance head"):
        model.generate(**batch, **felt(2))
    model.set_relevance("touch", random_head())
    for gate, said in ((["auto"], "2 strengths"), ("open", '"auto", not')):
        with pytest.raises(SafeError, match=said):
            model.generate(**batch, **felt(2), gate=gate)


def test_a_closed_call_costs_a_few_operations_whatever_the_base() -> None:
    """Law: as many beyond the base's own for six layers as for two, and no more than eighty."""
    beyond = list[int]()
    for layers in (2, 6):
        base = llama(num_hidden_layers=layers)
        model = deciding(base, threshold=float("inf"), layer=layers - 1)
        batch, options = prompts(base, [4]), {"max_new_tokens": 1}
        model.generate(**batch, **felt(1), **options)  # which probes the base
        plain = trace_call(model.base.generate, {**batch, **options}, base)[1]
        closed = trace_call(model.generate, {**batch, **felt(1), **options}, base)[1]
        assert model.last_gates["touch"].tolist() == [0.0]
        beyond.append(len(closed) - len(plain))
    assert beyond[0] == beyond[1] <= 80


def test_a_closed_call_runs_no_encoder() -> None:
    """Law: where nothing opens, and no head reads the sample, it is not even encoded."""
    model: SafeModel = deciding(llama(), threshold=float("inf"))
    calls = list[int]()
    model.modality("touch").encoder.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**prompts(model.base, [4]), **felt(1), **DECODED)
    assert calls == []
