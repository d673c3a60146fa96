"""A conversation in the playground, without a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError
from safe_framework.serving import conversation
from safe_framework.serving.conversation import part_of, say, shown
from safe_framework.serving.playground import converse
from tests.support.chats import speaking
from tests.support.levels import LevelEncoder, write_m4a
from tests.support.toys import ToyEncoder, ToyFusion, ToyProjector, llama


class Touch(ToyEncoder):
    """The toy modality, of arrays, as files hold them."""

    def prepare(self, samples: Any) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(sample) for sample in samples])


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A model that chats and has a sense."""
    words = speaking("chatml")
    found = SafeModel(llama(vocab_size=len(words), max_position_embeddings=512), words)
    found.add_modality("touch", encoder=Touch(), projector=ToyProjector(), fusion=ToyFusion())
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files of two samples."""
    for number in (1, 2):
        np.save(tmp_path / f"{number}.npy", np.full((1, 4), float(number), np.float32))
    return [str(tmp_path / f"{number}.npy") for number in (1, 2)]


def test_one_goes_on_asking(model: SafeModel, files: list[str]) -> None:
    """Law: a turn has what was sent in it, and is answered as a chat of all that came before."""
    pipe, talk = safe_framework.pipeline(model), list[Any]()
    for text, sent in (("what is this", files[:1]), ("and that", []), ("what", files[1:])):
        before = list(talk)
        *growing, talk = say(model, "touch", talk, text, sent, max_new_tokens=4)
        assert [message["role"] for message in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert talk[: len(before)] == before
        parts = [{"type": "touch", "path": file} for file in sent]
        assert talk[-2]["content"] == [*parts, {"type": "text", "text": text}]
        (whole,) = pipe(talk[:-1], max_new_tokens=4, do_sample=False)
        assert talk[-1]["content"] == whole["generated_text"]
        assert all(whole["generated_text"].startswith(g[-1]["content"].strip()) for g in growing)


def test_two_samples_in_a_message(model: SafeModel, files: list[str]) -> None:
    """Law: both are heard, in their order."""

    def answer(*sent: str) -> Any:
        """What the model makes of them."""
        parts = [part_of(model, "touch", Path(file)) for file in sent]
        talk = [{"role": "user", "content": [*parts, {"type": "text", "text": "what"}]}]
        batch = model.processor.apply_chat_template(talk, add_generation_prompt=True)
        return model(**batch).logits

    both = answer(*files)
    assert not any(torch.equal(both, answer(file)) for file in files)


def test_the_gate_is_the_pages(model: SafeModel, files: list[str]) -> None:
    """Law: at gate 0 the sample is as good as absent."""
    *_, shut = say(model, "touch", [], "what", files[:1], gate=0.0, max_new_tokens=4)
    with model.off():
        *_, off = say(model, "touch", [], "what", files[:1], max_new_tokens=4)
    assert shut == off


def test_the_page_shows_each_by_itself(model: SafeModel, files: list[str]) -> None:
    """Law: a chat shows files and words under who sent them, and the message's field is emptied."""
    *_, last = converse(model, "touch", {"text": "what", "files": files[:1]}, 1.0, [], 4)
    chat, talk, left, told = last
    assert chat == shown(talk)
    assert [one["content"] for one in chat[:2]] == [{"path": files[0]}, "what"]
    assert [one["role"] for one in chat] == ["user", "user", "assistant"]
    assert (left, told) == ({"text": "", "files": []}, "")


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [(" ", [], "there is no message"), ("what", ["9.npy"], "9.npy"), ("what", ["bad.npy"], "bad")],
)
def test_what_is_wrong_is_told_and_kept(
    text: str, names: list[str], message: str, model: SafeModel, tmp_path: Path
) -> None:
    """Law: a message that cannot be sent is still there to be corrected, and the talk as it was."""
    (tmp_path / "bad.npy").write_text("no array")
    sent = {"text": text, "files": [str(tmp_path / name) for name in names]}
    before = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "high"}]
    ((chat, talk, left, told),) = converse(model, "touch", sent, 1.0, before, 4)
    assert (chat, talk, left) == (shown(before), before, sent)
    assert message in told


def test_large_files_and_bases_without_a_chat(
    model: SafeModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: both are refused with the fix, before anything is read."""
    monkeypatch.setattr(conversation, "MAX_BYTES", 5)
    with pytest.raises(DataError, match="takes at most 5 B"):
        next(say(model, "touch", [], "what", files[:1]))
    monkeypatch.setattr(model.processor, "chat", None)
    with pytest.raises(DataError, match=r"has no chat template.*\nhint: ask it one question"):
        next(say(model, "touch", [], "what"))


def test_a_long_recording_is_asked_about_in_turns(tmp_path: Path) -> None:
    """Law: five minutes from a phone are heard whole, and still in the next turn."""
    words = speaking("chatml")
    model = SafeModel(llama(vocab_size=len(words), max_position_embeddings=512), words)
    encoder = LevelEncoder(seconds=10).cut_into_windows(longest=300.5)
    parts: Any = {"projector": ToyProjector(encoder.dim), "fusion": ToyFusion()}
    model.add_modality("touch", encoder=encoder, **parts)
    path, rate = tmp_path / "mine.m4a", 8_000
    write_m4a(path, np.sin(np.arange(300 * rate) / 8), rate)
    pipe, talk = safe_framework.pipeline(model), list[Any]()
    for text, sent in (("what is this", [str(path)]), ("and that", [])):
        given = {"text": text, "files": sent}
        *_, (_, talk, _, wrong) = converse(model, "touch", given, 1.0, talk, max_new_tokens=4)
        assert not wrong
        (whole,) = pipe(talk[:-1], max_new_tokens=4, do_sample=False)
        assert talk[-1]["content"] == whole["generated_text"]
    batch = model.processor.apply_chat_template(talk[:-1], add_generation_prompt=True)
    heard = model(**batch).logits
    assert batch["touch__window_count"].item() in (30, 31)  # of 10 s, and a codec's padding
    batch["touch__values"][0, 29] += 1
    assert not torch.equal(heard, model(**batch).logits)
