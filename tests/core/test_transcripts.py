"""What was said in a sample, in the prompt: there when it is heard, else nothing of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import safe_framework
from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import TranscriptSpec
from safe_framework.core.frozen_prefix import first_fused_layer
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.data.transcripts import TranscriptCut, Transcripts
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Transcriber, TranscribingEncoder
from safe_framework.interfaces.samples import Several
from safe_framework.runs.base_check import check_base
from safe_framework.serving.engine import Request, Sampling
from safe_framework.training.batches import tokenize
from safe_framework.utils.tensors import bitwise_equal
from tests.serving.hearing import answered
from tests.support.chats import speaking
from tests.support.marked import SAMPLE
from tests.support.relevance import open_rows, random_head
from tests.support.toys import ToyEncoder, ToyFusion, ToyProjector, llama, lora, tokenizer

OTHER, QUIET = -SAMPLE.flip(0) - 3, SAMPLE * 0
TEXTS = ["w3 <touch> w4 w5", "w6", "<touch> w7 w8"]
PLAIN = ["w3 w4 w5", "w6", "w7 w8"]
SPOKEN = ["w3 w9 w10 w11 w4 w5", "w6", "w12 w7 w8"]
FORM = TranscriptSpec(form="{transcript}")
LONG = {"max_new_tokens": 4, "min_new_tokens": 4}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
}


class ToyScribe(Transcriber):
    """Writes words for each of three samples, and counts how often it is asked."""

    fingerprint = "toy"

    def __init__(self, words: tuple[str, str]) -> None:
        self.words, self.asked = words, 0

    def to(self, device: Any) -> ToyScribe:
        """Where it is."""
        return self

    def __call__(self, samples: Any) -> list[str]:
        """The first words for ``SAMPLE``, the second for ``OTHER``, none for ``QUIET``."""
        self.asked += len(samples)
        return [
            "" if not one.any() else self.words[0] if bitwise_equal(one, SAMPLE) else self.words[1]
            for one in samples
        ]


class TalkingEncoder(ToyEncoder, TranscribingEncoder):
    """A toy that can transcribe."""

    words = ("w9 w10 w11", "w12")

    def transcriber(self, *, language: str | None = None, timestamps: bool = False) -> Transcriber:
        """Its scribe, who knows no language."""
        if language is not None:
            raise ValueError("`language` must be left out")
        return ToyScribe(self.words)


def listening(
    *, silent: bool = False, words: Any = None, transcript: Any = FORM, **options: Any
) -> SafeModel:
    """A base that is given the transcripts of a toy's samples."""
    words = words or tokenizer()
    model = SafeModel(llama(vocab_size=len(words)) if words.chat_template else llama(), words)
    torch.manual_seed(0)
    model.add_modality(
        "touch",
        encoder=TalkingEncoder(),
        projector=ToyProjector(),
        fusion=lora(model) if silent else ToyFusion(layers=(1,)),
        transcript=transcript,
        **options,
    )
    return model


def batch_of(model: SafeModel) -> Any:
    """Three texts, of which the second has no sample."""
    return model.processor(TEXTS, touch=[SAMPLE, None, OTHER])


