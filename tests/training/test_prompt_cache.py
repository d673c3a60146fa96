"""Where a modality acts on answers, a step runs no prompt: its keys and values are stored."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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


def tried() -> tuple[Any, Callable[[], PromptCache | None]]:
    """The caches of a run on four rows, and the trial of their prompts."""
    model = model_with_upper_modality(llama(), torch.float32, "answer")
    examples = task(torch.float32)
    caches = caches_for(model, examples, ("prefix",))
    rows, starts = [e.row for e in examples], [e.answer_start for e in examples]
    return caches, lambda: PromptCache.tried(model, caches, rows, starts)


def fails_behind_a_cache(error: Exception) -> Callable[..., None]:
    """A hook on the base, by which calls that go on from kept keys fail."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise error

    return hook


def test_a_base_that_goes_on_from_no_cache_is_told_of() -> None:
    """Law: what a base raises behind kept prompts costs the speed-up, and one note says so."""
    caches, trial = tried()
    hook = fails_behind_a_cache(NotImplementedError("no cache of mine"))
    caches.model.base.model.register_forward_pre_hook(hook, with_kwargs=True)
    assert trial() is None
    (note,) = caches.notes
    assert note.startswith("prompts: they run at each step")
    assert "NotImplementedError: no cache of mine" in note


def test_a_base_with_another_cache_is_told_of() -> None:
    """Law: a cache without keys of each position is no reason to fail, and one to say so."""
    caches, trial = tried()

    def kept_otherwise(module: Any, args: Any, out: Any) -> Any:
        if out.past_key_values is not None:
            out.past_key_values = SimpleNamespace(layers=[SimpleNamespace(states=1)])
        return out

    caches.model.base.register_forward_hook(kept_otherwise)
    assert trial() is None
    (note,) = caches.notes
    assert "a `SimpleNamespace` holds no keys of each position" in note


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), OSError(28, "No space left"), MemoryError()]
)
def test_what_is_not_the_bases_doing_is_raised(error: Exception) -> None:
    """Law: a lack of memory or disk in a call of the base is no property of the base."""
    caches, trial = tried()
    hook = fails_behind_a_cache(error)
    caches.model.base.model.register_forward_pre_hook(hook, with_kwargs=True)
    with pytest.raises(type(error)):
        trial()


def test_a_full_disk_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: where nothing can be kept, the run stops instead of going on slowly."""
    _, trial = tried()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safe_framework.training.compute.activation_cache.atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        trial()


def test_a_mistake_of_our_own_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: an error beside the base's calls hides behind no slower run."""
    _, trial = tried()

    def mistaken(*_: Any) -> None:
        raise TypeError("of our own")

    monkeypatch.setattr("safe_framework.training.compute.prompt_cache.with_past", mistaken)
    with pytest.raises(TypeError, match="of our own"):
        trial()


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
