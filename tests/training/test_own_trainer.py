"""A SafeModel in a Trainer of one's own, which knows nothing of this library."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from safe_framework.core.compilation import NotCompiled
from safe_framework.core.model import SafeModel
from safe_framework.errors import KeywordError
from safe_framework.utils.tensors import bitwise_equal
from tests.support.toys import bart, gpt2, llama, t5, tokenizer
from tests.training.conftest import model_with_modality

Rows = list[dict[str, Tensor]]
ANSWERS = ["w5", "w6 w7 w8"]
"""Of other lengths: what a mean over each would get wrong."""


def sensing(base: nn.Module) -> SafeModel:
    """The base with a modality whose weights are felt."""
    model = model_with_modality(base)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_(std=0.5)
    return model


def rows_for(model: SafeModel) -> Rows:
    """One ready batch of one row for each answer, all of one length."""
    drawn = np.random.default_rng(0)
    whole = model.prepare_multimodal_inputs(
        ["w3 w4", "w3 w4"], touch=[drawn.normal(size=(3, 4)).astype("f4") for _ in ANSWERS],
        answers=ANSWERS, training_mode=True,
    )  # fmt: skip
    return [{key: value[row : row + 1] for key, value in whole.items()} for row in range(2)]


def without_labels(rows: Rows) -> Rows:
    """The same rows, ready to be answered."""
    return [{key: value for key, value in row.items() if key != "labels"} for row in rows]


def joined(rows: Rows) -> dict[str, Tensor]:
    """Ready rows as one batch."""
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def trainer(model: Any, rows: Rows, folder: Path, **options: Any) -> Trainer:
    """A plain Trainer of two steps."""
    settings = {
        "max_steps": 2, "remove_unused_columns": False, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **settings)
    return Trainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=joined
    )


def gradient(model: SafeModel) -> Tensor:
    """Every gradient of the step, one behind another."""
    found = [one.grad for one in model.trainable_parameters().values()]
    return torch.cat([one.flatten() for one in found if one is not None])


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_holds_the_adapter_alone(tied: bool, tmp_path: Path) -> None:
    """Law: tied or not, no tensor of the base is saved, and what is saved can be loaded again."""
    model = sensing(llama(tie_word_embeddings=tied))
    trainer(model, rows_for(model), tmp_path, max_steps=1, save_steps=1).train()
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert saved.keys() == model.adapter_tensors().keys()
    fresh = model_with_modality(llama(tie_word_embeddings=tied))
    assert fresh.load_state_dict(saved) == ([], [])
    for key, tensor in fresh.adapter_tensors().items():
        assert bitwise_equal(tensor, model.adapter_tensors()[key])


def test_a_resumed_trainer_ends_at_the_same_weights(tmp_path: Path) -> None:
    """Law: a run that is resumed from a checkpoint of a plain Trainer is the unbroken one."""
    whole, half = sensing(llama()), sensing(llama())
    rows = rows_for(whole)
    trainer(whole, rows, tmp_path, save_steps=1).train()
    trainer(half, rows, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for key, tensor in half.adapter_tensors().items():
        assert bitwise_equal(tensor, whole.adapter_tensors()[key])


@pytest.mark.parametrize("base", [llama, t5])
def test_no_column_of_ours_is_dropped(base: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Law: with `remove_unused_columns` left as it is, every input reaches the model."""
    weights = []
    for drops in (False, True):
        model = sensing(base())
        rows = (
            [{**row, "note": "of nobody"} for row in rows_for(model)] if drops else rows_for(model)
        )
        trainer(model, rows, tmp_path, remove_unused_columns=drops, save_strategy="no").train()
        weights.append(model.adapter_tensors())
    for key, tensor in weights[0].items():
        assert bitwise_equal(tensor, weights[1][key])


def test_labels_alone_are_told_of(tmp_path: Path) -> None:
    """Law: where a Trainer has dropped texts and samples, an error names the fix."""
    model = sensing(llama())
    rows = [{"labels": row["labels"]} for row in rows_for(model)]
    with pytest.raises(KeywordError, match="hint: set `remove_unused_columns=False`"):
        trainer(model, rows, tmp_path).train()


