"""Tokens are chosen as OpenAI and transformers define it, and texts come in whole letters."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from safe_framework.serving.answer_text import AnswerText
from safe_framework.serving.engine import Sampling
from safe_framework.serving.sampling import TokenChooser

DEFAULTS: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


class Bytes:
    """A tokenizer whose tokens are bytes; those above 255 are special, and write nothing."""

    def decode(self, ids: list[int], **options: Any) -> str:
        """The text of bytes, with a mark for what is no whole letter."""
        return bytes(one for one in ids if one < 256).decode("utf-8", "replace")


def chooser(prompt: tuple[int, ...] = (), index: int = 0, **options: Any) -> TokenChooser:
    """A chooser with these options."""
    return TokenChooser(Sampling(**{**DEFAULTS, **options}), prompt, index, Bytes())


def test_repetition_is_penalised_as_transformers_does() -> None:
    """Law: prompt and answer are penalised by transformers' own rule."""
    from transformers import RepetitionPenaltyLogitsProcessor

    own, prompt = chooser((1, 4), repetition_penalty=1.7), [1, 4]
    generator, known = torch.Generator().manual_seed(0), Counter[int]()
    for _ in range(12):
        logits = torch.randn(9, generator=generator)
        theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits[None].clone())
        token = own.choose(logits)
        assert token == int(theirs[0].argmax())
        prompt.append(token)
        known[token] += 1
    assert len(known) > 3


def test_penalties_and_biases_are_taken_off_the_logits() -> None:
    """Law: a token that came c times loses c times the one penalty and once the other."""
    logits = torch.tensor([1.0, 0.9, 0.2, -3.0])
    own = chooser(frequency_penalty=0.3, presence_penalty=0.2, logit_bias={3: 3.5})
    scores, counts = logits.clone(), Counter[int]()
    scores[3] += 3.5
    for _ in range(10):
        expected = scores.clone()
        for token, count in counts.items():
            expected[token] -= 0.3 * count + 0.2
        assert own.choose(logits) == int(expected.argmax())
        counts = Counter(own.counts)
    assert len(counts) == 4


def test_what_is_drawn_has_its_probability() -> None:
    """Law: over many seeds, tokens come as often as the softmax of what top-p and top-k leave."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -4.0])
    share = (logits / 0.8).double().softmax(0)
    for options, kept in (({}, 5), ({"top_k": 2}, 2), ({"top_p": 0.8}, 2), ({"top_p": 0.01}, 1)):
        given: dict[str, Any] = {"temperature": 0.8, **options}
        drawn = Counter(chooser(seed=seed, **given).choose(logits) for seed in range(800))
        expected = share[:kept] / share[:kept].sum()
        assert set(drawn) <= set(range(kept))
        for token, probability in enumerate(expected.tolist()):
            deviation = (probability * (1 - probability) / 800) ** 0.5
            assert abs(drawn[token] / 800 - probability) <= 5 * deviation + 1e-12
    assert chooser(seed=1, temperature=1.0).choose(logits * 0) != chooser(
        seed=1, index=3, temperature=1.0
    ).choose(logits * 0)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_whole_letters_and_join_to_the_text(seed: int) -> None:
    """Law: whatever tokens come, no piece ends within a letter, and all join to the whole."""
    random = Random(seed)
    text = "".join(random.choice("aé€😀 xEND") for _ in range(40))
    out = AnswerText(Bytes())
    pieces = [out.add(byte) for byte in text.encode()] + [out.finish()]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one END two", "one "),
        ("EEND", "E"),
        ("no end", "no end"),
        ("at last EN", "at last EN"),
        ("STOP first END", ""),
        ("aEN DEND", "aEN D"),
    ],
)
def test_a_stop_ends_the_text_before_it(text: str, expected: str) -> None:
    """Law: the text ends before the first stop, of which no piece shows the beginning."""
    out, shown = AnswerText(Bytes(), stop=("END", "STOP")), ""
    for byte in text.encode():
        shown += out.add(byte)
        assert expected.startswith(shown)
        if out.stopped:
            break
    else:
        shown += out.finish()
    assert shown == expected


def test_an_end_of_several_tokens_is_no_text() -> None:
    """Law: tokens that end a turn write nothing, and a beginning that goes on otherwise does."""
    out = AnswerText(Bytes(), ends=[(300,), tuple(b"||")])
    assert [out.add(byte) for byte in b"a|b|"] == ["a", "", "|b", ""]
    assert (out.add(ord("|")), out.stopped, out.ids) == ("", True, list(b"a|b"))
    out = AnswerText(Bytes(), ends=[(300,)])
    assert (out.add(97), out.add(300), out.stopped) == ("a", "", True)
