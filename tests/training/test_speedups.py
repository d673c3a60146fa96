"""`speedups = "off"` is the plain way to compute a step, which all others have to agree with."""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from safe_framework.config.schema import Attend, TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.samples import Several
from safe_framework.interfaces.types import Frames
from safe_framework.training.alignment import Alignment
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.compute.activation_cache import ActivationCaches, ActivationStore
from safe_framework.training.compute.forward import ForwardPlanner, PlainForward
from safe_framework.training.compute.prompt_cache import PromptCache
from safe_framework.training.distributed import WHOLE_STEP
from safe_framework.training.objective import Objective, step_totals
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    WeightedRegularizer,
)
from safe_framework.training.trainer import SafeTrainer, training_arguments
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.toys import (
    DIM,
    END,
    HIDDEN,
    LAYERS,
    PAD,
    VOCABULARY,
    gpt2,
    llama,
    lora,
    opt,
    tokenizer,
)
from tests.training.conftest import ROWS, ArrayEncoder, perturb

BASES = {"llama": llama, "gpt2": gpt2, "opt": opt}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
PROMPTS = [[5, 6], [7], [8, 9, 10, 11, 12], [13, 14, 15]]
SPEC = TrainingSpec(max_steps=1, batch_size=4, retention_batch_size=4, warmup_steps=0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is kept of the base in a folder of the test's own."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "home"))


def model_with_upper_modality(base: Any, dtype: torch.dtype, attend: Attend = "all") -> SafeModel:
    """A base with a trained modality in its last layer, so that a frozen prefix lies below."""
    torch.manual_seed(0)
    model = SafeModel(base.to(dtype), tokenizer())
    model.add_modality(
        "touch",
        encoder=ArrayEncoder(),
        projector=StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8, dropout=0.0),
        fusion=lora(model, layers=[-1]),
        attend=attend,
    )
    model.modalities.to(dtype)
    perturb(model)
    return model.eval()


def frames(count: int, dtype: torch.dtype) -> list[Frames]:
    """One row of frames each, of unequal lengths."""
    drawn = torch.Generator().manual_seed(5)
    values = [torch.randn(1, 1 + n % 3, DIM, generator=drawn).to(dtype) for n in range(count)]
    return [Frames(one, torch.ones(one.shape[:2], dtype=torch.bool)) for one in values]


def task(dtype: torch.dtype) -> list[TokenizedExample]:
    """Four rows of unequal lengths, one of them without a sample, and one with two."""
    *single, second = frames(5, dtype)
    held = [*single[:2], None, Several([single[3], second])]
    return [
        TokenizedExample(prompt, [20 + n, END], f"w{20 + n}", {} if one is None else {"touch": one})
        for n, (prompt, one) in enumerate(zip(PROMPTS, held, strict=True))
    ]


def caches_for(model: SafeModel, examples: list[TokenizedExample], keep: Any) -> ActivationCaches:
    """The caches of a run on these examples."""
    batch = AnswerCollator({"touch": DIM}, PAD, attends=model.attends)(examples[:2])
    inputs = {key: batch[key] for key in batch if key not in ("labels", "answers")}
    return ActivationCaches(model, keep, inputs, PAD)


def retention_of(model: SafeModel, caches: ActivationCaches) -> CounterfactualRetention:
    """Distillation on all four texts in one step."""
    dtype = next(model.base.parameters()).dtype
    pools = {"touch": {"noise": frames(3, dtype), "silent": frames(1, dtype)}}
    method = WeightedRegularizer(2.0, DistillationRegularizer())
    return CounterfactualRetention(
        model, [method], ROWS, pools, kinds=("noise", "silent"), batch_size=4, seed=3, pad=PAD,
        caches=caches,
    )  # fmt: skip


def step_of(model: SafeModel, examples: list[TokenizedExample], *, speedups: bool) -> Any:
    """Both losses and all gradients of a step."""
    caches = caches_for(model, examples, ("prefix", "teacher") if speedups else ())
    rows = [example.row for example in examples]
    states = caches.task_texts(rows)
    starts = [example.answer_start for example in examples]
    prompt_cache = PromptCache.tried(model, caches, rows, starts)
    assert (prompt_cache is not None) == (speedups and "answer" in model.attends.values())
    objective = Objective(
        model,
        retention_of(model, caches),
        Alignment(model, [example.text for example in examples]),
        0.5,
        caches=caches,
        states=states,
        prompt_cache=prompt_cache,
        speedups=speedups,
    )
    step = AnswerCollator({"touch": DIM}, PAD, attends=model.attends).calls(examples)
    totals = step_totals([step], ["touch"])
    loss, losses = objective(step["calls"], totals, 3, WHOLE_STEP)
    parameters = model.trainable_parameters()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    caches.close()
    return losses, dict(zip(parameters, gradients, strict=True)), caches