@pytest.mark.parametrize("base", [llama, gpt2, t5, bart])
def test_a_step_in_parts_is_the_whole_step(base: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Law: gradients are those of the whole step, whatever the base's loss makes of its count."""
    model = sensing(base())
    rows, seen = rows_for(model), list[Tensor]()
    for size, parts in ((2, 1), (1, 2)):
        stepping = trainer(
            model, rows, tmp_path, max_steps=1, learning_rate=0.0, max_grad_norm=0.0,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            save_strategy="no",
        )  # fmt: skip
        stepping.create_optimizer()
        optimizer: Any = stepping.optimizer
        optimizer.register_step_pre_hook(lambda *_: seen.append(gradient(model)))
        stepping.train()
    whole, in_parts = seen
    assert whole.norm() > 0
    assert (whole - in_parts).norm() < 1e-3 * whole.norm()  # of sums in another order


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    """Law: the loss of held-out rows is measured, and a run that keeps its best model finishes."""
    model = sensing(llama())
    rows = rows_for(model)
    assert "eval_loss" in trainer(model, rows, tmp_path).evaluate()
    keeping = trainer(
        model, rows, tmp_path, eval_strategy="steps", eval_steps=1, save_steps=1,
        load_best_model_at_end=True,
    )  # fmt: skip
    keeping.train()
    best = load_file(Path(str(keeping.state.best_model_checkpoint)) / "model.safetensors")
    for key, tensor in model.adapter_tensors().items():
        assert bitwise_equal(tensor, best[key])


def test_it_predicts_as_the_bare_base_does(tmp_path: Path) -> None:
    """Law: predictions are logits for each row, without keys and values that were kept."""
    model = sensing(llama())
    rows = rows_for(model)
    found: Any = trainer(model, rows, tmp_path).predict(rows).predictions  # type: ignore[arg-type]
    texts = [{key: one for key, one in row.items() if "__" not in key} for row in rows]
    alone: Any = trainer(model.base, texts, tmp_path).predict(texts).predictions  # type: ignore[arg-type]
    assert found.shape == alone.shape
    assert not np.array_equal(found, alone)


def test_the_base_keeps_its_config(tmp_path: Path) -> None:
    """Law: a Trainer that is given the tokenizer changes nothing in the base's config."""
    model = sensing(llama(pad_token_id=None))
    before = model.base.config.to_dict()
    args = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    Trainer(
        model=model, args=args, train_dataset=rows_for(model), data_collator=joined,
        processing_class=tokenizer(),
    ).train()  # fmt: skip
    assert model.base.config.to_dict() == before


def test_a_compiled_trainer_trains_as_a_plain_one(tmp_path: Path) -> None:
    """Law: a Trainer's `torch_compile` encloses no hook of ours, and what to call is told."""
    found = []
    for compiled in (False, True):
        model = sensing(llama())
        rows = rows_for(model)
        flags = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        told = (
            pytest.warns(NotCompiled, match="safe_framework.compile") if compiled else nullcontext()
        )
        with told:
            trainer(model, rows, tmp_path, save_strategy="no", **flags).train()
        found.append(model.adapter_tensors())
    for key, tensor in found[0].items():
        assert bitwise_equal(tensor, found[1][key])


def test_a_trainer_of_sequences_generates(tmp_path: Path) -> None:
    """Law: a Seq2SeqTrainer that predicts by `generate` does, and the base's settings stay."""
    model = sensing(t5())
    before = model.base.generation_config.to_dict()
    rows = rows_for(model)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, save_strategy="no",
        predict_with_generate=True, per_device_eval_batch_size=1,
    )  # fmt: skip
    made = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=joined
    )
    made.train()
    found: Any = made.predict(rows, max_new_tokens=3).predictions  # type: ignore[arg-type]
    expected = [model.generate(**row, max_new_tokens=3)[0] for row in without_labels(rows)]
    for row, ids in zip(found, expected, strict=True):
        assert row[: len(ids)].tolist() == ids.tolist()
    assert model.base.generation_config.to_dict() == before


def test_the_processor_is_saved_beside_a_checkpoint(tmp_path: Path) -> None:
    """Law: a Trainer may be given the model's processor, and writes the base's own with it."""
    model = sensing(llama())
    args = TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(
        model=model, args=args, train_dataset=rows_for(model), data_collator=joined,
        processing_class=model.processor,
    ).train()  # fmt: skip
    saved = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-1")
    assert saved.get_vocab() == tokenizer().get_vocab()


def test_a_count_that_the_base_ignores_is_read_in_training_alone() -> None:
    """Law: out of training, a call gives what the base gives for it, its loss included."""
    model = sensing(t5())
    rows = joined(rows_for(model))
    text = {key: value for key, value in rows.items() if "__" not in key}
    assert bitwise_equal(
        model(**text, num_items_in_batch=7).loss, model.base(**text, num_items_in_batch=7).loss
    )
