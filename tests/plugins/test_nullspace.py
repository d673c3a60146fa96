"""Training in the null space of retention's inputs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_framework import RetentionStore, SafeModel
from safe_framework.core.prompt_rows import as_rows
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    RetentionExamples,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.nullspace import NullSpaceRegularizer
from tests.support.tolerance import assert_same_sums
from tests.support.toys import DIM, HIDDEN, PAD, llama, lora, tokenizer
from tests.training.conftest import ROWS, ArrayEncoder, perturb

WIDE = 32
SAMPLES = [np.random.default_rng(n).normal(size=(3, DIM)).astype(np.float32) for n in range(6)]


@pytest.fixture
def model() -> SafeModel:
    """A fresh modality whose projector is wider than what retention shows it."""
    torch.manual_seed(0)
    model = SafeModel(llama(), tokenizer())
    projector = StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=WIDE, depth=3, dropout=0.0)
    fusion = lora(model, layers=[0, 1], rank=2)
    model.add_modality("touch", encoder=ArrayEncoder(), projector=projector, fusion=fusion)
    return model


def examples_of(model: SafeModel, folder: Path, kinds: tuple[str, ...]) -> RetentionExamples:
    """Four texts beside irrelevant samples."""
    stores = {"touch": model.modality("touch").frame_cache(folder / "frames")}
    pools = distractor_pools(kinds, {"touch": SAMPLES}, stores, seed=3)
    methods = [WeightedRegularizer(1.0, NullSpaceRegularizer())]
    retention = CounterfactualRetention(
        model, methods, ROWS, pools, kinds=(), batch_size=2, seed=3, pad=PAD
    )
    return RetentionExamples(retention, kinds)


@pytest.fixture
def examples(model: SafeModel, tmp_path: Path) -> RetentionExamples:
    """Texts beside silence."""
    return examples_of(model, tmp_path, ("silent",))


def begun(
    model: SafeModel, examples: RetentionExamples, folder: Path, **options: object
) -> NullSpaceRegularizer:
    """The method after its start."""
    method = NullSpaceRegularizer(**options)  # type: ignore[arg-type]  # any option
    method.begin(model, examples, RetentionStore(folder / "n.safetensors", dict, start="s"))
    return method


def linears(model: SafeModel) -> dict[str, nn.Linear]:
    """What is constrained."""
    return {
        name: layer
        for name, layer in model.modalities.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }


def outputs(model: SafeModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What each linear gives on every batch, in the model as it is."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears(model)}
    hooks = [
        layer.register_forward_hook(
            lambda module, given, out, name=name: seen[name].append(out.detach().flatten(0, -2))
        )
        for name, layer in linears(model).items()
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def task(model: SafeModel) -> dict[str, Tensor]:
    """One question beside each of the samples."""
    frames = model.encode("touch", SAMPLES)
    return {
        "input_ids": torch.tensor([[20, 21, 22]] * len(SAMPLES)),
        "touch__present": torch.ones(len(SAMPLES), dtype=torch.bool),
        "touch__frames": frames.values,
        "touch__frames_mask": frames.mask,
    }


def train(model: SafeModel, method: NullSpaceRegularizer | None, steps: int) -> list[float]:
    """Steps of AdamW, weight decay on, towards one answer to real samples; the losses."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2, weight_decay=0.1)
    batch = task(model)
    wanted = torch.tensor([30, 31] * 3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(**batch).logits[:, -1], wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        optimizer.step()
        if method is not None:
            method.constrain(optimizer)
        losses.append(loss.item())
    return losses


def changes(
    model: SafeModel, examples: RetentionExamples, before: Mapping[str, Tensor]
) -> dict[str, float]:
    """How far outputs on retention moved, by layer.

    Relative to what they were or, where a silent pair gave nothing, to what the layer now gives
    on the task.
    """
    found = {}
    after, wanted = outputs(model, examples), outputs(model, [task(model)])
    for name, out in before.items():
        moved, was, gives = (
            tensor.square().mean().sqrt().item()
            for tensor in (after[name] - out, out, wanted[name])
        )
        found[name] = moved / max(was, gives) if moved else 0.0
    return found


def test_outputs_on_retention_stay(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: after 60 steps of AdamW with decay, every layer's output moved by less than 1e-4.

    In the model as it is: the inputs of a layer come from layers that were trained too.
    """
    method = begun(model, examples, tmp_path)
    before = outputs(model, examples)
    start = {name: p.clone() for name, p in model.trainable_parameters().items()}
    losses = train(model, method, 60)
    assert losses[-1] < 0.5 * losses[0]  # and it has learned
    moved = [name for name, p in model.trainable_parameters().items() if not p.equal(start[name])]
    assert [name for name in moved if "projector" in name]
    assert [name for name in moved if "lora_B" in name]
    found = changes(model, examples, before)
    assert len(found) == 3 + 2 * 3 * 2
    assert max(found.values()) < 1e-4


def test_without_it_they_move(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: the same steps without the constraint change most outputs by more than 1e-2."""
    begun(model, examples, tmp_path)
    before = outputs(model, examples)
    train(model, None, 60)
    found = sorted(changes(model, examples, before).values())
    assert found[len(found) // 2] > 1e-2


def test_the_models_answers_beside_the_sample_stay(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: with every layer held on retention, so are the model's outputs there."""
    method = begun(model, examples, tmp_path)
    before = [model(**example).logits for example in examples[:]]
    train(model, method, 60)
    for example, logits in zip(examples[:], before, strict=True):
        torch.testing.assert_close(model(**example).logits, logits, rtol=1e-4, atol=1e-4)


def test_the_start_changes_no_output(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: projecting silent pairs leaves the model's outputs bit for bit."""
    before = [model(**example).logits for example in examples[:]]
    first = {name: p.clone() for name, p in model.trainable_parameters().items()}
    begun(model, examples, tmp_path)
    moved = {n for n, p in model.trainable_parameters().items() if not p.equal(first[n])}
    assert moved == {name for name in first if ".lora_A." in name}
    after = [model(**example).logits for example in examples[:]]
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


def test_a_trained_pair_is_left_as_it_is(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: where lora_B is not zero, projecting lora_A would change answers: nothing moves."""
    perturb(model)
    first = {name: p.clone() for name, p in model.trainable_parameters().items()}
    begun(model, examples, tmp_path)
    assert all(p.equal(first[n]) for n, p in model.trainable_parameters().items())


def test_the_projection_is_exact(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: of any change, what stays is its part in the free directions; twice is as once."""
    method = begun(model, examples, tmp_path)
    layer = model.modality("touch").projector.mlp[3]
    assert isinstance(layer, nn.Linear)
    kept = RetentionStore(tmp_path / "n.safetensors", dict, start="s").once(dict)
    free = kept["free.touch.projector.mlp.3"]  # (inputs and 1, free)
    assert 0 < free.shape[1] < WIDE + 1
    torch.testing.assert_close(free.T @ free, torch.eye(free.shape[1]), atol=1e-5, rtol=0)
    start = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()
    change = torch.randn_like(start)
    with torch.no_grad():
        layer.weight += change[:, :-1]
        layer.bias += change[:, -1]
    wanted = start + change @ free @ free.T
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(2):
        method.constrain(optimizer)
        now = torch.cat([layer.weight, layer.bias[:, None]], 1)
        assert_same_sums(now, wanted, 4 * WIDE)


@pytest.mark.parametrize(("others", "still"), [("hold", True), ("free", False)])
def test_others_are_held_or_free(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path, others: str, still: bool
) -> None:
    """Law: what is no linear layer's stays at its start with "hold", and moves with "free"."""
    method = begun(model, examples, tmp_path, others=others)
    norm = model.modality("touch").projector.norm
    before = norm.weight.clone()
    train(model, method, 3)
    assert norm.weight.equal(before) is still


def test_a_wider_threshold_frees_more(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: the higher the threshold, the more directions are free, up to nearly all."""
    counts = []
    for threshold in (0.0, 1e-5, 1e-1, 0.999):
        folder = tmp_path / str(threshold)
        begun(model, examples, folder, threshold=threshold)
        kept = RetentionStore(folder / "n.safetensors", dict, start="s").once(dict)
        counts.append(sum(v.shape[1] for name, v in kept.items() if name.startswith("free.")))
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_the_tasks_own_samples_would_leave_a_projector_nothing(
    model: SafeModel, tmp_path: Path
) -> None:
    """Law: with "shuffled" ones a projector's outputs on the task's samples cannot move."""
    examples = examples_of(model, tmp_path, ("shuffled",))
    examples.retention.marked = as_rows([*ROWS, *ROWS])  # so that every sample comes
    method = begun(model, examples, tmp_path)
    frames = model.encode("touch", SAMPLES)
    before = model.modality("touch").projector(frames).values
    train(model, method, 20)
    after = model.modality("touch").projector(frames).values
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_what_was_kept_makes_the_same_constraint(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Law: a run that goes on from later weights is held to the first ones, bit for bit."""
    first = begun(model, examples, tmp_path)
    train(model, first, 3)
    perturb(model)
    later = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    optimizer = torch.optim.SGD(model.parameters())
    first.constrain(optimizer)
    wanted = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    second = NullSpaceRegularizer()
    second.begin(model, [], RetentionStore(tmp_path / "n.safetensors", dict, start=None))
    with torch.no_grad():
        for name, p in model.trainable_parameters().items():
            p.copy_(later[name])
    second.constrain(optimizer)
    assert all(p.equal(wanted[n]) for n, p in model.trainable_parameters().items())


def test_it_penalises_nothing(
    model: SafeModel, examples: RetentionExamples, tmp_path: Path
) -> None:
    """Laws zero_at_base and nonnegative: a constraint has no penalty, before and after."""
    method = begun(model, examples, tmp_path)
    logits = torch.zeros(1, 2, 3)
    assert method.penalty(logits, logits, torch.ones(1, 2, dtype=torch.bool)) is None
    assert method.parameter_penalty() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -0.1}, "^`threshold` must be from 0 up to 1, not -0.1"),
        ({"threshold": 1.0}, "^`threshold` must be from 0 up to 1, not 1.0"),
        ({"counterfactual": []}, "^`counterfactual` must name at least one"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], words: str) -> None:
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=words):
        NullSpaceRegularizer(**options)  # type: ignore[arg-type]  # the wrong values are meant
