"""Answers in a chat: where they end, as they are made, several at once, and continued."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.core.switched_off import OffElsewhere
from safe_framework.data.examples import Example
from safe_framework.errors import SafeError
from safe_framework.interfaces.types import IGNORED
from safe_framework.training.batches import tokenize
from tests.support.chats import ENDS, WORDS, speaking
from tests.support.marked import SAMPLE, marking
from tests.support.toys import llama

NAMES = sorted(set(ENDS) - {"llama"})  # which says what day it is
HEARD = {"type": "touch", "touch": SAMPLE}
PART = {"type": "text", "text": "what is this"}
CHAT = [{"role": "user", "content": [HEARD, PART]}]
LONG = {"max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": [0, 2, 3, *range(27, 38)]}
"""Six words that are seen."""


def talking(name: str = "chatml") -> SafeModel:
    """A model with markers and tokens in the text, that speaks in one of the templates."""
    words = speaking(name)
    return marking(llama(vocab_size=len(words)), inline=True, words=words)


def saying(model: SafeModel, text: str) -> Callable[[int, Any], list[int]]:
    """Let ``generate`` say this and nothing else, whatever it was asked."""
    ids, start = model.tokenizer(text)["input_ids"], list[int]()

    def allowed(row: int, so_far: Any) -> list[int]:
        """The next word."""
        if not start:
            start.append(len(so_far))
        return [ids[len(so_far) - start[0]]]

    return allowed


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_ends_with_its_turn(name: str) -> None:
    """Law: what the template ends a turn with ends the answer, and is not part of it."""
    model = talking(name)
    pipe = safe_framework.pipeline(model)
    said = saying(model, f"high and {ENDS[name]} low low low")
    (answer,) = pipe(CHAT, max_new_tokens=6, prefix_allowed_tokens_fn=said)
    assert answer == {"generated_text": "high and"}
    said = saying(model, f"high and {ENDS[name]} low low low")
    assert "".join(pipe.stream(CHAT, prefix_allowed_tokens_fn=said)).strip() == "high and"


def test_an_end_of_several_words() -> None:
    """Law: an end of two words ends an answer, and the first of them alone does not."""
    words = speaking("words")
    words.chat_template = WORDS.replace(" turn ", " turn day ")
    model = marking(llama(vocab_size=64), words=words)
    pipe = safe_framework.pipeline(model)
    text = "high turn low turn day low low"
    (answer,) = pipe(CHAT, max_new_tokens=7, prefix_allowed_tokens_fn=saying(model, text))
    assert answer == {"generated_text": "high turn low"}
    said = saying(model, text)
    pieces = list(pipe.stream(CHAT, prefix_allowed_tokens_fn=said, max_new_tokens=7))
    assert "".join(pieces).strip() == "high turn low"


def test_a_text_that_is_no_chat_does_not_end_with_a_turn() -> None:
    """Law: beside a chat, a text is continued as the base continues it."""
    model = talking()
    pipe = safe_framework.pipeline(model)
    said = saying(model, "high <|im_end|> low low")
    plain, user = "what is this", {"role": "user", "content": "what is this"}
    rendered = model.tokenizer.apply_chat_template(
        [user], add_generation_prompt=True, tokenize=False
    )
    (answer,) = pipe(plain, max_new_tokens=4, prefix_allowed_tokens_fn=said)
    assert answer == {"generated_text": "high low low"}
    said = saying(model, "high <|im_end|> low low")
    (answer,) = pipe(rendered, max_new_tokens=4, prefix_allowed_tokens_fn=said)
    assert answer == {"generated_text": "high"}


@pytest.mark.parametrize("skip", [False, True])
def test_no_stand_in_words_in_a_stream(skip: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: transformers' own streamers show the prompt's words, the answer's, and no others."""
    model = talking()
    batch = model.processor.apply_chat_template(CHAT, add_generation_prompt=True)
    out = model.generate(**batch, **LONG, streamer=TextStreamer(model.tokenizer, skip))
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": PART["text"]}], add_generation_prompt=True
    )["input_ids"]
    width = batch["input_ids"].shape[1]
    assert width == len(prompt) + SAMPLE.shape[0] + 2  # markers, and tokens between them
    shown = [*([] if skip else prompt), *out[0, width:].tolist()]
    assert capsys.readouterr().out.split() == model.tokenizer.decode(shown).split()


def test_a_stream_is_the_answer() -> None:
    """Law: pieces joined are the whole answer, with a sample and without; beams give no stream."""
    model = talking()
    pipe = safe_framework.pipeline(model)
    for one in (CHAT, "what is", {"text": "what", "touch": SAMPLE}):
        whole = pipe(one, **LONG)[0]["generated_text"]
        pieces = list(pipe.stream(one, **LONG))
        assert "".join(pieces).strip() == whole
        assert len(pieces) > 1
    with pytest.raises(SafeError, match="beam"):
        list(pipe.stream(CHAT, num_beams=2))
    with pytest.raises(SafeError, match="one input"):
        list(pipe.stream(["what", "is"]))


