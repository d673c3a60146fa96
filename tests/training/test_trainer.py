"""The trainer on a tiny model: what it changes, what it leaves, what it logs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_framework._recipe import TrainingSpec
from safe_framework.fingerprint import fingerprint
from safe_framework.model import SafeModel
from safe_framework.shapes import Tokens
from safe_framework.training.align import Alignment, answer_embeddings
from safe_framework.training.batches import TokenizedExample, carry
from safe_framework.training.retention import CounterfactualRetention
from safe_framework.training.trainer import SafeTrainer, arguments
from tests.toys import END, PAD

SPEC = TrainingSpec(
    max_steps=6, batch_size=3, projector_learning_rate=1e-2, fusion_learning_rate=1e-2,
    warmup_steps=0, save_steps=100, schedule="constant", max_grad_norm=100.0,
)  # fmt: skip


@pytest.fixture
def examples(model: SafeModel, samples: list[np.ndarray]) -> list[TokenizedExample]:
    """Two answers, told apart by the sample."""
    encoded = model.encode("touch", samples)
    return [
        TokenizedExample(
            [5, 6], [10 + n % 2, END], f"w{10 + n % 2}", {"touch": encoded.rows(torch.tensor([n]))}
        )
        for n in range(len(samples))
    ]


def trained(
    model: SafeModel, examples: list[TokenizedExample], folder: Path, **parts: Any
) -> SafeTrainer:
    """A trainer that has trained."""
    spec = parts.pop("spec", SPEC)
    trainer = SafeTrainer(model, arguments(spec, folder), examples, spec, pad=PAD, **parts)
    trainer.train()
    return trainer


def test_base_and_encoder_stay_bit_for_bit(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
) -> None:
    """Law: training changes no bit of base and encoder, and leaves no gradient on them."""
    frozen = (model.base, model.modality("touch").encoder)
    before = [fingerprint(module) for module in frozen]
    trained(model, examples, tmp_path, retention=retention)
    assert [fingerprint(module) for module in frozen] == before
    assert not [p for module in frozen for p in module.parameters() if p.grad is not None]


def test_every_trainable_parameter_moves(
    model: SafeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """Law: after a few steps no trainable parameter is what it was."""
    before = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    trained(model, examples, tmp_path)
    after = model.trainable_parameters()
    assert not [name for name, tensor in before.items() if torch.equal(tensor, after[name])]


def test_the_loss_falls(model: SafeModel, examples: list[TokenizedExample], tmp_path: Path) -> None:
    """Law: the task is learned: the loss of the last steps is well below that of the first."""
    spec = TrainingSpec(
        max_steps=60, batch_size=6, projector_learning_rate=2e-2, fusion_learning_rate=2e-2,
        warmup_steps=0, save_steps=100, schedule="constant",
    )  # fmt: skip
    log = [row for row in trained(model, examples, tmp_path, spec=spec).state.log_history]
    losses = [row["task_loss"] for row in log if "task_loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_both_losses_and_the_gate_are_logged(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
) -> None:
    """Law: a logged row holds the two losses, whose sum is the loss, and each gate."""
    trainer = trained(model, examples, tmp_path, retention=retention)
    (row,) = [row for row in trainer.state.log_history if "task_loss" in row]
    assert row["gate/touch"] == 1.0
    assert row["retention_loss"] > 0
    assert row["loss"] == pytest.approx(row["task_loss"] + row["retention_loss"], abs=1e-3)


def test_the_order_is_the_specs_alone(
    model: SafeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """Law: the order of examples depends on the seed, and holds each pass's examples once."""
    orders = []
    for seed in (0, 0, 1):
        spec = TrainingSpec(max_steps=4, batch_size=3, seed=seed)
        trainer = SafeTrainer(model, arguments(spec, tmp_path), examples, spec, pad=PAD)
        orders.append(list(trainer._get_train_sampler()))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted([*range(6)] * 2)


def test_retention_may_constrain_after_each_step(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: a method's `constrain` is called once after each optimizer step."""
    calls: list[object] = []
    monkeypatch.setattr(type(retention.methods[0].method), "constrain", lambda *a: calls.append(a))
    trained(model, examples, tmp_path, retention=retention)
    assert len(calls) == SPEC.max_steps


def test_alignment_points_at_the_answer(model: SafeModel) -> None:
    """Law: tokens that lie on their answer's embedding lose less than those on another's."""
    alignment = Alignment(model, ["w10", "w11", "w10", "w12"])
    assert alignment.candidates == ["w10", "w11", "w12"]
    wanted = alignment.indices(["w11", "w12"])
    mask = torch.ones(2, 3, dtype=torch.bool)
    near = alignment.targets[wanted].unsqueeze(1).expand(-1, 3, -1)
    far = alignment.targets[wanted.flip(0)].unsqueeze(1).expand(-1, 3, -1)
    assert alignment.loss(Tokens(near, mask), wanted) < alignment.loss(Tokens(far, mask), wanted)


def test_answer_embeddings_are_centred_unit_vectors(model: SafeModel) -> None:
    """Law: each answer is a unit vector, and a single answer is one too."""
    for answers in (["w10", "w11 w12", "w13"], ["w10"]):
        vectors = answer_embeddings(model, answers)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(answers)))


def test_alignment_in_the_loss_skips_absent_rows(model: SafeModel) -> None:
    """Law: a batch in which the sense is absent everywhere has an alignment loss of 0."""
    alignment = Alignment(model, ["w10", "w11"])
    batch = carry("touch", [None, None], 4)
    assert alignment.batch_loss(model, batch, ["w10", "w11"]).item() == 0
