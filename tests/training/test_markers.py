"""Training and evaluating with markers in the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.evaluation.answers import answer
from safe_framework.evaluation.retention import gate_zero, retention
from safe_framework.training.batches import tokenize
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework.training.trainer import SafeTrainer, training_arguments
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.tolerance import FORWARD, assert_same_sums
from tests.support.toys import DIM, HIDDEN, PAD, llama, lora, tokenizer
from tests.training.conftest import KINDS, ArrayEncoder, loss_of

TEXTS = ["w5 w6 w7 w8", "w9 <touch> w10", "w11 w12 w13 w14 w15 w16", "w17"]


@pytest.fixture
def model() -> SafeModel:
    """A fresh modality whose two tokens stand in the text."""
    torch.manual_seed(0)
    model = SafeModel(llama(), tokenizer())
    model.add_modality(
        "touch",
        encoder=ArrayEncoder(),
        projector=StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8, dropout=0.0),
        fusion=lora(model),
        inline=True,
    )
    return model


@pytest.fixture
def examples(samples: list[np.ndarray]) -> list[Example]:
    """Questions of several lengths, one of them without a sample."""
    made = [
        Example(prompt=text, answer="w3 w4", samples={"touch": sample}, place=f"test:{number}")
        for number, (text, sample) in enumerate(zip(TEXTS, samples, strict=False))
    ]
    return [*made, Example(prompt="w20 <touch> w21", answer="w5")]


def table(model: SafeModel) -> torch.Tensor:
    """The trainable vectors of the markers."""
    markers = model.modality("touch").markers
    assert markers is not None
    return markers.table


def test_training_and_asking_put_markers_in_the_same_places(
    model: SafeModel, examples: list[Example]
) -> None:
    """Law: a training prompt's ids are those of the processor's for the same text and sample."""
    frames = {"touch": model.encode("touch", [examples[0].samples["touch"]])}
    prompts = PromptEncoder.of(model)
    for example in examples:
        made = tokenize(prompts, example, frames if example.samples else {}).prompt
        sample = example.samples.get("touch")
        text = model.processor.markers.leave_out_absent(example.prompt, example.samples)
        asked = model.processor(text, touch=[sample])["input_ids"]
        assert asked.tolist() == [list(made.ids)]


def test_the_table_is_trained(model: SafeModel, examples: list[Example], tmp_path: Path) -> None:
    """Law: steps of training move the markers and leave the base as it was."""
    store = model.modality("touch").frame_cache(tmp_path / "frames")
    frames = store.frames([e.samples["touch"] for e in examples if e.samples])
    given = [*[{"touch": one} for one in frames], {}]
    prompts = PromptEncoder.of(model)
    tokenized = [tokenize(prompts, e, f) for e, f in zip(examples, given, strict=True)]
    spec = TrainingSpec(max_steps=3, batch_size=5, warmup_steps=0, projector_learning_rate=0.1)
    before, words = table(model).detach().clone(), model.base.model.embed_tokens.weight.clone()
    SafeTrainer(model, training_arguments(spec, tmp_path / "run"), tokenized, spec, pad=PAD).train()
    assert (table(model).to(before.device) - before).abs().max() > 0.05
    assert torch.equal(model.base.model.embed_tokens.weight.to(words.device), words)


def test_retention_compares_the_texts_own_words(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path
) -> None:
    """Law: the penalty is that of the logits at the words, whatever stands between them."""
    prompts = PromptEncoder.of(model)
    rows = [prompts.whole_text(text) for text in TEXTS]
    marked = [prompts.whole_text(text, present={"touch": 1}) for text in TEXTS]
    pools = distractor_pools(KINDS, {"touch": samples}, {
        "touch": model.modality("touch").frame_cache(tmp_path)
    }, seed=3)  # fmt: skip
    seen = []

    class Recording(DistillationRegularizer):
        def penalty_of(self, comparison):  # type: ignore[no-untyped-def]  # as above
            seen.append((comparison.logits.detach(), comparison.base_logits, comparison.mask))
            return super().penalty_of(comparison)

    kept = CounterfactualRetention(
        model, [WeightedRegularizer(1.0, Recording())], rows, pools,
        kinds=KINDS, batch_size=4, seed=3, pad=PAD, marked=marked,
    )  # fmt: skip
    loss = loss_of(kept, 0)
    loss.backward()
    assert table(model).grad is not None
    ((logits, base, mask),) = seen
    assert logits.shape == base.shape
    assert mask.sum() == sum(map(len, rows))
    read = [rows[place] for place in kept.order.step(0)]
    row = next(n for n, one in enumerate(read) if len(one) == 2)
    first = sum(map(len, read[:row]))  # w9 <touch> w10: its first word is before the markers
    assert_same_sums(logits[0, first], base[0, first], FORWARD)
    assert not torch.allclose(logits[0, first + 1], base[0, first + 1])


def test_evaluation_compares_the_texts_own_words(model: SafeModel, examples: list[Example]) -> None:
    """Law: a word before the markers, which nothing has touched, is found to agree."""
    unanswered = [Example(prompt="w3 w4 w5 <touch>", answer="", samples=examples[0].samples)]
    with torch.no_grad():
        kept = retention(model, "touch", ["w6 w7"], unanswered)
    assert kept.relevant.agreement.value == 1.0
    assert kept.relevant.kl.value < 1e-6
    assert kept.counterfactual["noise"].kl.value > 1e-3


def test_a_shut_sense_with_markers_evaluates_as_the_base(
    model: SafeModel, examples: list[Example]
) -> None:
    """Law: evaluation finds gate 0 and absence exact, and answers whole at every gate."""
    having = examples[:-1]
    with torch.no_grad():
        shut = gate_zero(model, "touch", having, max_new_tokens=3)
        kept = retention(model, "touch", [text.replace("<touch>", "") for text in TEXTS], having)
    assert shut.logits_identical
    assert shut.tokens_identical
    assert kept.absent.identical
    off = answer(model, having, gate={"touch": 0.0}, max_new_tokens=3)
    base = answer(model, [Example(prompt=e.prompt, answer="") for e in having], max_new_tokens=3)
    assert off == base
