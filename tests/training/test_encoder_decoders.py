"""Bases whose decoder reads a text of its own: labels go there, and generation begins with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, decoder_start_id, halves
from safe_framework.data.examples import Example, TextRow
from safe_framework.errors import DataError
from safe_framework.evaluation.answers import choose_label
from safe_framework.evaluation.retention import gate_zero, retention
from safe_framework.interfaces.types import IGNORED, Frames
from safe_framework.training.batches import AnswerCollator, TokenizedExample, tokenize
from safe_framework.training.distributed import WHOLE_STEP
from safe_framework.training.monitor.measurement import HeldOutEvaluator, HeldOutText
from safe_framework.training.objective import Objective, answer_loss, step_totals
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    WeightedRegularizer,
)
from safe_framework.training.trainer import SafeTrainer, training_arguments
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.seeing import reading_bases
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import DIM, lora
from tests.training.conftest import ArrayEncoder, perturb

BASES = reading_bases()
TEXTS = ["the cat sat on the mat", "a dog ran in the picture of a cat"]


def hearing(name: str, side: Any = "decoder", **options: Any) -> SafeModel:
    """A base with a modality at all layers of one side."""
    base, tokenizer = BASES[name]()
    model = SafeModel(base, tokenizer, side=side)
    torch.manual_seed(0)
    model.add_modality(
        "touch",
        encoder=ArrayEncoder(),
        projector=StandardProjector(
            DIM, model.stack.hidden_size, tokens=2, hidden_dim=16, dropout=0.0
        ),
        fusion=lora(model, rank=4, alpha=8.0),
        **options,
    )
    return model.eval()


def sample(*, high: bool) -> np.ndarray:
    """One of two kinds of sample."""
    return np.full((2, DIM), 1.0 if high else -1.0, dtype=np.float32)


def examples(
    model: SafeModel, answers: Sequence[str] = ("low sound", "high")
) -> tuple[list[Example], list[TokenizedExample]]:
    """Two questions with other answers, as they are and tokenized."""
    asked = [
        Example("what is this", wanted, {"touch": sample(high=bool(high))}, f"t:{high}")
        for high, wanted in enumerate(answers)
    ]
    prompts = PromptEncoder.of(model)
    frames = model.encode("touch", [one.samples["touch"] for one in asked])
    rows = [frames.rows(torch.tensor([row])) for row in range(2)]
    return asked, [tokenize(prompts, e, {"touch": f}) for e, f in zip(asked, rows, strict=True)]


@pytest.mark.parametrize("name", BASES)
def test_the_loss_is_the_bases_own(name: str) -> None:
    """Law: without a sample, the loss of an answer is what the base itself gives for its labels."""
    model = hearing(name)
    _, rows = examples(model)
    bare = [TokenizedExample(row.prompt, row.answer, row.text, {}) for row in rows]
    made = AnswerCollator({"touch": DIM}, model.processor.padding)(bare)
    made.pop("answers")
    labels = made["labels"][:, 1:].contiguous()
    for row, ids in zip(rows, labels, strict=True):
        assert ids[ids != IGNORED].tolist() == list(row.answer)
    own = model.tokenizer(text_target=[row.text for row in rows])["input_ids"]
    assert [list(row.answer) for row in rows] == own
    wanted = model.base(
        input_ids=made["input_ids"], attention_mask=made["attention_mask"], labels=labels
    ).loss
    assert_same_sums(answer_loss(model, model.base, made), wanted, FORWARD)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
@pytest.mark.parametrize("name", BASES)
def test_it_learns_to_answer(name: str, side: str, tmp_path: Path) -> None:
    """Law: trained by the trainer, with distillation beside it, it tells its samples apart."""
    model = hearing(name, side)
    asked, rows = examples(model, ["low", "high"])
    prompts = PromptEncoder.of(model)
    pools = {"touch": {"noise": [Frames(torch.randn(1, 2, DIM), torch.ones(1, 2).bool())]}}
    kept = CounterfactualRetention(
        model,
        [WeightedRegularizer(0.1, DistillationRegularizer())],
        [prompts.whole_text(text) for text in TEXTS],
        pools, kinds=("noise",), batch_size=2, seed=3, pad=model.processor.padding,
    )  # fmt: skip
    spec = TrainingSpec(
        max_steps=120, batch_size=2, warmup_steps=0, align_steps=0,
        projector_learning_rate=1e-2, fusion_learning_rate=1e-2,
    )  # fmt: skip
    trainer = SafeTrainer(
        model, training_arguments(spec, tmp_path), rows, spec,
        retention=kept, pad=model.processor.padding,
    )  # fmt: skip
    trainer.train()
    model.eval()
    losses = [row["task_loss"] for row in trainer.state.log_history if "task_loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    labels = tuple(one.answer for one in asked)
    closed = [
        Example(e.prompt, e.answer, e.samples, e.place, task="classification", labels=labels)
        for e in asked
    ]
    assert choose_label(model, closed, batch_size=3, gate={}) == list(labels)


@pytest.mark.parametrize("name", BASES)
def test_a_text_is_predicted_from_its_first_half(name: str) -> None:
    """Law: retention gives the encoder half of a text's words, and the decoder the rest."""
    model = hearing(name)
    prompts, start = PromptEncoder.of(model), decoder_start_id(model.base)
    for text in TEXTS:
        row, (first, second) = prompts.whole_text(text), halves(text)
        assert first + second == text
        assert list(row.ids) == model.tokenizer(first)["input_ids"]
        assert list(row.target) == [start, *model.tokenizer(text_target=second)["input_ids"][:-1]]
        assert len(row) == row.words == len(row.target)
    assert prompts.whole_text("cat").target == (start,)