def test_a_stream_may_be_left() -> None:
    """Law: who stops reading stops the answer, and its thread with it."""
    model, before = talking(), threading.active_count()
    stream = safe_framework.pipeline(model).stream(CHAT, **{**LONG, "max_new_tokens": 40})
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_off_holds_for_a_stream() -> None:
    """Law: inside `off()`, what streams is the base's."""
    model = talking()
    pipe = safe_framework.pipeline(model)
    heard = pipe(CHAT, **LONG)
    with model.off():
        quiet = pipe(CHAT, **LONG)
        assert "".join(pipe.stream(CHAT, **LONG)).strip() == quiet[0]["generated_text"]
    assert heard != quiet


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call returns in a thread of its own."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_off_does_not_reach_is_told() -> None:
    """Law: a thread started inside `off()` is warned; with its context, or of a pool, it is not."""
    model = talking()
    batch = model.processor.apply_chat_template(CHAT, add_generation_prompt=True)
    on = model.generate(**batch, **LONG)

    def asked() -> Any:
        """What is generated."""
        return model.generate(**batch, **LONG)

    with model.off():
        off = asked()
        with pytest.warns(OffElsewhere, match=r"`touch` is on in this thread.*\nhint: enter"):
            assert torch.equal(in_thread(asked), on)
        context = contextvars.copy_context()
        assert torch.equal(in_thread(lambda: context.run(asked)), off)
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(asked).result(), on)
    assert torch.equal(in_thread(asked), on)
    assert not torch.equal(on, off)


def test_a_streamer_in_a_thread() -> None:
    """Law: transformers' usual form, a thread and an iterator, streams the answer."""
    model = talking()
    batch = model.processor.apply_chat_template(CHAT, add_generation_prompt=True)
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True)
    options = {**batch, **LONG, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    out = model.generate(**batch, **LONG)
    assert text == model.tokenizer.decode(out[0, batch["input_ids"].shape[1] :])


def test_the_assistants_words_are_continued() -> None:
    """Law: a chat that ends with the assistant is continued behind its words, as the base does."""
    model = talking()
    talk = [*CHAT, {"role": "assistant", "content": "high and"}]
    plain = [{"role": "user", "content": PART["text"]}, talk[-1]]
    batch = model.processor.apply_chat_template(talk, continue_final_message=True)
    own = model.tokenizer.apply_chat_template(plain, continue_final_message=True)["input_ids"]
    words = model.processor.markers.words(batch["input_ids"])
    assert batch["input_ids"][words].tolist() == own
    new = model.generate(**batch, **LONG)[0, batch["input_ids"].shape[1] :]
    pipe = safe_framework.pipeline(model)
    both = pipe([CHAT, talk], **LONG)
    assert (
        both[1]["generated_text"] == model.tokenizer.decode(new, skip_special_tokens=True).strip()
    )
    assert both == [*pipe(CHAT, **LONG), *pipe(talk, **LONG)]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}], ids=str)
def test_several_answers_in_a_chat(options: dict[str, Any]) -> None:
    """Law: beams and samples give as many answers as are asked for, none with a turn's end."""
    pipe = safe_framework.pipeline(talking())
    found = pipe([CHAT, CHAT], num_return_sequences=3, **options, **LONG)
    assert [len(answers) for answers in found] == [3, 3]
    assert not any("im_end" in one["generated_text"] for answers in found for one in answers)


def test_options_of_the_template_at_the_call() -> None:
    """Law: a pipeline's chat can be asked without thinking."""
    model = talking("qwen")
    pipe = safe_framework.pipeline(model)
    quiet = pipe(CHAT, template_options={"enable_thinking": False}, **LONG)
    batch = model.processor.apply_chat_template(
        CHAT, add_generation_prompt=True, enable_thinking=False
    )
    new = model.generate(**batch, **LONG)[0, batch["input_ids"].shape[1] :]
    assert (
        quiet[0]["generated_text"] == model.tokenizer.decode(new, skip_special_tokens=True).strip()
    )
    with pytest.raises(SafeError, match="does not read the option `enable_think`"):
        pipe(CHAT, template_options={"enable_think": False})


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_learned_with_the_end_of_its_turn(name: str) -> None:
    """Law: in a run and in a loop of one's own, and no text that is no chat ends so."""
    model = talking(name)
    user = [{"role": "user", "content": "what is this"}]
    chat = model.tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
    for text, end in ((chat, ENDS[name]), ("what is this", "end")):
        batch = model.prepare_multimodal_inputs(
            [text], touch=[SAMPLE], answers=["high"], training_mode=True
        )
        own = [one for one in batch["labels"][0].tolist() if one != IGNORED]
        run = tokenize(PromptEncoder.of(model), Example(prompt=text, answer="high"), {})
        assert model.tokenizer.convert_ids_to_tokens(own) == ["high", end]
        assert list(run.answer) == own
