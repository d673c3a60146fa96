"""The trainer on a tiny model: what it changes, what it leaves, what it logs."""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError, SafeError
from safe_framework.evaluation.alignment import answer_embeddings
from safe_framework.interfaces.types import Tokens
from safe_framework.training import trainer as trainer_module
from safe_framework.training.alignment import Alignment
from safe_framework.training.batches import AnswerCollator, TokenizedExample, modality_columns
from safe_framework.training.distributed import WHOLE_STEP
from safe_framework.training.objective import Objective, step_totals
from safe_framework.training.retention.counterfactual import CounterfactualRetention
from safe_framework.training.trainer import SafeTrainer, training_arguments
from safe_framework.utils.hashing import fingerprint
from tests.support.tolerance import BACKWARD, FORWARD, assert_same_sums, rounding
from tests.support.toys import END, PAD, llama
from tests.training.conftest import model_with_modality

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
    trainer = SafeTrainer(model, training_arguments(spec, folder), examples, spec, pad=PAD, **parts)
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
    """Law: after a few steps no trainable parameter is what it was.

    Only second samples move the vectors that tell them from the first: there is none here.
    """
    before = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    trained(model, examples, tmp_path)
    after = {name: p.to(before[name].device) for name, p in model.trainable_parameters().items()}
    still = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert still == ["touch.segments.weight"]


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
        trainer = SafeTrainer(model, training_arguments(spec, tmp_path), examples, spec, pad=PAD)
        trainer.data_collator = list
        loaded = [example for batch in trainer.get_train_dataloader() for example in batch]
        orders.append([examples.index(example) for example in loaded])
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
    """Law: a batch in which the modality is absent everywhere has an alignment loss of 0."""
    alignment = Alignment(model, ["w10", "w11"])
    batch = modality_columns("touch", [None, None], 4)
    assert alignment.batch_loss(model, batch, ["w10", "w11"]).item() == 0