@pytest.mark.parametrize("name", BASES)
def test_retention_is_zero_where_the_model_is_its_base(name: str) -> None:
    """Law: distillation of a fresh adapter costs nothing, of a disturbed one something."""
    model = hearing(name)
    prompts, pad = PromptEncoder.of(model), model.processor.padding
    pools = {"touch": {"noise": [Frames(torch.ones(1, 2, DIM), torch.ones(1, 2).bool())]}}
    kept = CounterfactualRetention(
        model, [WeightedRegularizer(1.0, DistillationRegularizer())],
        [prompts.whole_text(text) for text in TEXTS],
        pools, kinds=("noise",), batch_size=2, seed=3, pad=pad,
    )  # fmt: skip
    _, rows = examples(model)
    step = AnswerCollator({"touch": DIM}, pad).calls(rows)

    def lost() -> float:
        objective = Objective(model, kept)
        _, losses = objective(step["calls"], step_totals([step], ["touch"]), 0, WHOLE_STEP)
        return float(losses[1])

    assert lost() == 0
    perturb(model)
    assert lost() > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_it_is_monitored_and_evaluated(name: str) -> None:
    """Law: a fresh adapter keeps every word of the texts and is its base with the gate at 0."""
    model = hearing(name)
    asked, rows = examples(model)
    prompts, pad = PromptEncoder.of(model), model.processor.padding
    held = [
        HeldOutText(prompts.whole_text(text), prompts.whole_text(text), rows[0].frames)
        for text in TEXTS
    ]
    evaluator = HeldOutEvaluator(model, rows, held, batch_size=2, max_new_tokens=3, pad=pad)
    counts = evaluator.count()
    assert counts.agreed == counts.positions
    assert sum(counts.positions) == sum(len(one.plain) for one in held)
    found = retention(model, "touch", [TextRow(text) for text in TEXTS], asked, resamples=5)
    assert found.absent.identical
    assert found.overall.agreement.value == 1
    perturb(model)
    assert sum(evaluator.count().agreed) < sum(counts.positions)
    moved = retention(model, "touch", [TextRow(text) for text in TEXTS], asked, resamples=5)
    assert moved.absent.identical
    assert moved.overall.agreement.value < 1
    assert moved.overall.positions == 4 * sum(len(one.plain) for one in held) - sum(
        len(one.plain) for one in held
    )
    shut = gate_zero(model, "touch", asked)
    assert shut.logits_identical
    assert shut.tokens_identical


def test_a_class_is_not_read_at_an_encoders_tokens() -> None:
    """Law: `read_at = "tokens"` is refused, since the decoder predicts nothing there."""
    model = hearing("t5", markers=True, inline=True)
    asked = Example(
        "what is this", "low", {"touch": sample(high=False)}, "train.jsonl:2",
        labels=("low", "high"), at_tokens=True,
    )  # fmt: skip
    frames = model.encode("touch", [sample(high=False)])
    with pytest.raises(DataError, match=r"^train\.jsonl:2: an encoder-decoder predicts nothing"):
        tokenize(PromptEncoder.of(model), asked, {"touch": frames})
