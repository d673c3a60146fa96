"""The embedded engine: the base's own bits without a sample, and no row in another's answer."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from safe_framework.core.decoding import DecodingBatch, read_prompt
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead
from safe_framework.errors import SafeError
from safe_framework.serving.embedded import EmbeddedEngine
from safe_framework.serving.engine import StoppedError, TooLongError
from tests.serving.hearing import Told, answered, asking, hearing_model, tone
from tests.support.toys import HIDDEN, llama, mixtral, t5, tokenizer

WORDS = ["w5 w6", "w7 w8 w9 w10", "w11", "w12 w13 w14", "w5 w20 w21 w22 w23"]


def mixed(count: int, **options: Any) -> list[Any]:
    """Requests of every kind, in turn: without a sample, with one, with its gate at 0, sampled."""
    found = []
    for n in range(count):
        words, limit = f"{WORDS[n % 5]} w{5 + n % 30}", 3 + n % 9
        sound = None if n % 3 == 0 else tone(n)
        gate = (None, 0.0, 0.5, 1.0)[n % 4]
        warm = 1.0 if n % 5 == 0 else 0.0
        given = {"max_tokens": limit, "gate": gate, "temperature": warm, "seed": n, **options}
        found.append(asking(words, sound, **given))
    return found


def is_plain(request: Any) -> bool:
    """Whether nothing but words acts in it."""
    return request.gate == 0 or not any(
        part["type"] != "text" for part in request.messages[0]["content"]
    )


@pytest.mark.parametrize("attend", ["answer", "all"])
def test_without_a_sample_the_engine_gives_the_bases_bits(attend: str) -> None:
    """Law: amid others, a request without a sample gets what the bare base's engine gives it."""
    requests = mixed(40)
    plain = [n for n, one in enumerate(requests) if is_plain(one)]
    assert 12 < len(plain) < 30
    together = answered(hearing_model(attend), *requests)
    base = SafeModel(llama(max_position_embeddings=256), hearing_model().base_processor)
    words = [asking(" ".join(p["text"] for p in r.messages[0]["content"] if p["type"] == "text"))
             for r in requests]  # fmt: skip
    alone = [words[n] for n in plain]
    for request, n in zip(alone, plain, strict=True):
        object.__setattr__(request, "sampling", requests[n].sampling)
    expected = answered(base, *alone)
    assert [together[n].bits for n in plain] == [told.bits for told in expected]
    assert [together[n].text for n in plain] == [told.text for told in expected]


