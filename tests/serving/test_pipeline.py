"""One call answers texts, questions and chats, beside their samples."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead
from safe_framework.errors import SafeError, SampleError
from tests.core.test_chat import PROMPT
from tests.support.toys import attached, llama, tokenizer

RATE = 16_000
LONGEST = 4


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """The file of a short tone."""
    tone = 0.3 * np.sin(0.2 * np.arange(RATE // 5))
    soundfile.write(tmp_path / "tone.wav", tone, RATE)
    return str(tmp_path / "tone.wav")


@pytest.fixture(params=[False, True], ids=["plain", "marked"])
def model(request: pytest.FixtureRequest, recipe: Callable[..., Path]) -> SafeModel:
    """A model whose untrained modality was moved away from silence, with markers or without."""
    path = recipe()
    if request.param:
        words = "[modalities.audio]\n"
        path.write_text(path.read_text("utf-8").replace(words, words + "markers = true\n"))
    found = safe_framework.build(path)
    found.tokenizer.chat_template = PROMPT
    with torch.no_grad():
        for parameter in found.trainable_parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    found.set_gate(1.0)
    return found


def chat(*parts: Any) -> list[dict[str, Any]]:
    """One message."""
    return [{"role": "user", "content": list(parts)}]


def answer_of_base(model: SafeModel, text: str) -> str:
    """The base's own answer."""
    ids = model.tokenizer(text, return_tensors="pt")
    out: Any = model.base.generate(**ids, max_new_tokens=LONGEST)
    return model.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_every_form_is_answered_in_its_order(model: SafeModel, clip: str) -> None:
    """Law: a mixed list gives for each input what it gives alone."""
    clip_part = {"type": "audio", "path": clip}
    mixed: list[Any] = [
        {"text": "w5 w6", "audio": clip},
        chat(clip_part, {"type": "text", "text": "w7"}),
        "w8",
        [{"role": "user", "content": "w9"}],
        {"question": "w5 w6", "audio": None},
    ]
    pipe = safe_framework.pipeline(model)
    together = pipe(mixed, max_new_tokens=LONGEST)
    alone = [pipe(one, max_new_tokens=LONGEST)[0] for one in mixed]
    assert together == alone
    assert [set(one) for one in together] == [{"generated_text"}] * 5
    assert together == safe_framework.pipeline(model, batch_size=1)(mixed, max_new_tokens=LONGEST)