@pytest.mark.slow
def test_parts_add_up_to_a_step(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
) -> None:
    """Law: in parts, a run logs the losses of one whose steps are whole, and has its weights.

    Answers are of unequal lengths, and some examples lack the modality.
    """
    uneven = [
        attrs.evolve(
            example,
            answer=[*[7] * number, *example.answer],
            frames={} if number % 3 == 1 else example.frames,
        )
        for number, example in enumerate(examples)
    ]
    found = []
    for parts in (1, 2):
        copy = model_with_modality(llama())
        spec = attrs.evolve(
            SPEC, batch_size=4, retention_batch_size=2, gradient_accumulation_steps=parts,
            align_weight=0.5,
        )  # fmt: skip
        alignment = Alignment(copy, [example.text for example in uneven])
        kept = CounterfactualRetention(
            copy, retention.methods, retention.rows, retention.pools,
            kinds=retention.kinds, batch_size=2, seed=3, pad=PAD,
        )  # fmt: skip
        trainer = trained(
            copy, uneven, tmp_path / str(parts), spec=spec, retention=kept, alignment=alignment
        )
        found.append((trainer.state.log_history[0], copy.trainable_parameters()))
    (whole, weights), (split, others) = found
    for loss in ("loss", "task_loss", "retention_loss"):
        assert split[loss] == pytest.approx(whole[loss], rel=rounding(FORWARD))
    assert whole["retention_loss"] > 0
    assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=rounding(BACKWARD))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_step_in_parts_resumes_bit_for_bit(
    examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """Law: in parts and with dropout, a resumed run ends at the bits of an unbroken one."""
    found = []
    for start in (None, tmp_path / "whole" / "checkpoint-3"):
        model = model_with_modality(llama())
        dropouts = [m for m in model.modality("touch").modules() if isinstance(m, nn.Dropout)]
        assert dropouts
        for dropout in dropouts:
            dropout.p = 0.3
        spec = attrs.evolve(SPEC, batch_size=4, gradient_accumulation_steps=2, save_steps=3)
        folder = tmp_path / ("whole" if start is None else "resumed")
        trainer = SafeTrainer(model, training_arguments(spec, folder), examples, spec, pad=PAD)
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        assert trainer.state.global_step == SPEC.max_steps
        found.append(model.trainable_parameters())
    unbroken, resumed = found
    assert not [name for name, p in unbroken.items() if not torch.equal(p, resumed[name])]


def test_a_checkpoint_holds_what_is_trained_alone(
    model: SafeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """Law: no tensor of the base is in a checkpoint's weights or in its optimizer's state."""
    trained(model, examples, tmp_path)
    (folder,) = tmp_path.glob("checkpoint-*")
    (weights,) = folder.glob("*.safetensors")
    assert load_file(weights).keys() == model.adapter_tensors().keys()
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == len(model.trainable_parameters())
    assert not list(folder.glob("*.bin"))


def test_a_whole_state_is_loaded_as_a_module_loads_it(model: SafeModel) -> None:
    """Law: an objective takes its whole state back, as DeepSpeed gives it, and names what lacks."""
    objective = Objective(model)
    whole = {key: tensor.clone() for key, tensor in objective.state_dict().items()}
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(1)
    objective.load_state_dict(whole)
    after = objective.state_dict()
    assert not [key for key, tensor in whole.items() if not torch.equal(tensor, after[key])]
    lacking, _ = whole.popitem()
    with pytest.raises(AdapterError, match=lacking.removeprefix("model.")):
        objective.load_state_dict(whole)


def test_rows_that_cannot_be_shared_out_are_refused(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
) -> None:
    """Law: a batch that does not split evenly is an error that names the key and the multiple."""
    spec = attrs.evolve(SPEC, gradient_accumulation_steps=2)
    words = "`batch_size` of 3 cannot be shared .* of 2\nhint: make `batch_size` a multiple of 2"
    with pytest.raises(SafeError, match=words):
        training_arguments(spec, tmp_path)
    spec = attrs.evolve(spec, batch_size=4, retention_batch_size=5)
    with pytest.raises(SafeError, match=r"^`retention_batch_size` of 5 cannot be shared"):
        trained(model, examples, tmp_path, spec=spec, retention=retention)


@pytest.mark.slow
def test_bfloat16_computes_by_autocast(
    model: SafeModel,
    examples: list[TokenizedExample],
    retention: CounterfactualRetention,
    tmp_path: Path,
) -> None:
    """Law: layers compute in bfloat16, weights stay float32, and nothing is lost at the base."""
    seen = set()
    layer = model.base.get_submodule("model.layers.0.mlp.up_proj")
    spec = attrs.evolve(SPEC, precision="bfloat16")
    trainer = SafeTrainer(
        model, training_arguments(spec, tmp_path), examples, spec, pad=PAD, retention=retention
    )
    handle = layer.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    trainer.train()
    handle.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_a_batch_without_the_modality_gives_zeros(
    model: SafeModel, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    """Law: where no example has the modality, the loss is the base's, and gradients are zeros."""
    bare = [attrs.evolve(example, frames={}) for example in examples]
    step = AnswerCollator({"touch": 4}, PAD).calls(bare)
    (batch,) = step["calls"]
    loss, _ = Objective(model)([batch], step_totals([step], ["touch"]), 0, WHOLE_STEP)
    expected = model.base(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
    assert_same_sums(loss, expected.loss, FORWARD)
    loss.backward()
    gradients = [p.grad for p in model.trainable_parameters().values()]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_tracker_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a tracker that is not installed is an error that says how to install it."""
    monkeypatch.setattr(trainer_module, "find_spec", lambda name: None)
    with pytest.raises(SafeError, match=r"not installed\nhint: pip install trackio$"):
        training_arguments(attrs.evolve(SPEC, report_to="trackio"), tmp_path)


def test_a_tracker_is_sent_what_is_logged(
    model: SafeModel,
    examples: list[TokenizedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: the tracker that a recipe names gets each logged row, with losses and gates."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    rows: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            rows.append(dict(logs))

    monkeypatch.setattr(trainer_module, "find_spec", lambda name: True)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    trained(model, examples, tmp_path, spec=attrs.evolve(SPEC, report_to="wandb"))
    assert {"loss", "task_loss", "retention_loss", "gate/touch", "learning_rate"} <= rows[0].keys()
