"""Where a modality acts on answers, a step runs no prompt: its keys and values are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safe_framework.core.layer_hooks import get_hidden_states
from safe_framework.training.batches import AnswerCollator
from safe_framework.training.compute.prompt_cache import PromptCache
from safe_framework.training.distributed import WHOLE_STEP
from safe_framework.training.objective import Objective, step_totals
from tests.support.toys import DIM, PAD, llama
from tests.training.test_speedups import caches_for, model_with_upper_modality, task


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is kept of the base in a folder of the test's own."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "home"))


def objective_of(attend: Any) -> tuple[Objective, Any, PromptCache | None]:
    """The task's loss on four rows, and what is stored of their prompts."""
    model = model_with_upper_modality(llama(), torch.float32, attend)
    examples = task(torch.float32)
    caches = caches_for(model, examples, ("prefix",))
    rows, starts = [e.row for e in examples], [e.answer_start for e in examples]
    stored = PromptCache.tried(model, caches, rows, starts)
    states = caches.task_texts(rows)
    made = Objective(model, caches=caches, states=states, prompt_cache=stored)
    step = AnswerCollator({"touch": DIM}, PAD, attends=model.attends).calls(examples)
    return made, step, stored


def test_the_layers_read_answers_alone() -> None:
    """Law: from the first fused layer on, no position before an answer is computed in a step."""
    objective, step, stored = objective_of("answer")
    assert stored is not None
    totals = step_totals([step], ["touch"])
    objective(step["calls"], totals, 0, WHOLE_STEP)  # computes what is stored
    seen: list[int] = []
    layers: Any = objective.model.stack.of(objective.model.base)
    layers[-1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(get_hidden_states(args, kwargs).shape[1]),
        with_kwargs=True,
    )
    objective(step["calls"], totals, 1, WHOLE_STEP)
    assert seen == [2]  # what predicts a word and the end


def test_autocast_finds_keys_of_its_own_type() -> None:
    """Law: in lower precision, stored keys stand beside new ones of that precision."""
    objective, step, _ = objective_of("answer")
    totals = step_totals([step], ["touch"])
    plain, _ = objective(step["calls"], totals, 0, WHOLE_STEP)
    with torch.autocast("cpu", torch.bfloat16):
        lower, _ = objective(step["calls"], totals, 0, WHOLE_STEP)
    torch.testing.assert_close(lower, plain, rtol=0.05, atol=0.05)


def test_a_prompt_that_hears_is_run() -> None:
    """Law: with `attend = "all"`, a prompt depends on its sample, and nothing of it is stored."""
    assert objective_of("all")[2] is None