def longest_sum() -> int:
    """How many terms the longest chain of sums has, of those that a gradient is made by.

    A gradient adds over all tokens of a step, and each summand comes through the layers: per
    layer four sums over the hidden states and four as wide feed-forward ones, and over the
    vocabulary at the end. Forward and backward are a factor of two.
    """
    tokens = sum(map(len, ROWS)) + sum(len(prompt) + 2 for prompt in PROMPTS)
    return 2 * (tokens + LAYERS * 8 * HIDDEN + VOCABULARY)


def assert_near(ours: Tensor, plain: Tensor, name: str) -> None:
    """Within the rounding of sums as long as these, of numbers as large as these.

    Each head's score of attending to nothing is computed in float32, whatever its dtype.
    """
    dtype = torch.float32 if name.endswith(".nothing") else plain.dtype
    rounding = longest_sum() * torch.finfo(dtype).eps
    assert (ours - plain).norm() <= rounding * plain.norm(), name


@pytest.mark.parametrize("attend", ["all", "answer"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", BASES)
def test_a_step_is_the_same_without_speedups(base: str, dtype: str, attend: Attend) -> None:
    """Law: losses and gradients with every speed-up are the plain ones, but for rounding."""
    model = model_with_upper_modality(BASES[base](), DTYPES[dtype], attend)
    examples = task(DTYPES[dtype])
    losses, gradients, caches = step_of(model, examples, speedups=True)
    plain_losses, plain, nothing = step_of(model, examples, speedups=False)
    assert caches.prefix is not None
    assert nothing.prefix is None
    assert plain_losses.min() > 1e-3
    assert_near(losses, plain_losses, "losses")
    for name, gradient in plain.items():
        assert gradient.norm() > 0, name
        assert_near(gradients[name], gradient, name)


@pytest.mark.parametrize("base", BASES)
def test_off_leaves_nothing_out(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: without speed-ups a call runs whole: each position, layer and word of the vocabulary.

    Two calls are of the model, one is of the base as the teacher.
    """
    model = model_with_upper_modality(BASES[base](), torch.float32)
    examples = task(torch.float32)
    whole: Any = model.base
    logits, hidden = list[tuple[int, ...]](), list[tuple[int, ...]]()
    whole.get_output_embeddings().register_forward_hook(
        lambda module, args, out: logits.append(tuple(out.shape))
    )
    for layer in model.stack.of(whole):
        layer.register_forward_pre_hook(lambda module, args: hidden.append(tuple(args[0].shape)))
    monkeypatch.setattr(ActivationStore, "_write", lambda *call: pytest.fail("it was kept"))
    monkeypatch.setattr(ForwardPlanner, "predictions", lambda *call: pytest.fail("it was planned"))
    step_of(model, examples, speedups=False)
    task_shape = (4, max(len(prompt) for prompt in PROMPTS) + 2)
    text_shape = (4, max(map(len, ROWS)))
    calls = [task_shape, text_shape, text_shape]
    assert logits == [(*shape, VOCABULARY) for shape in calls]
    assert hidden == [(*shape, HIDDEN) for shape in calls for _ in range(LAYERS)]


@pytest.mark.parametrize(("speedups", "kind"), [("on", ForwardPlanner), ("off", PlainForward)])
def test_the_trainer_computes_as_the_recipe_says(speedups: Any, kind: type, tmp_path: Path) -> None:
    """Law: `speedups` of `[training]` decides how a run computes its steps, and it trains."""
    model = model_with_upper_modality(llama(), torch.float32)
    spec = attrs.evolve(SPEC, speedups=speedups)
    trainer = SafeTrainer(
        model, training_arguments(spec, tmp_path), task(torch.float32), spec, pad=PAD
    )
    objective: Any = trainer.model
    assert type(objective.planner) is kind
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
