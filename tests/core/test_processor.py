"""Texts and samples become one batch, and nothing is dropped on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from safe_framework.core.processor import SafeProcessor
from safe_framework.data.audio import Waveform
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import Frames
from tests.support.toys import PAD, VOCABULARY, ToyEncoder, tokenizer


class ToyAudio(ToyEncoder):
    """The mean and three more numbers of a waveform at 100 Hz."""

    sampling_rate = 100

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        for position, sample in enumerate(samples):
            if sample.sampling_rate != self.sampling_rate:
                raise SampleError(f"samples[{position}] has {sample.sampling_rate} Hz, not 100 Hz")
            if not np.isfinite(sample.values).all():
                raise SampleError(f"samples[{position}] holds NaN or Inf")
        return {"sums": torch.tensor([[float(s.values.sum())] for s in samples])}

    def forward(self, **inputs: Tensor) -> Frames:
        values = inputs["sums"][:, None].expand(-1, 1, self.dim)
        return Frames(values, values[..., 0].isfinite())


@pytest.fixture
def processor() -> SafeProcessor:
    """Text, touch and audio."""
    return SafeProcessor(tokenizer(), {"touch": ToyEncoder(), "audio": ToyAudio()})


def test_a_plain_array_needs_its_rate(processor: SafeProcessor) -> None:
    """An array does not say how fast it was sampled, and no rate is guessed."""
    with pytest.raises(SampleError, match=r"`audio` is a plain array.*\nhint: .*takes 100"):
        processor("w3", audio=np.ones(5))


def test_another_rate_is_refused(processor: SafeProcessor) -> None:
    """A rate that the encoder does not take is an error and not a resampling."""
    with pytest.raises(SampleError, match="44100 Hz, not 100 Hz"):
        processor("w3", audio=np.ones(5), sampling_rate=44100)


@pytest.mark.parametrize("rate", [100, {"audio": 100, "touch": 7}])
@pytest.mark.parametrize("make", [np.ones, torch.ones, lambda n: [1.0] * n])
def test_the_rate_goes_with_the_array(processor: SafeProcessor, make: Any, rate: Any) -> None:
    """Arrays, tensors and lists are taken with a rate, one for all or by modality."""
    batch = processor(["w3"], audio=[make(5)], sampling_rate=rate)
    assert batch["audio__sums"].tolist() == [[5.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_audio_is_refused(processor: SafeProcessor, bad: float) -> None:
    """NaN and Inf are caught at the door."""
    with pytest.raises(SampleError, match="NaN or Inf"):
        processor("w3", audio=Waveform(np.array([0, bad], np.float32), 100))


def test_the_text_with_a_bad_sample_is_named(processor: SafeProcessor) -> None:
    """Law: the error says beside which text the sample is, absent ones counted."""
    bad = Waveform(np.array([0, np.nan], np.float32), 100)
    good = Waveform(np.zeros(2, np.float32), 100)
    with pytest.raises(SampleError, match=r"^`audio\[2\]` holds NaN") as caught:
        processor(["w3", "w4", "w5"], audio=[None, good, bad])
    assert caught.value.row == 2


def test_none_keeps_its_row(processor: SafeProcessor) -> None:
    """Samples stay beside their texts; rows without one are zeros that are not present."""
    batch = processor(["w3", "w4", "w5"], audio=[None, np.ones(5), np.ones(7)], sampling_rate=100)
    assert batch["audio__present"].tolist() == [False, True, True]
    assert batch["audio__sums"].tolist() == [[0.0], [5.0], [7.0]]


def test_all_none_is_absent(processor: SafeProcessor) -> None:
    """Without a single sample the encoder is not asked."""
    batch = processor(["w3", "w4"], touch=[None, None])
    assert batch["touch__present"].tolist() == [False, False]
    assert set(batch) == {"input_ids", "attention_mask", "touch__present"} | set(batch) & {
        "token_type_ids"
    }


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_sample_for_each_text(processor: SafeProcessor, count: int) -> None:
    """Too few or too many samples are refused, with both numbers."""
    with pytest.raises(SampleError, match=f"`touch` has {count} samples for 2 texts"):
        processor(["w3", "w4"], touch=[torch.ones(1, 4)] * count)


def test_shorter_texts_are_padded_on_the_left(processor: SafeProcessor) -> None:
    """The last word is last in every row, so that generation continues it."""
    batch = processor(["w3 w4 w5", "w6"])
    assert batch["input_ids"].tolist() == [[3, 4, 5], [PAD, PAD, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_side_of_padding_can_be_chosen(processor: SafeProcessor) -> None:
    """Training batches may pad on the right."""
    batch = processor(["w3 w4", "w6"], padding_side="right")
    assert batch["input_ids"].tolist() == [[3, 4], [6, PAD]]


def test_a_tokenizer_without_padding_pads_with_its_end() -> None:
    """Our copy gets a pad token; the one that was given keeps having none."""
    words = tokenizer(eos_token="end", unk_token="unknown")
    batch = SafeProcessor(words, {})(["w3 w4", "w5"])
    assert batch["input_ids"].tolist() == [[3, 4], [1, 5]]
    assert words.pad_token is None


def test_a_question_is_put_into_the_prompt() -> None:
    """``question`` fills the template, ``text`` does not; braces in a question are text."""
    processor = SafeProcessor(tokenizer(), {}, prompt="w3 {question} w4")
    assert processor(question="w9")["input_ids"].tolist() == [[3, 9, 4]]
    assert processor("w9")["input_ids"].tolist() == [[9]]
    assert processor.prompt("{x} {question}") == "w3 {x} {question} w4"


@pytest.mark.parametrize("given", [{}, {"text": "w3", "question": "w4"}])
def test_either_text_or_question(processor: SafeProcessor, given: dict[str, str]) -> None:
    """Both, or neither, is a mistake."""
    with pytest.raises(SafeError, match="either `text` or `question`"):
        processor(**given)


def test_tensors_are_the_only_form(processor: SafeProcessor) -> None:
    """Another form is refused and not ignored."""
    with pytest.raises(SafeError, match="`return_tensors`"):
        processor("w3", return_tensors="np")


SPANS = {"touch": (40, 42, 42, 41), "audio": (43, 44)}
TOUCH = torch.ones(1, 4)


def marking(words: Any = None) -> SafeProcessor:
    """Text, touch and audio, both with markers."""
    encoders = {"touch": ToyEncoder(), "audio": ToyAudio()}
    return SafeProcessor(words or tokenizer(), encoders, spans=SPANS)


def edged() -> Any:
    """A tokenizer that puts ``w38`` before every text and ``end`` behind it."""
    words = tokenizer()
    words._tokenizer.post_processor = TemplateProcessing(
        single="w38 $0 end", special_tokens=[("w38", 38), ("end", 1)]
    )
    return words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w3 w4", [40, 42, 42, 41, 3, 4]),
        ("w3 <touch> w4", [3, 40, 42, 42, 41, 4]),
        ("w3 w4 <touch>", [3, 4, 40, 42, 42, 41]),
        ("<touch>w3 w4", [40, 42, 42, 41, 3, 4]),
    ],
)
def test_markers_stand_where_the_text_says_so(text: str, expected: list[int]) -> None:
    """``<touch>`` is the position of the span, the front if there is none; inside what is added."""
    assert marking()(text, touch=TOUCH)["input_ids"].tolist() == [expected]
    assert marking(edged())(text, touch=TOUCH)["input_ids"].tolist() == [[38, *expected, 1]]
    assert marking()(text, touch=[None])["input_ids"].tolist() == [tokenizer()(text)["input_ids"]]


def test_spans_of_two_modalities_keep_the_texts_order() -> None:
    """Each has its own position; at one position they are in the order of the modalities."""
    samples = {"touch": TOUCH, "audio": np.ones(5), "sampling_rate": 100}
    found = marking()("w3 <audio><touch> w4", **samples)["input_ids"]
    assert found.tolist() == [[3, 43, 44, 40, 42, 42, 41, 4]]
    assert marking()("w3", **samples)["input_ids"].tolist() == [[40, 42, 42, 41, 43, 44, 3]]


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("left", [[0, 43, 44, 3], [0, 4, 5, 6], [0, 0, 0, 7]]),
        ("right", [[43, 44, 3, 0], [4, 5, 6, 0], [7, 0, 0, 0]]),
    ],
)
def test_rows_with_spans_are_padded_anew(side: str, expected: list[list[int]]) -> None:
    """A batch is as wide as its longest row; a width that was asked for stays."""
    samples = {"audio": [np.ones(5), None, None], "sampling_rate": 100, "padding_side": side}
    texts = ["w3", "w4 w5 w6", "w7"]
    batch = marking()(texts, **samples)
    wide = marking()(texts, **samples, padding="max_length", max_length=4)
    tight = [row[1:] if side == "left" else row[:-1] for row in expected]
    assert batch["input_ids"].tolist() == tight
    assert batch["attention_mask"].tolist() == [[int(i > 0) for i in row] for row in tight]
    assert wide["input_ids"].tolist() == expected


def test_the_tokenizer_never_sees_markers() -> None:
    """Neither the one that was given nor the copy has more words or special tokens."""
    words = tokenizer()
    processor = marking(words)
    processor("w3 <touch>", touch=TOUCH)
    for one in (words, processor.tokenizer):
        assert (len(one), one.all_special_tokens) == (VOCABULARY, tokenizer().all_special_tokens)


def test_markers_are_shown_in_decoded_text() -> None:
    """Ids of markers decode to their names, or to nothing as special tokens do."""
    processor = marking()
    ids = processor(["w3 <touch> w4", "w5"], touch=[TOUCH, None])["input_ids"]
    assert processor.decode(ids[0]) == "w3<touch></touch>w4"
    skipped = processor.batch_decode(ids, skip_special_tokens=True)
    assert skipped == ["w3w4", "w5"]
    assert processor.decode([3, 4]) == processor.tokenizer.decode([3, 4])


TWO = [TOUCH, 2 * TOUCH]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w3 <touch> w4 <touch>", [3, 40, 42, 42, 41, 4, 40, 42, 42, 41]),
        ("<touch><touch> w3", [40, 42, 42, 41, 40, 42, 42, 41, 3]),
        ("w3 w4", [40, 42, 42, 41, 40, 42, 42, 41, 3, 4]),
    ],
)
def test_each_of_several_samples_has_its_place(text: str, expected: list[int]) -> None:
    """Law: a text names the place of each sample, or of none: then they stand at the front."""
    assert marking()(text, touch=[TWO])["input_ids"].tolist() == [expected]
    assert marking(edged())(text, touch=[TWO])["input_ids"].tolist() == [[38, *expected, 1]]
    plain = tokenizer()(text.replace("<touch>", ""))["input_ids"]
    without = SafeProcessor(tokenizer(), {"touch": ToyEncoder()})
    assert without(text, touch=[TWO])["input_ids"].tolist() == [plain]


@pytest.mark.parametrize("spans", [SPANS, {}])
@pytest.mark.parametrize(
    ("texts", "samples", "message"),
    [
        ("<touch> w3 <touch>", TOUCH, r"^the text names 2 places `<touch>` for 1 sample: "),
        ("<touch> w3", [TWO], r"^the text names 1 place `<touch>` for 2 samples: "),
        (["w3", "<touch>"], [None, TWO], r"^text 1: the text names 1 place .* for 2 samples"),
    ],
)
def test_a_text_has_as_many_places_as_samples(
    spans: Any, texts: Any, samples: Any, message: str
) -> None:
    """Law: more or fewer are an error with both numbers and the row, with markers or without."""
    processor = SafeProcessor(tokenizer(), {"touch": ToyEncoder()}, spans=spans)
    with pytest.raises(SampleError, match=message + r".*\nhint: write `<touch>` once for each"):
        processor(texts, touch=samples)


def test_several_samples_fill_slots(processor: SafeProcessor) -> None:
    """Law: with several a second axis of each tensor is the slots; without there is none."""
    batch = processor(["w3", "w4", "w5"], touch=[TWO, None, [TOUCH]])
    assert batch["touch__present"].tolist() == [[True, True], [False, False], [True, False]]
    assert batch["touch__values"].shape == (3, 2, 1, 4)
    assert batch["touch__values"].sum((2, 3)).tolist() == [[4, 8], [0, 0], [4, 0]]
    assert batch["touch__mask"].tolist() == [[[True], [True]], [[False]] * 2, [[True], [False]]]
    alone = processor(["w3", "w4"], touch=[[TOUCH], []])
    assert alone["touch__present"].tolist() == [True, False]
    assert alone["touch__values"].shape == (2, 1, 4)


@pytest.mark.parametrize("given", [TWO, tuple(TWO), [TWO], [tuple(TWO)]], ids=str)
def test_one_text_takes_its_samples_in_a_list_or_not(processor: SafeProcessor, given: Any) -> None:
    """Law: the samples of a text that is in no list may be in none either."""
    assert processor("w3", touch=given)["touch__present"].tolist() == [[True, True]]


def test_lists_of_numbers_are_samples(processor: SafeProcessor) -> None:
    """Law: a list of numbers is one sample, a list of such lists are several."""
    batch = processor(["w3", "w4"], audio=[[1.0] * 5, [[1.0], [2.0, 1]]], sampling_rate=100)
    assert batch["audio__sums"].tolist() == [[[5.0], [0.0]], [[1.0], [3.0]]]
    assert processor("w3", audio=[1.0, 2], sampling_rate=100)["audio__sums"].tolist() == [[3.0]]


def test_the_bad_one_of_several_is_named(processor: SafeProcessor) -> None:
    """Law: the error says which sample of which text cannot be used, or is missing."""
    good, bad = np.zeros(2, np.float32), np.array([0, np.nan], np.float32)
    with pytest.raises(SampleError, match=r"^`audio\[1\]\[1\]` holds NaN") as caught:
        processor(["w3", "w4"], audio=[None, [good, bad]], sampling_rate=100)
    assert caught.value.row == 1
    with pytest.raises(SampleError, match=r"^`audio\[0\]\[1\]` is None among 2 samples"):
        processor(["w3"], audio=[[good, None]], sampling_rate=100)


def test_a_prompts_place_is_that_of_all_samples() -> None:
    """Law: a question's own places stand instead of the prompt's one, where all stand else."""
    processor = SafeProcessor(
        tokenizer(), {"touch": ToyEncoder()}, spans={"touch": (40, 41)}, prompt="<touch> {question}"
    )
    found = processor(question=["w3", "w3 <touch> w4 <touch>", "w5"], touch=[TWO, TWO, None])
    masked = zip(found["input_ids"], found["attention_mask"].bool(), strict=True)
    assert [row[mask].tolist() for row, mask in masked] == [
        [40, 41, 40, 41, 3],
        [3, 40, 41, 4, 40, 41],
        [5],
    ]


def test_a_word_of_the_base_is_no_marker() -> None:
    """Where the vocabulary has ``<touch>`` itself, it would not be known whose it is."""
    words = tokenizer()
    words.add_tokens(["<touch>"])
    with pytest.raises(SafeError, match="`<touch>` is a word of the base"):
        marking(words)


class Picturing:
    """A processor that puts ten ids for every ``w37`` in a text."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def __call__(self, text: list[str], **options: Any) -> Any:
        return self.tokenizer(text=[t.replace("w37", "w37 " * 10) for t in text], **options)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("w37 w3 <touch> w4", 11),
        ("w3 <touch> w4 w37", 1),
        ("w37 w37 <touch>", 20),
        ("<touch>w37 w3", 0),
    ],
)
def test_markers_find_their_position_beside_images(text: str, position: int) -> None:
    """The base's processor may put many ids for a word, before the position or behind it."""
    ids = marking(Picturing())(text, touch=TOUCH)["input_ids"][0].tolist()
    assert ids.index(40) == position


def test_a_position_between_images_is_refused() -> None:
    """Where neither end of the text shows the position, it is not guessed."""
    with pytest.raises(SampleError, match=r"the place of `<touch>` is not to be found"):
        marking(Picturing())("w37 w3 w4 w5 w6 <touch> w5 w6 w7 w8 w37", touch=TOUCH)


def test_no_tokenizer_is_reported() -> None:
    """A model without a tokenizer says how to give it one."""
    with pytest.raises(SafeError, match=r"no tokenizer\nhint: .*attach"):
        SafeProcessor(None, {})("w3")
