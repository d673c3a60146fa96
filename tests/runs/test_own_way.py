"""docs/training-your-own-way.md, as it is written, on tiny models and rows."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.core.model import SafeModel
from tests.runs.test_python import Sources, by_hand, lines

PAGE = (Path(__file__).parents[2] / "docs" / "training-your-own-way.md").read_text("utf-8")
CALL, LOADING, LOOP, TRAINER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PLAIN: Sources = {
    "max_steps": 4, "batch_size": 3, "retention_batch_size": 2, "projector_learning_rate": 1e-2,
    "fusion_learning_rate": 1e-2, "warmup_steps": 2, "align_steps": 3, "align_weight": 0.5,
    "balance": True, "speedups": "off", "cache": ["frames"], "question": "what is this",
}  # fmt: skip


def tiny(code: str, world: Path) -> str:
    """The code of the page with tiny checkpoints and few steps."""
    for old, new in (
        ('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(world / "base"))),
        ('"openai/whisper-tiny.en"', repr(str(world / "whisper"))),
        ("max_steps=200", "max_steps=3, batch_size=2, evaluation={'bootstrap': 10}"),
        ("align_steps=150", "align_steps=2"),
    ):
        code = code.replace(old, new)
    return code


def write_datasets(world: Path, folder: Path) -> None:
    """What the page loads: datasets with a column of sounds, and of texts."""
    from datasets import Dataset, DatasetDict

    notes, texts = DatasetDict(), DatasetDict()
    for split, name in (("train", "train"), ("test", "test")):
        rows = lines(world / f"{name}.jsonl")
        sounds = [(world / f"{name}{n}.wav").read_bytes() for n in range(len(rows))]
        notes[split] = Dataset.from_list(
            [
                {"audio": {"bytes": sound, "path": None}, "answer": row["answer"]}
                for row, sound in zip(rows, sounds, strict=True)
            ]
        )
    for split, name in (("train", "texts"), ("test", "texts_test")):
        texts[split] = Dataset.from_list(lines(world / f"{name}.jsonl"))
    notes.save_to_disk(folder / "notes")
    texts.save_to_disk(folder / "texts")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory'")  # of a Trainer as anyone makes it, on a CPU
def test_the_page_is_true(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: what the page shows runs as it is, and what it trains loads in another process."""
    write_datasets(world, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(tiny(CALL, world), "CALL", "exec"), names)
    assert '[[retention]]\nuse = "distillation"' in capsys.readouterr().out
    assert (tmp_path / "runs/notes/report.html").is_file()
    expected = answered(names["model"])
    telling = f"{LOADING}\nfrom tests.runs.test_own_way import answered\nprint(answered(model))"
    found = subprocess.run(
        [sys.executable, "-c", telling], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert found.stdout.strip() == expected
    loop = tiny(LOOP, world).replace(", evaluation={'bootstrap': 10}", "")
    exec(compile(loop, "LOOP", "exec"), names)
    exec(compile(tiny(TRAINER, world), "TRAINER", "exec"), names)
    assert (tmp_path / "checkpoints/checkpoint-4/model.safetensors").is_file()
    assert safe_framework.load(tmp_path / "adapter").modalities.keys() == {"audio"}


def answered(model: SafeModel) -> str:
    """Every bit of what a model predicts beside a sound."""
    sound = np.sin(np.arange(4000) / 3).astype(np.float32)
    batch = model.processor(text=["what is this"], audio=[sound], sampling_rate=16_000)
    with torch.no_grad():
        return model(**batch).logits.numpy().tobytes().hex()


QUICKSTART: Sources = {
    **PLAIN,
    "question": {
        "bank": "labelled-clips", "thing": "sound", "replace": True,
        "kinds": {"name": 2, "choose": 1, "yes-no": 1},
    },
    "regularizers": [
        {
            "use": "distillation", "weight": 6.0, "temperature": 2.0,
            "counterfactual": ["shuffled", "silent", "shuffled", "noise"],
        }
    ],
}  # fmt: skip
"""Settings of the shipped recipe, for few steps."""


def seeded(world: Path, *, draws: bool) -> SafeModel:
    """A model whose parts are the same each time; its projector draws in training or does not."""
    torch.manual_seed(0)
    return by_hand(world, dropout=0.2, noise=0.4, attend="answer") if draws else by_hand(world)


@pytest.mark.parametrize("options", [PLAIN, QUICKSTART], ids=["plain", "quickstart"])
def test_a_plain_loop_is_the_run(world: Path, tmp_path: Path, options: Sources) -> None:
    """Law: the page's loop has a run's losses and ends with its weights, but for rounding.

    Dropout and noise draw the same in both.
    """
    rows, texts = lines(world / "train.jsonl"), lines(world / "texts.jsonl")
    draws = options is QUICKSTART
    trained = seeded(world, draws=draws)
    ran = safe_framework.train(
        trained, rows, retention=texts, output=tmp_path / "run", quiet=True, **options
    )
    model = seeded(world, draws=draws)
    ready = safe_framework.prepare_training(model, rows, retention=texts, **options)
    start = {name: one.clone() for name, one in model.trainable_parameters().items()}
    losses = []
    optimizer = ready.optimizer()
    schedule = ready.schedule(optimizer)
    model.train()
    for step, batch in enumerate(ready.batches):
        loss = model(**batch).loss + ready.retention_loss(step) + ready.alignment_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ready.parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert len(losses) == options["max_steps"]
    assert np.mean(losses) == pytest.approx(ran.log[-1]["loss"], rel=1e-5)
    now, moved = model.trainable_parameters(), 0.0
    for name, parameter in trained.trainable_parameters().items():
        torch.testing.assert_close(now[name], parameter, rtol=1e-4, atol=1e-5)
        moved = max(moved, (parameter - start[name]).abs().max().item())
    assert moved > 1e-3


def test_a_trainer_on_these_batches_is_the_loop(world: Path, tmp_path: Path) -> None:
    """Law: a plain Trainer and a plain loop that are given the same batches end alike."""
    from transformers import Trainer, TrainingArguments

    rows = lines(world / "train.jsonl")
    given = {**PLAIN, "regularizers": [], "align_weight": 0.0}
    looped, trained = seeded(world, draws=False), seeded(world, draws=False)
    ready = safe_framework.prepare_training(looped, rows, **given)
    optimizer = ready.optimizer()
    schedule = ready.schedule(optimizer)
    looped.train()
    for batch in ready.batches:
        looped(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(ready.parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    ready = safe_framework.prepare_training(trained, rows, **given)
    start = {name: one.clone() for name, one in trained.trainable_parameters().items()}
    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, per_device_train_batch_size=1,
        max_steps=given["max_steps"], train_sampling_strategy="sequential", save_strategy="no",
        report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    optimizer = ready.optimizer()
    Trainer(
        trained, arguments, train_dataset=list(ready.batches), data_collator=lambda one: one[0],
        optimizers=(optimizer, ready.schedule(optimizer)),
    ).train()  # fmt: skip
    now, moved = trained.trainable_parameters(), 0.0
    for name, parameter in looped.trainable_parameters().items():
        torch.testing.assert_close(now[name], parameter, rtol=1e-4, atol=1e-5)
        moved = max(moved, (parameter - start[name]).abs().max().item())
    assert moved > 1e-3
