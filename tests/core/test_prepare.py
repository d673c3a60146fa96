"""``model.prepare_multimodal_inputs``: the batch of a loop of one's own."""

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import RawSampleStore
from safe_framework.errors import SafeError, SampleError
from safe_framework.training.batches import AnswerCollator, tokenize
from safe_framework.training.objective import answer_loss
from tests.support.marked import SAMPLE, ThreeTokens, marking
from tests.support.toys import DIM, ToyFusion, llama, t5, tokenizer
from tests.training.conftest import ArrayEncoder

TEXTS = ["w3 <audio> w4 w5", "w6", "", "w7 w8"]
ANSWERS = ["w9", "w10 w11", "w12", None]


def sounds() -> list[np.ndarray | None]:
    """A sample for two of the texts, of different lengths of frames."""
    random = np.random.default_rng(0)
    return [random.normal(size=(3, DIM)).astype(np.float32) if n != 1 else None for n in range(4)]


@pytest.fixture
def model() -> SafeModel:
    """A modality called ``audio`` whose encoder trains and whose tokens stand in the text."""
    torch.manual_seed(0)
    model = SafeModel(llama(), tokenizer())
    encoder = ArrayEncoder()
    encoder.scale = torch.nn.Parameter(torch.ones(()))
    model.add_modality(
        "audio",
        encoder=encoder,
        projector=ThreeTokens(),
        fusion=ToyFusion(layers=(0,)),
        inline=True,
    )
    return model


def test_training_gives_what_the_collator_makes(model: SafeModel) -> None:
    """Law: the batch equals, tensor for tensor, what a run makes of the same rows."""
    samples = sounds()
    examples = [
        Example(text, answer, {} if sample is None else {"audio": sample})
        for text, answer, sample in zip(TEXTS[:3], ANSWERS[:3], samples[:3], strict=True)
    ]
    store = RawSampleStore(model.modality("audio").encoder)
    rows = [
        tokenize(
            PromptEncoder.of(model),
            e,
            {name: store.frames([s])[0] for name, s in e.samples.items()},
        )
        for e in examples
    ]
    pad = model.processor.padding
    expected = AnswerCollator({"audio": DIM}, pad)(rows)
    expected.pop("answers")
    made = model.prepare_multimodal_inputs(
        TEXTS[:3], audio=samples[:3], answers=ANSWERS[:3], training_mode=True
    )
    assert {"input_ids", "attention_mask", "labels", "audio__present"} <= expected.keys()
    assert expected.keys() <= made.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(tensor, made[key])] == []


def test_labels_are_the_answers_alone(model: SafeModel) -> None:
    """Law: labels hold each answer and its end; texts, markers, padding and a None are masked."""
    made = model.prepare_multimodal_inputs(
        TEXTS, audio=sounds(), answers=ANSWERS, training_mode=True
    )
    answers = [row[row != -100].tolist() for row in made["labels"]]
    end = model.tokenizer.eos_token_id
    words = [model.tokenizer(a)["input_ids"] if a else [] for a in ANSWERS]
    assert answers == [[*ids, end] if ids else [] for ids in words]
    shown = made["labels"] != -100
    assert torch.equal(made["input_ids"][shown], made["labels"][shown])
    loss = answer_loss(model, model.base, {k: v for k, v in made.items()})
    torch.testing.assert_close(loss, model(**made).loss)
    loss.backward()


def test_inference_is_what_the_processor_makes(model: SafeModel) -> None:
    """Law: without training there are no labels, answers are not looked at, and it generates."""
    made = model.prepare_multimodal_inputs(TEXTS, audio=sounds(), answers=ANSWERS)
    plain = model.processor(text=TEXTS, audio=sounds())
    assert made.keys() == plain.keys()
    assert all(torch.equal(made[key], plain[key]) for key in plain)
    assert model.eval().generate(**made, max_new_tokens=2).shape[0] == len(TEXTS)


def test_any_modality_goes_by_its_name() -> None:
    """Law: a modality of any name is given by it, one called ``images`` too."""
    model = marking(llama(), "touch", "images")
    given = {"touch": [SAMPLE, None], "images": [None, SAMPLE]}
    made = model.prepare_multimodal_inputs(["w3", "w4"], **given)
    assert made["touch__present"].tolist() == [True, False]
    assert made["images__present"].tolist() == [False, True]


def test_an_encoder_decoder_has_its_answers_apart() -> None:
    """Law: the labels of an encoder-decoder are a text of their own, and its loss runs."""
    model = SafeModel(t5(), tokenizer())
    made = model.prepare_multimodal_inputs(
        ["w3 w4", "w5"], answers=["w6", "w7 w8"], training_mode=True
    )
    end = model.tokenizer.eos_token_id
    first, second = model.tokenizer("w6")["input_ids"][0], model.tokenizer("w7 w8")["input_ids"]
    assert made["labels"].tolist() == [[first, end, -100], [*second[:2], end]]
    assert torch.isfinite(model(**made).loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training_mode": True}, "needs an answer for each of 2 texts, not 0"),
        ({"training_mode": True, "answers": ["w3"]}, "for each of 2 texts, not 1"),
        ({"training_mode": True, "answers": ["", "w3"]}, r"answers\[0\]: the answer '' has no"),
        ({"smell": [None, None]}, "there is no modality `smell`"),
        ({"images": [SAMPLE, None]}, "the base takes no images"),
        ({"audio": [SAMPLE]}, "`audio` has 1 samples for 2 texts"),
    ],
)
def test_what_cannot_be_right_is_refused(
    model: SafeModel, given: dict[str, object], message: str
) -> None:
    """Law: a missing answer, an unknown modality or a wrong count is an error that says so."""
    with pytest.raises((SafeError, SampleError), match=message):
        model.prepare_multimodal_inputs(["w3", "w4"], **given)