@pytest.mark.parametrize("attend", ["answer", "all", "after", "inline"])
def test_alone_it_is_generate(attend: str) -> None:
    """Law: a request that is alone gets the very tokens and log-probabilities of ``generate``."""
    model = hearing_model(attend)
    engine = EmbeddedEngine(model)
    for request in (asking("w5 w6 w7"), asking("w5 w6 w7", tone(1)), asking("w8", tone(2))):
        batch = engine.prepare(request).batch
        out = model.generate(
            **batch, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        logs = [step[0].float().log_softmax(-1) for step in out.logits]
        new = out.sequences[0, batch["input_ids"].shape[1] :].tolist()
        expected = [(t, float(one[t])) for t, one in zip(new, logs, strict=True) if t != 1]
        assert answered(model, request)[0].bits == expected


def test_what_is_heard_changes_the_answer() -> None:
    """Law: two sounds and none give three answers, so that a leak would be seen."""
    model = hearing_model()
    found = [answered(model, asking("w5", sound))[0].bits for sound in (None, tone(1), tone(2))]
    assert found[0] != found[1] != found[2] != found[0]


def test_nothing_is_left_for_the_next() -> None:
    """Law: the same prompt with and without sound, in every order, gets each time the same bits."""
    model, sounds = hearing_model("all"), (None, tone(1), tone(2))
    expected = [answered(model, asking("w5 w6", sound), max_batch=1)[0].bits for sound in sounds]
    for order in itertools.permutations(range(3)):
        found = answered(model, *(asking("w5 w6", sounds[n]) for n in order), max_batch=1)
        assert [told.bits for told in found] == [expected[n] for n in order]


@pytest.mark.parametrize("attend", ["answer", "inline"])
def test_together_is_as_alone_but_for_rounding(attend: str) -> None:
    """Law: rows of every kind, each with its own gate, get in a batch what they get alone."""
    model, requests = hearing_model(attend), mixed(16)
    together = answered(model, *requests, max_batch=8)
    for told, request in zip(together, requests, strict=True):
        (alone,) = answered(model, request)
        assert [one for one, _ in told.bits] == [one for one, _ in alone.bits]
        assert [p for _, p in told.bits] == pytest.approx([p for _, p in alone.bits], abs=1e-4)
        assert told.gates == alone.gates
        assert told.finish == alone.finish
        assert told.counts == alone.counts


def test_what_is_sampled_is_the_rows_own() -> None:
    """Law: a seed gives the same answers whoever else is answered, and another seed others."""
    model = hearing_model()
    one = asking("w5 w6", seed=3, temperature=1.5, n=2, max_tokens=12)
    other = asking("w5 w6", seed=4, temperature=1.5, n=2, max_tokens=12)
    first, second = answered(model, one, other)
    again = answered(model, *mixed(5), one, *mixed(3))[5]
    assert again.text == first.text
    assert len({*first.text.values(), *second.text.values()}) == 4


def test_who_leaves_is_decoded_no_further() -> None:
    """Law: a request that is given up is told no more, and the others' bits do not change."""
    model = hearing_model()
    requests = [asking(words, max_tokens=30) for words in WORDS[:3]]
    expected = answered(model, *requests)
    engine, found = EmbeddedEngine(model), [Told() for _ in requests]
    pairs = zip(requests, found, strict=True)
    tickets = [engine.submit(engine.prepare(one), told.take) for one, told in pairs]
    for _ in range(5):
        engine._turn()
    tickets[1].cancel()
    known = found[1].text[0]
    engine.run_until()
    assert found[1].text[0] == known
    assert 0 < len(known.split()) < 10
    assert expected[0].text == found[0].text
    assert engine.load.running == engine.load.waiting == 0


def test_who_leaves_while_waiting_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: who gives up before its turn is held no longer, and a fault of ours ends no engine.

    What was running when it came fails, and the next request is answered.
    """
    model = hearing_model()
    engine, told = EmbeddedEngine(model, max_batch=1), [Told() for _ in range(3)]
    tickets = [engine.submit(engine.prepare(asking("w5 w6")), one.take) for one in told]
    engine._turn()
    tickets[1].cancel()
    engine._turn()
    assert engine.load.waiting == 1
    let_leave = engine._let_leave
    broken = iter([True])

    def once(shape: Any) -> None:
        """Break the first time."""
        if next(broken, False):
            raise RuntimeError("broken")
        let_leave(shape)

    monkeypatch.setattr(engine, "_let_leave", once)
    engine.start()
    until(lambda: told[2].error is not None)
    assert str(told[0].error) == "broken"
    last = Told()
    engine.submit(engine.prepare(asking("w5 w6")), last.take)
    until(lambda: last.finish.get(0) is not None)
    engine.stop()
    assert last.error is None


def until(done: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_that_fails_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a request whose sample breaks its encoder fails, and the others are answered."""
    model = hearing_model()
    broken = asking("w5", tone(1))
    expected = answered(model, asking("w6"), asking("w7", tone(2)))
    forward = model.modality("audio").encoder.forward

    def failing(**inputs: torch.Tensor) -> Any:
        """Break at the first sound."""
        if torch.equal(inputs["values"][0, 0], first):
            raise RuntimeError("broken")
        return forward(**inputs)

    first = model.modality("audio").encoder.prepare([tone(1)])["values"][0, 0]
    monkeypatch.setattr(model.modality("audio").encoder, "forward", failing)
    found = answered(model, asking("w6"), broken, asking("w7", tone(2)))
    assert "broken" in str(found[1].error)
    assert [found[0].bits, found[2].bits] == [told.bits for told in expected]


def test_answers_end_where_they_should() -> None:
    """Law: an answer ends at its length, before a stop, or at the base's end, and says which."""
    model = hearing_model()
    (whole,) = answered(model, asking("w5 w6", max_tokens=12))
    words = whole.text[0].split(" ")
    assert whole.finish == {0: "length"}
    assert whole.counts == {0: 12}
    (stopped,) = answered(model, asking("w5 w6", max_tokens=12, stop=(words[4],)))
    first = words.index(words[4])
    assert stopped.finish == {0: "stop"}
    assert stopped.text[0].split() == words[:first]
    (ended,) = answered(model, asking("w5 w6", logit_bias={1: 100.0}))
    assert ended.finish == {0: "stop"}
    assert (ended.text[0], ended.counts[0], ended.tokens[0]) == ("", 1, [])


def test_bases_whose_rows_share_no_cache_answer_one_by_one() -> None:
    """Law: an encoder-decoder answers through the engine as by ``generate``."""
    model = hearing_model("answer", t5(), chat=False)
    engine = EmbeddedEngine(model)
    for request in (asking("w5 w6 w7"), asking("w5 w6 w7", tone(1))):
        batch = engine.prepare(request).batch
        out: Any = model.generate(**batch, max_new_tokens=8)
        expected = model.tokenizer.decode(out[0], skip_special_tokens=True)
        (told,) = answered(model, request)
        assert told.text[0].split() == expected.split()
        assert told.error is None


def test_experts_do_not_mix_plain_rows_with_others() -> None:
    """Law: where experts take a whole batch's tokens, rows without a sample keep their bits."""
    model = hearing_model("answer", mixtral())
    words = [asking(one, max_tokens=6) for one in WORDS[:3]]
    expected = answered(model, *words)
    others = [asking(one, tone(n), max_tokens=6) for n, one in enumerate(WORDS[:3])]
    found = answered(model, *(one for pair in zip(words, others, strict=True) for one in pair))
    assert [told.bits for told in found[::2]] == [told.bits for told in expected]


def test_the_journal_tells_how_to_get_the_same_bits() -> None:
    """Law: the bare base that does what the journal says gets the engine's logits bit for bit."""
    model, requests, journal = hearing_model(), mixed(20, temperature=0.0), []
    told = answered(model, *requests, journal=journal)
    base = SafeModel(llama(max_position_embeddings=256), tokenizer())
    engine, batch, rows = EmbeddedEngine(model), DecodingBatch(base), list[int]()
    taken = dict.fromkeys(range(20), 1)
    for kind, what in journal:
        if kind == "join":
            batch.join([read_prompt(base, engine.prepare(requests[what]).batch)])
            rows.append(what)
        elif kind == "keep":
            batch.keep(what)
            rows = [rows[row] for row in what]
        else:
            logs = batch.step(what).log_softmax(-1)
            for row, own in zip(rows, logs, strict=True):
                if taken[row] < len(told[row].bits):
                    token, logprob = told[row].bits[taken[row]]
                    assert float(own[token]) == logprob
                taken[row] += 1
    assert sum(kind == "join" for kind, _ in journal) > 5


def test_what_cannot_be_answered_is_refused() -> None:
    """Law: what is too long, of an unknown modality, or comes to an end is named."""
    engine = EmbeddedEngine(hearing_model(), max_tokens=50)
    with pytest.raises(TooLongError, match="the base reads 256"):
        engine.prepare(asking("w5 " * 300, max_tokens=None))
    with pytest.raises(TooLongError, match="`max_tokens` is 51, and 50 are possible"):
        engine.prepare(asking("w5", max_tokens=51))
    with pytest.raises(SafeError, match="no modality `smell`"):
        engine.prepare(asking("w5", gate={"smell": 1.0}))
    told = Told()
    engine.submit(engine.prepare(asking("w5")), told.take)
    engine.start().stop()
    assert isinstance(told.error, StoppedError)
    with pytest.raises(StoppedError, match="stopping"):
        engine.submit(engine.prepare(asking("w5")), told.take)


def test_settings_that_are_not_done_are_refused() -> None:
    """Law: a base whose own generation settings ask for more is refused, with their names."""
    model = hearing_model()
    settings: Any = model.base.generation_config
    settings.no_repeat_ngram_size = 3
    with pytest.raises(SafeError, match="ask for `no_repeat_ngram_size`"):
        EmbeddedEngine(model)


@pytest.mark.parametrize("score", [-1.0, 1.0])
def test_a_relevance_head_decides(score: float) -> None:
    """Law: with "auto", a row is as at gate 1 where the head opens, and else the base's."""
    model = hearing_model()
    with pytest.raises(SafeError, match="has no relevance head"):
        EmbeddedEngine(model).prepare(asking("w5 w6", tone(1), gate="auto"))
    flat = torch.zeros(HIDDEN)
    head = RelevanceHead(flat, flat + 1, flat[None], flat[None], score, layer=1)
    model.set_relevance("audio", head)
    left, forced, off, without = answered(
        model,
        asking("w5 w6", tone(1), gate="auto"),
        asking("w5 w6", tone(1), gate=1.0),
        asking("w5 w6", tone(1), gate=0.0),
        asking("w5 w6"),
        max_batch=1,
    )
    assert left.gates == {"audio": float(score > 0)}
    assert left.bits == (forced if score > 0 else without).bits
    assert off.bits == without.bits != forced.bits