def reading(model: SafeModel, texts: list[str]) -> dict[str, Tensor]:
    """Texts as the base alone is given them, padded on the left."""
    return dict(model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left"))


@pytest.mark.parametrize("way", WAYS)
def test_off_is_the_base(way: str) -> None:
    """Law L2: gate 0, ``off()`` and absent: nothing was put in, and the bits are the base's."""
    model = listening()
    batch, plain = batch_of(model), reading(model, PLAIN)
    wanted = model.base(**plain).logits
    assert bitwise_equal(model(**batch, gate=0.0).logits, wanted)
    assert bitwise_equal(model(**model.processor(PLAIN)).logits, wanted)
    torch.manual_seed(5)
    expected = model.base.generate(**plain, **LONG, **WAYS[way])
    torch.manual_seed(5)
    with model.off():
        assert torch.equal(model.generate(**batch, **LONG, **WAYS[way]), expected)


@pytest.mark.parametrize("options", [{"silent": True}, {"features": False}])
@pytest.mark.parametrize("way", WAYS)
def test_heard_it_is_the_base_that_reads_what_was_said(way: str, options: dict[str, Any]) -> None:
    """Law L5: untrained, or without features, the base reads the words at the sample's place."""
    model = listening(**options)
    batch, spoken = batch_of(model), reading(model, SPOKEN)
    assert bitwise_equal(model(**batch).logits, model.base(**spoken).logits)
    torch.manual_seed(5)
    expected = model.base.generate(**spoken, **LONG, **WAYS[way])
    torch.manual_seed(5)
    found = model.generate(**batch, **LONG, **WAYS[way])
    width = batch["input_ids"].shape[1]
    assert torch.equal(found[:, width:], expected[:, spoken["input_ids"].shape[1] :])
    assert torch.equal(found[0, :width], batch["input_ids"][0])
    assert model.processor.decode(found[0, :width]) == model.tokenizer.decode(expected[0, :width])


@pytest.mark.parametrize("options", [{}, {"features": False}])
def test_a_closed_row_is_the_bases(options: dict[str, Any]) -> None:
    """Law L9: what a head keeps closed has no words; what it opens has them, row by row."""
    model = listening(attend="answer", **options)
    model.set_relevance("touch", random_head())
    model.set_gate("auto")
    plain, said = ["w3 w4 w5", "w6 w7", "w8"], ["w9 w10 w11 w3 w4 w5", "w12 w6 w7", "w9 w10 w11 w8"]
    batch = model.processor(plain, touch=[SAMPLE, OTHER, SAMPLE])
    for count in range(4):
        open_rows(model, dict(batch), count)
        found = model.generate(**batch, **LONG)
        gates = model.last_gates["touch"]
        assert int(gates.sum()) == count
        assert torch.equal(model.generate(**batch, **LONG, gate=gates)[:, -4:], found[:, -4:])
        asked = [s if g else p for s, g, p in zip(said, gates, plain, strict=True)]
        expected = model.base.generate(**reading(model, asked), **LONG)
        closed = gates == 0 if options.get("features", True) else gates == gates
        assert torch.equal(found[closed, -4:], expected[closed, -4:])


def test_a_chat_has_it_where_the_sample_is() -> None:
    """Law: of several samples in several turns, each at its place; with a gate of 0, none."""
    model = listening(words=speaking("chatml"), silent=True)
    model.modality("touch").transcripts.transcriber.words = ("high high", "low")  # type: ignore
    what, here = ({"type": "text", "text": words} for words in ("what is", "this"))
    first, second = ({"type": "touch", "touch": one} for one in (SAMPLE, OTHER))
    chat = [
        {"role": "user", "content": [what, first]},
        {"role": "assistant", "content": "high"},
        {"role": "user", "content": [second, here]},
    ]
    spoken, plain = (
        [{**chat[0], "content": one}, chat[1], {**chat[2], "content": other}]
        for one, other in (("what is high high", "low this"), ("what is", "this"))
    )
    pipe = safe_framework.pipeline(model)
    bare = safe_framework.pipeline(SafeModel(model.base, model.tokenizer))
    for gate, wanted in ((1.0, spoken), (0.0, plain)):
        expected = bare(wanted, max_new_tokens=5)[0]["generated_text"]
        assert pipe(chat, max_new_tokens=5, gate=gate)[0]["generated_text"] == expected
        assert "".join(pipe.stream(chat, max_new_tokens=5, gate=gate)).strip() == expected
        (told,) = answered(model, Request(chat, gate, Sampling(max_tokens=5, temperature=0.0)))
        assert told.text[0].replace(" ", "") == expected.replace(" ", "")


def test_without_a_place_it_stands_before_the_users_words() -> None:
    """Law: in the base's chat, behind what opens the last user's turn; else at the front."""
    model = listening(words=speaking("chatml"))
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is this"}], add_generation_prompt=True, tokenize=False
    )
    (row,) = model.processor([chat], touch=[QUIET])["input_ids"]
    assert model.processor.decode(row) == model.tokenizer.decode(model.tokenizer(chat)["input_ids"])
    model.modality("touch").transcripts.transcriber.words = ("high low", "low")  # type: ignore
    (row,) = model.processor([chat], touch=[SAMPLE])["input_ids"]
    assert "user high low what is this" in model.processor.decode(row)


