"""Evaluation of bases whose decoder has a text of its own."""

from __future__ import annotations

import attrs
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example, TextRow
from safe_framework.evaluation.answers import log_likelihoods, text_inputs, word_positions
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.sweep import sweep
from safe_framework.testing import bases
from tests.evaluation.conftest import AddTokens, LinearProjector, PairEncoder

TEXTS = ["w3 w4 w5 w6 w7", "w8 w9", "w10 w11 w12 w13"]


@pytest.fixture(params=["t5", "bart"])
def model(request: pytest.FixtureRequest) -> SafeModel:
    """A tiny encoder-decoder with a sense."""
    made = SafeModel(bases.BASES[request.param](), bases.tokenizer())
    torch.manual_seed(0)
    parts = {"encoder": PairEncoder(), "projector": LinearProjector(), "fusion": AddTokens()}
    made.add_modality("touch", **parts)
    return made.eval()


@pytest.fixture
def examples() -> list[Example]:
    """Questions, every third a choice between two labels."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(6):
        answer = "w5" if number % 2 else "w6 w7"
        row = Example(
            prompt=f"w{3 + number} w4",
            answer=answer,
            samples={"touch": torch.randn(2, generator=generator).numpy()},
            place=f"test.jsonl:{number}",
        )
        closed = {"task": "classification", "labels": ("w5", "w6 w7")}
        rows.append(attrs.evolve(row, **closed) if number % 3 == 0 else row)
    return rows


def test_everything_is_measured(model: SafeModel, examples: list[Example]) -> None:
    """Law: absent and at gate 0 it is the base bit for bit; beside samples it is not."""
    found = evaluate(
        model, modality="touch", train=examples, test=examples, texts=TEXTS,
        max_new_tokens=3, bootstrap=10,
    )  # fmt: skip
    assert found.retention.absent.identical
    assert found.gate_zero.identical
    assert found.retention.overall.kl.value > 0
    assert {row.answer for row in found.answers if row.task == "classification"} <= {"w5", "w6 w7"}


def test_half_of_a_text_is_predicted(model: SafeModel) -> None:
    """Law: the encoder reads a text's first half, and the decoder predicts the second."""
    batch = text_inputs(model, [TextRow(TEXTS[0]), TextRow(TEXTS[1])])
    words = word_positions(model, batch)
    ids = model.tokenizer
    assert batch["input_ids"][0].tolist()[:3] == ids("w3 w4 w5")["input_ids"][:3]
    given = batch["decoder_input_ids"][0][words[0]].tolist()
    assert given[1:] == ids(" w6 w7", add_special_tokens=False)["input_ids"]
    assert words.sum(1).tolist() == [3, 2]


def test_a_label_is_scored_where_it_is_decoded(model: SafeModel, examples: list[Example]) -> None:
    """Law: a label's likelihood is that of its tokens and its end, of the decoder."""
    example = attrs.evolve(examples[0], samples={})
    with torch.no_grad():
        scores = log_likelihoods(model, [(example, label) for label in ("w5", "w6 w7")], {})
        for label, score in zip(("w5", "w6 w7"), scores, strict=True):
            given = model.tokenizer(example.prompt, return_tensors="pt")
            targets = [*model.tokenizer(label)["input_ids"], model.tokenizer.eos_token_id]
            loss = model.base(**given, labels=torch.tensor([targets])).loss
            assert score == pytest.approx(-loss.item() * len(targets), rel=1e-5)


def test_a_gate_is_swept(model: SafeModel, examples: list[Example]) -> None:
    """Law: a sweep keeps everything at gate 0."""
    found = sweep(model, modality="touch", test=examples, texts=TEXTS, gates=(0, 1), resamples=5)
    assert found.points[0].kept.agreement.value == 1.0
    assert found.points[0].kept.kl.value == 0.0
    assert found.points[1].kept.kl.value > 0