def test_an_input_may_have_several_samples(model: SafeModel, clip: str, tmp_path: Path) -> None:
    """Law: a list goes to the processor as parts of a chat do; alone or in a batch is the same."""
    soundfile.write(tmp_path / "other.wav", 0.3 * np.sin(0.9 * np.arange(RATE // 5)), RATE)
    other = str(tmp_path / "other.wav")
    pipe = safe_framework.pipeline(model)
    parts = [{"type": "audio", "path": path} for path in (clip, other)]
    talks = [chat(*parts, {"type": "text", "text": "w5"}), {"text": "w5", "audio": [clip, other]}]
    assert pipe(talks, max_new_tokens=LONGEST) == [
        pipe(t, max_new_tokens=LONGEST)[0] for t in talks
    ]
    with pytest.raises(SampleError, match=r"^inputs\[1\]: .*names 1 place `<audio>` for 2 samples"):
        pipe(["w8", {"text": "w5 <audio>", "audio": [clip, other]}], max_new_tokens=1)


def test_options_of_a_call_are_those_of_transformers(model: SafeModel, clip: str) -> None:
    """Law: several answers come in a list for each input, and scores do not change an answer."""
    pipe = safe_framework.pipeline(model)
    asked = [{"text": text, "audio": clip} for text in ("w5 w6", "w7", "w8 w9")]
    one = pipe(asked, max_new_tokens=LONGEST)
    assert pipe(asked, max_new_tokens=LONGEST, batch_size=1) == one
    scored = {"return_dict_in_generate": True, "output_scores": True}
    assert pipe(asked, max_new_tokens=LONGEST, **scored) == one
    beams = {"num_beams": 3, "max_new_tokens": LONGEST, "batch_size": 2}
    best = pipe(asked, **beams)
    several = pipe(asked, num_return_sequences=3, **beams)
    assert [len(answers) for answers in several] == [3, 3, 3]
    assert [answers[0] for answers in several] == best


def test_the_input_with_a_bad_sample_is_named(model: SafeModel) -> None:
    """Law: an error names the place in the list, wherever its batch begins."""
    wave = np.full(RATE // 5, 0.1, np.float32)
    asked: list[Any] = [{"text": "w5", "audio": wave} for _ in range(7)]
    asked[5] = {"text": "w5", "audio": np.full_like(wave, np.nan)}
    with pytest.raises(SampleError) as caught:
        safe_framework.pipeline(model, batch_size=2)(asked, sampling_rate=RATE)
    assert str(caught.value).startswith("inputs[5]: `audio` ")
    assert caught.value.row == 5
    assert pickle.loads(pickle.dumps(caught.value)).row == 5


def test_a_sample_is_used(model: SafeModel, clip: str) -> None:
    """Law: the answer is that of ``generate`` on the processor's batch."""
    (found,) = safe_framework.pipeline(model)({"text": "w5", "audio": clip}, max_new_tokens=LONGEST)
    from safe_framework.data.audio import read_audio

    batch = model.processor("w5", audio=read_audio(clip, RATE))
    out = model.generate(**batch, max_new_tokens=LONGEST)
    new = out[:, batch["input_ids"].shape[1] :]
    assert [found["generated_text"]] == model.processor.batch_decode(new, skip_special_tokens=True)
    assert found["generated_text"] != answer_of_base(model, "w5")


@pytest.mark.parametrize("how", ["gate", "mapping", "own", "off"])
def test_off_is_the_bases_answer(how: str, model: SafeModel, clip: str) -> None:
    """Law L2: at gate 0, by the call or by the model, and within ``off()``, the base answers."""
    pipe = safe_framework.pipeline(model)
    inputs = [{"text": "w5 w6", "audio": clip}, chat({"type": "audio", "path": clip})]
    expected = [answer_of_base(model, "w5 w6"), answer_of_base(model, "w9  w10 w11")]
    if how == "own":
        model.set_gate(0.0)
    gate = {"gate": 0.0, "mapping": {"audio": 0.0}}.get(how)
    if how == "off":
        with model.off():
            found = pipe(inputs, max_new_tokens=LONGEST)
    else:
        found = pipe(inputs, gate=gate, max_new_tokens=LONGEST)  # type: ignore[arg-type]  # one of both
    assert [one["generated_text"] for one in found] == expected


def test_threads_may_have_different_gates(
    model: SafeModel, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: calls with different gates, at the same time on one model, answer as one by one."""
    pipe = safe_framework.pipeline(model)
    inputs = [{"text": text, "audio": clip} for text in ("w5 w6", "w7")]
    gates: list[Any] = [0.0, 1.0, 0.3, {"audio": 0.0}, {"audio": 0.6}, None] * 4

    def ask(gate: Any) -> list[dict[str, str]]:
        return pipe(inputs, gate=gate, max_new_tokens=LONGEST)

    expected = [ask(gate) for gate in gates]
    assert [one["generated_text"] for one in expected[0]] == [
        answer_of_base(model, one["text"]) for one in inputs
    ]
    assert expected[0] == expected[3] != expected[1]
    generate: Any = model.base.generate
    together = threading.Barrier(4)

    def waiting(*args: Any, **options: Any) -> Any:
        """Generate once a call of every thread is under way."""
        together.wait(60)
        return generate(*args, **options)

    monkeypatch.setattr(model.base, "generate", waiting)
    assert len(gates) % together.parties == 0
    with ThreadPoolExecutor(together.parties) as pool:
        found = list(pool.map(ask, gates))
    assert found == expected
    assert model.gates == {"audio": 1.0}


def test_it_opens_an_adapter(model: SafeModel, clip: str, tmp_path: Path) -> None:
    """Law: an adapter's folder answers as the model that it was saved from."""
    inputs = {"question": "w5 w6", "audio": clip}
    expected = safe_framework.pipeline(model)(inputs, max_new_tokens=LONGEST)
    folder = model.save_pretrained(tmp_path / "adapter")
    found = safe_framework.pipeline(folder, device="cpu")
    assert found(inputs, max_new_tokens=LONGEST) == expected


def test_plain_arrays_need_their_rate(model: SafeModel) -> None:
    """Law: the rate of arrays is an argument, or stands beside the array."""
    tone = np.sin(0.2 * np.arange(RATE // 5)).astype(np.float32)
    pipe = safe_framework.pipeline(model)
    named = pipe({"text": "w5", "audio": {"array": tone, "sampling_rate": RATE}}, max_new_tokens=2)
    assert named == pipe({"text": "w5", "audio": tone}, sampling_rate=RATE, max_new_tokens=2)
    with pytest.raises(SafeError, match="does not say how fast"):
        pipe({"text": "w5", "audio": tone})


MISTAKES = [
    (7, "a text, a mapping or a chat, not 7"),
    (None, "a text, a mapping or a chat, not None"),
    (b"w5", "a text, a mapping or a chat, not b'w5'"),
    ({"question": None}, "`question` of an input must be a text, not None"),
    ({"text": ["w5"]}, "`text` of an input must be a text"),
    ([chat("w5")], "neither a text nor a sample: 'w5'"),
    ([7], "a text, a mapping or a chat, not 7\nhint: give "),
    ({"audio": None}, "a text, a mapping or a chat"),
    ({"text": "w5", "question": "w6"}, "a text, a mapping or a chat"),
    ({"text": "w5", "smell": "x"}, "`smell`, which is no modality.*\nhint: attached: audio"),
]


@pytest.mark.parametrize(("inputs", "message"), MISTAKES, ids=str)
def test_mistakes_are_named(inputs: Any, message: str, model: SafeModel) -> None:
    """Law: an input that is none is an error that says what one is."""
    with pytest.raises(SafeError, match=message):
        safe_framework.pipeline(model)(inputs)
    with pytest.raises(SafeError, match="`batch_size` must be at least 1"):
        safe_framework.pipeline(model, batch_size=0)
    with pytest.raises(SafeError, match="`batch_size` must be at least 1"):
        safe_framework.pipeline(model)("w5", batch_size=0)


STRANGE = [
    ({"return_full_text": True}, "a pipeline has no option `return_full_text`", "without what"),
    ({"generate_kwargs": {}}, "a pipeline has no option `generate_kwargs`", "the call itself"),
    ({"stop_sequence": "w3"}, "a pipeline has no option `stop_sequence`", "stop_strings"),
    ({"do_smaple": True}, "`do_smaple` is no option of a pipeline, nor of `generate`", "do_sample"),
    ({"batch_size": "2"}, "`batch_size` must be at least 1, not '2'", ""),
    ({"batch_size": 0}, "`batch_size` must be at least 1, not 0", ""),
    ({"num_return_sequences": 2}, "greedy decoding has one", "num_beams=2"),
    ({"num_return_sequences": "2"}, "`num_return_sequences` must be at least 1, not '2'", ""),
    ({"num_beams": 0}, "`num_beams` must be at least 1, not 0", ""),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, not 0", ""),
    ({"max_new_tokens": 2.5}, "`max_new_tokens` must be at least 1, not 2.5", ""),
    ({"input_ids": torch.ones(1, 2)}, "makes `input_ids` of its inputs", "model.generate("),
    ({"labels": torch.ones(1, 2)}, "makes `labels` of its inputs", "model.generate("),
    ({"template_options": {"day": 1}}, "no input is a chat", '"role": "user"'),
    ({"template_options": 5}, "must be options by name", ""),
    ({"gate": [1.0, 0.0]}, "must hold 1 strengths, one for each input, not 2", ""),
]


@pytest.mark.parametrize(("options", "told", "hint"), STRANGE)
def test_an_option_that_is_none_is_named(options: dict[str, Any], told: str, hint: str) -> None:
    """Law: what a pipeline does not take is an error that says what to write instead."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    with pytest.raises(SafeError) as caught:
        pipe("w3 w4", **options)
    assert told in caught.value.message
    assert hint in caught.value.hint


def test_an_answer_is_as_long_as_is_said() -> None:
    """Law: a length in `max_length` or a `generation_config` is not passed over for the default."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    two = pipe("w3 w4", max_new_tokens=2)
    assert pipe("w3 w4", max_length=4) == two
    assert pipe("w3 w4", generation_config=GenerationConfig(max_new_tokens=2)) == two
    assert pipe("w3 w4", max_new_tokens=np.int64(2), batch_size=np.int64(1)) == two
    assert pipe("w3 w4", max_new_tokens=None) == pipe("w3 w4") == pipe("w3 w4", max_new_tokens=64)
    assert "".join(pipe.stream("w3 w4", max_length=4)).strip() == two[0]["generated_text"]


def test_words_that_end_an_answer_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `stop_strings` needs no tokenizer, which the pipeline has."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    given = dict[str, Any]()

    def noted(**options: Any) -> Any:
        """Note what the call is given, and answer with nothing new."""
        given.update(options)
        return options["input_ids"]

    monkeypatch.setattr(pipe.model.base, "generate", noted)
    pipe("w3 w4", stop_strings=["w5"])
    assert given["tokenizer"] is pipe.model.tokenizer
    pipe("w3 w4", stop_strings=["w5"], tokenizer=(other := tokenizer()))
    assert given["tokenizer"] is other


def test_a_gate_for_each_input_is_its_own(model: SafeModel, clip: str) -> None:
    """Law: strengths go with their inputs, whatever batches these come in."""
    pipe = safe_framework.pipeline(model, batch_size=2)
    part = {"type": "audio", "path": clip}
    asked: list[Any] = [{"text": f"w{n}", "audio": clip} for n in range(5, 9)]
    asked.insert(1, chat(part, {"type": "text", "text": "w7"}))
    gates = [0.0, 1.0, 0.5, 0.0, 1.0]
    each = zip(asked, gates, strict=True)
    alone = [pipe(one, gate=gate, max_new_tokens=LONGEST)[0] for one, gate in each]
    assert alone[0] != pipe(asked[0], gate=1.0, max_new_tokens=LONGEST)[0]
    for given in (gates, np.array(gates), torch.tensor(gates), {"audio": gates}):
        assert pipe(asked, gate=given, max_new_tokens=LONGEST) == alone


@pytest.mark.parametrize("bad", [{"text": "w5", "audio": "nowhere.wav"}, chat({"type": "x"})])
def test_the_bad_one_of_many_is_named(bad: Any, model: SafeModel) -> None:
    """Law: whatever is wrong with one of many inputs, its place is told."""
    asked = [*["w5", chat({"type": "text", "text": "w6"})] * 2, bad]
    with pytest.raises(SafeError, match=r"^inputs\[4\]: ") as caught:
        safe_framework.pipeline(model, batch_size=3)(asked, max_new_tokens=1)
    assert "inputs[4]" in caught.value.message
    with pytest.raises(SafeError, match=r"^(?!inputs)"):
        safe_framework.pipeline(model)(bad)


@pytest.mark.parametrize("given", [None, 5, llama()], ids=["None", "number", "base"])
def test_a_pipeline_is_of_a_model(given: Any) -> None:
    """Law: what is neither a model nor a folder is an error that says what is."""
    with pytest.raises(SafeError, match="a pipeline is of a model or an adapter's folder, not of"):
        safe_framework.pipeline(given)


@pytest.mark.parametrize("device", ["cpux", -1, "cpu:x"])
def test_a_device_that_is_not_there_is_named(device: Any) -> None:
    """Law: such a device is an error that names it, before anything is moved."""
    model = attached(llama(), tokenizer=tokenizer())
    with pytest.raises(SafeError, match=f"`device` cannot be {device!r}: "):
        safe_framework.pipeline(model, device=device)


def test_a_stream_has_a_streamer_of_its_own() -> None:
    """Law: another streamer would be passed over, and is refused."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    with pytest.raises(SafeError, match="a stream has a streamer of its own"):
        list(pipe.stream("w3", streamer=object()))


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_a_stream_of_several_answers_is_refused(options: dict[str, Any]) -> None:
    """Law: beams and several sequences are for a call, and the error says so."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    with pytest.raises(SafeError, match=r"a stream gives one answer .*\nhint: call the pipeline"):
        list(pipe.stream("w3", **options))


OPTIONS: list[dict[str, Any]] = [
    {"return_dict_in_generate": True, "output_scores": True},
    {"batch_size": 1},
    {"use_cache": False},
    {"logits_processor": None},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_generate_are_taken_at_the_call(options: dict[str, Any]) -> None:
    """Law: options that change no token give the answers of a call without them."""
    pipe = safe_framework.pipeline(attached(llama(), tokenizer=tokenizer()))
    texts = ["w3 w4", "w5"]
    assert pipe(texts, max_new_tokens=LONGEST, **options) == pipe(texts, max_new_tokens=LONGEST)
    two = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": LONGEST}
    assert [len(answers) for answers in pipe(texts, **two)] == [2, 2]


def with_head(model: SafeModel, threshold: float) -> SafeModel:
    """The model, which a head decides of that opens above a score."""
    width = model.stack.hidden_size
    weight = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    flat = torch.zeros(width)
    head = RelevanceHead(
        flat, flat + 1, weight[:1], weight[1:], 0.0, layer=1, columns=4, threshold=threshold
    )
    model.set_relevance("audio", head)
    model.set_gate("auto")
    return model


def test_an_answer_says_whether_the_sample_was_listened_to(model: SafeModel, clip: str) -> None:
    """Law: `opened` stands beside each answer at gate `auto`, in calls and streams, and is true."""
    pipe = safe_framework.pipeline(with_head(model, float("inf")))
    asked: list[Any] = [{"text": "w5 w6", "audio": clip}, "w8"]
    base = [{"generated_text": answer_of_base(model, text)} for text in ("w5 w6", "w8")]
    closed = pipe(asked, max_new_tokens=LONGEST)
    assert closed == [{**one, "opened": {"audio": False}} for one in base]
    opened: dict[str, bool] = {}
    stream = pipe.stream(asked[0], max_new_tokens=LONGEST, opened=opened)
    assert ("".join(stream).strip(), opened) == (base[0]["generated_text"], {"audio": False})
    with_head(model, float("-inf"))
    forced = pipe(asked, gate=1.0, max_new_tokens=LONGEST)
    found = pipe(asked, max_new_tokens=LONGEST)
    assert [one["opened"] for one in found] == [{"audio": True}, {"audio": False}]
    assert [one["generated_text"] for one in found] == [one["generated_text"] for one in forced]
    assert forced[0] != base[0]
    list(pipe.stream(asked[0], max_new_tokens=LONGEST, opened=opened))
    assert opened == {"audio": True}
    assert all("opened" not in one for one in [*pipe("w8"), *forced])