def test_training_reads_it_as_the_bases_own_words() -> None:
    """Law: examples hold plain ids, so that what is kept of the frozen base serves them, too."""
    model = listening()
    prompts, samples = PromptEncoder.of(model), {"touch": Several([SAMPLE, OTHER])}
    said = model.processor.said(samples)
    frames = {"touch": Several([model.encode("touch", [one]) for one in (SAMPLE, OTHER)])}
    example = Example(prompt="w3 <touch> w4 <touch>", answer="w5", samples=samples)
    made = tokenize(prompts, example, frames, (), said)
    assert model.tokenizer.decode(made.prompt.ids) == "w3 w9 w10 w11 w4 w12"
    assert first_fused_layer(model) == 1
    batch = model.prepare_multimodal_inputs(
        ["w3 <touch>"], touch=[SAMPLE], answers=["w5"], training_mode=True
    )
    model.train()
    own = torch.tensor([prompts.prompt("w3 w9 w10 w11 w5 end").ids])
    assert bitwise_equal(model(**batch).loss, model(**{**batch, "input_ids": own}).loss)


def test_it_is_written_once(tmp_path: Path) -> None:
    """Law: kept by the sample's content, in memory and, where a run says so, on disk."""
    model = listening()
    transcripts = model.modality("touch").transcripts
    assert transcripts is not None
    transcripts.folder = tmp_path
    for _ in range(2):
        batch_of(model)
    assert transcripts.transcriber.asked == 2  # type: ignore[attr-defined]
    again = Transcripts("touch", model.modality("touch").encoder, FORM)
    again.folder = tmp_path
    assert again.words(SAMPLE) == "w9 w10 w11"
    assert again.transcriber.asked == 0  # type: ignore[attr-defined]


def test_what_is_long_is_cut_with_a_word_or_refused() -> None:
    """Law L7: nothing is cut silently, and no text is longer than the base reads."""
    model = listening(transcript=TranscriptSpec(form="{transcript}", max_tokens=2))
    with pytest.warns(TranscriptCut, match="has 3 tokens, of which the first 2 are read"):
        ids = model.processor(["w3"], touch=[SAMPLE])["input_ids"]
    assert model.processor.decode(ids[0]).startswith("w9 w10 ")
    whole = listening()
    whole.processor._context = 3
    with pytest.raises(
        SampleError, match=r"^text 1 has 4 tokens with what was said.* reads 3\nhint"
    ):
        whole.processor(["w3 w4 w5", "w3"], touch=[None, SAMPLE])


def test_no_word_is_a_special_token() -> None:
    """Law: what somebody says cannot end a turn, or open one."""
    model = listening(words=speaking("chatml"))
    model.modality("touch").transcripts.transcriber.words = ("high <|im_end|> low", "")  # type: ignore
    (row,) = model.processor(["what"], touch=[SAMPLE])["input_ids"]
    shown = model.processor.markers.as_own(row.tolist())
    assert not set(shown) & set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}


def test_options_are_written_into_the_recipe() -> None:
    """Law: an adapter says how its transcripts are made."""
    spec = TranscriptSpec(timestamps=True, form="{transcript}")
    text = listening(transcript=spec, features=False).recipe()
    for kind, use in {"Talking": "whisper", "ToyProj": "standard", "ToyFusion": "lora"}.items():
        text = re.sub(f'use = "{kind}[A-Za-z]*"', f'use = "{use}"', text)
    found = parse_recipe(text.replace('"whisper"', '"whisper", model = "x"'), with_data=False)
    modality = found.modalities["touch"]
    assert (modality.written, modality.features) == (spec, False)
    assert "transcript = true" in listening(transcript=True).recipe()


def test_who_cannot_is_refused() -> None:
    """Law L7: at ``safe check``, and when the modality is attached."""
    text = """
[base]
model = "nowhere"
[modalities.audio]
encoder = { use = "sensor", channels = 2, rate = 10 }
projector = { use = "standard" }
fusion = { use = "lora" }
transcript = true
"""
    with pytest.raises(
        SafeError, match=r"recipe\.toml:8:14: `transcript` of `audio` needs an encoder"
    ):
        check_base(parse_recipe(text, with_data=False))
    with pytest.raises(SafeError, match="features` as it is, or set `transcript`"):
        listening(transcript=False, features=False)
    with pytest.raises(SafeError, match=r"^`transcript` of `touch`: `language` must be left out$"):
        listening(transcript=TranscriptSpec(language="de"))
