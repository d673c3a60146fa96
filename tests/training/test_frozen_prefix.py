"""The frozen prefix: steps that start at the first fused layer equal the steps that do not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import Rows, as_rows
from safe_framework.interfaces.types import Frames
from safe_framework.training.batches import AnswerCollator, TokenizedExample
from safe_framework.training.compute.activation_cache import ActivationCaches, ActivationStore
from safe_framework.training.compute.calls import ForwardCall
from safe_framework.training.compute.forward import ForwardPlanner
from safe_framework.training.objective import answer_loss
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    WeightedRegularizer,
)
from safe_framework.utils.tensors import bitwise_equal
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from tests.support.tolerance import BACKWARD, FORWARD, assert_same_sums, rounding
from tests.support.toys import DIM, END, PAD, ToyFusion, attached, gpt2, llama, opt
from tests.training.conftest import KINDS, ROWS, ArrayEncoder, loss_of, perturb

CPU = torch.device("cpu")
ALL = ("prefix", "teacher")
TASK = [([5, 6, 7], [8, END]), ([9], [10, 11, 12, END]), ([13, 14], [END])]
BASES: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2, "opt": opt}


def hearing(base: nn.Module, layer: int = 1) -> SafeModel:
    """A base with a modality that enters at ``layer``."""
    model = attached(base, fusion=ToyFusion(layers=(layer,)))
    perturb(model)
    return model


def batch() -> dict[str, Tensor]:
    """Questions and answers of different lengths, one of them without a sample."""
    frames = Frames(torch.randn(1, 3, DIM), torch.ones(1, 3, dtype=torch.bool))
    examples = [
        TokenizedExample(prompt, answer, "", {"touch": frames} if number != 1 else {})
        for number, (prompt, answer) in enumerate(TASK)
    ]
    made = AnswerCollator({"touch": DIM}, PAD)(examples)
    made.pop("answers")
    return made


def example() -> dict[str, Tensor]:
    """The batch without its labels."""
    made = batch()
    made.pop("labels")
    return made


def rows_in(given: dict[str, Tensor]) -> Rows:
    """The texts of a batch, without padding."""
    pairs = zip(given["input_ids"], given["attention_mask"], strict=True)
    return as_rows([ids[mask.bool()].tolist() for ids, mask in pairs])


def beginning(
    caches: ActivationCaches, states: ActivationStore | None, given: dict[str, Tensor]
) -> AbstractContextManager[None]:
    """Within the block, a call on these texts starts at the first fused layer if it can."""
    prefix_states = caches.prefix_states(states, rows_in(given))
    return nullcontext() if prefix_states is None else caches.start_from_prefix(prefix_states)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "safe_framework.training.compute.activation_cache.cache_folder", lambda: tmp_path
    )


@pytest.mark.parametrize("kind", BASES)
def test_task_loss_and_gradient_are_those_of_whole_calls(kind: str) -> None:
    """Law: with the prefix stored and without it, loss and gradients are the same sums."""
    model, given = hearing(BASES[kind]()), batch()
    caches = ActivationCaches(model, ALL, example(), PAD)
    assert caches.prefix is not None
    states = caches.task_texts([[*p, *a] for p, a in TASK])
    found = []
    for kept in (None, states):
        model.zero_grad()
        with beginning(caches, kept, given):
            loss = answer_loss(model, model.base, given)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.trainable_parameters().values())])
    assert len(found[0]) > 3
    for whole, prefix_states in zip(*found, strict=True):
        assert_same_sums(prefix_states, whole, BACKWARD)


@pytest.mark.parametrize("keep", [("prefix",), ("teacher",), ALL])
def test_retention_loss_is_that_of_whole_calls(
    keep: tuple[str, ...], samples: list[np.ndarray]
) -> None:
    """Law: with the prefix, the teacher or both stored, each step's loss is the same sum."""
    model = attached(llama(), fusion=ToyFusion(layers=(1,)))
    perturb(model)
    encoder = ArrayEncoder()
    pool = {kind: [encoder(**encoder.prepare([s])) for s in samples] for kind in KINDS}
    losses = []
    for caches in (None, ActivationCaches(model, keep, example(), PAD)):
        retention = CounterfactualRetention(
            model, [WeightedRegularizer(2.0, DistillationRegularizer())], ROWS, {"touch": pool},
            kinds=KINDS, batch_size=3, seed=3, pad=PAD, caches=caches,
        )  # fmt: skip
        retention.precompute(4, lambda *told: None)
        losses.append([loss_of(retention, step).item() for step in range(4)])
    assert min(losses[0]) > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=rounding(FORWARD, max(losses[0])))


@pytest.mark.parametrize("kind", BASES)
def test_merged_calls_start_together(kind: str) -> None:
    """Law: two calls whose texts are stored start merged, and predict what whole ones do."""
    model, given = hearing(BASES[kind]()), example()
    caches = ActivationCaches(model, ALL, given, PAD)
    texts = [[*p, *a] for p, a in TASK]
    runs, found = list[int](), []
    model.base.register_forward_pre_hook(lambda *call: runs.append(1))
    for states in (None, caches.task_texts(texts)):
        prefix_states = caches.prefix_states(states, rows_in(given))
        call = ForwardCall(given, given["attention_mask"].bool(), prefix_states=prefix_states)
        planner = ForwardPlanner(model, caches)
        runs.clear()
        found.append([one.logits for one in planner.predictions([call, call])])
        assert len(runs) == 1
    for whole, early in zip(*found, strict=True):
        assert_same_sums(early, whole, FORWARD)


def test_layers_below_do_not_run() -> None:
    """Law: within `start_from_prefix`, no layer below the first fused one computes anything."""
    model, given = hearing(llama()), batch()
    caches = ActivationCaches(model, ALL, example(), PAD)
    states = caches.task_texts([[*p, *a] for p, a in TASK])
    assert states is not None
    states.precompute([[*p, *a] for p, a in TASK], "reading")
    ran: list[str] = []
    for number, layer in enumerate(model.base.model.layers):
        layer.mlp.register_forward_hook(lambda *args, n=number: ran.append(n))
    with beginning(caches, states, given):
        answer_loss(model, model.base, given)
    assert ran == [1]


def test_an_unknown_text_runs_whole() -> None:
    """Law: a batch with a text that is not stored is computed from its first layer on."""
    model, given = hearing(llama()), batch()
    caches = ActivationCaches(model, ALL, example(), PAD)
    states = caches.task_texts([[*p, *a] for p, a in TASK[:2]])
    with beginning(caches, states, given):
        loss = answer_loss(model, model.base, given)
    assert torch.equal(loss, answer_loss(model, model.base, given))


def test_a_base_whose_layers_hand_on_more_is_run_whole() -> None:
    """Law: where a call that starts later gives other logits, no prefix is stored."""
    model, handed = hearing(llama()), {}
    first, second = model.base.model.layers
    first.mlp.register_forward_hook(lambda module, args, out: handed.update(last=out))
    second.mlp.register_forward_hook(lambda module, args, out: out + handed["last"])
    assert not FrozenPrefix(model, 1).matches_whole_call(example())
    assert ActivationCaches(model, ("prefix",), example(), PAD).prefix is None


def fails_behind_a_prefix(model: SafeModel, error: Exception) -> None:
    """Let calls fail that start above the first layer."""
    ran, (first, second) = [False], model.base.model.layers

    def begin(module: Any, args: Any) -> None:
        ran[0] = False

    def passed(module: Any, args: Any, out: Any) -> None:
        ran[0] = True

    def enter(module: Any, args: Any) -> None:
        if not ran[0]:
            raise error

    model.base.model.register_forward_pre_hook(begin)
    first.mlp.register_forward_hook(passed)
    second.mlp.register_forward_pre_hook(enter)


def test_a_layer_that_needs_those_below_is_run_behind_them() -> None:
    """Law: whatever a layer raises where a call starts at it, there is no prefix, and no error."""
    model = hearing(llama())
    fails_behind_a_prefix(model, KeyError("what the layer below left"))
    assert not FrozenPrefix(model, 1).matches_whole_call(example())


def test_a_full_disk_is_no_property_of_a_layer() -> None:
    """Law: what the machine lacks is told, instead of a run that only goes on slowly."""
    model = hearing(llama())
    fails_behind_a_prefix(model, OSError(28, "No space left"))
    with pytest.raises(OSError, match="No space left"):
        FrozenPrefix(model, 1).matches_whole_call(example())


def test_too_many_texts_are_not_stored_with_a_note() -> None:
    """Law: states that would take more memory than allowed are not stored, and a note says so."""
    model = hearing(llama())
    states = ActivationCaches(model, ALL, example(), PAD, max_bytes=10_000).retention_texts(ROWS)
    assert states is not None
    assert states.token_count == sum(map(len, ROWS))
    caches = ActivationCaches(
        model, ALL, example(), PAD, max_bytes=states.token_count * 2 * 16 * 4 - 1
    )
    assert caches.retention_texts(ROWS) is None
    assert len(caches.notes) == 1
    assert caches.notes[0].startswith(
        f"hidden states of {states.token_count} words would take 0.0 GiB"
    )


def test_nothing_is_stored_where_a_modality_enters_first() -> None:
    """Law: fused at layer 0, there is no prefix, and the layers are left as they were."""
    model = hearing(llama(), layer=0)
    assert first_fused_layer(model) == 0
    caches = ActivationCaches(model, ("prefix",), example(), PAD)
    assert caches.prefix is None
    assert caches.task_texts([[5]]) is None
    assert not any("forward" in vars(layer) for layer in model.base.model.layers)


def test_markers_leave_no_prefix() -> None:
    """Law: where vectors of a modality's own are in the text, the first layers depend on it."""
    model = hearing(llama())
    assert first_fused_layer(model) == 1
    markers: Any = nn.Identity()  # any will do
    markers.marked = True
    model.modality("touch").markers = markers
    assert first_fused_layer(model) == 0


def test_other_calls_are_the_bases() -> None:
    """Law: while the prefix is installed, calls outside of it and calls that are off stay whole."""
    model, given = hearing(llama()), example()
    before, bare = model(**given).logits, model.base(**_own(given)).logits
    caches = ActivationCaches(model, ALL, given, PAD)
    states = caches.task_texts([[*p, *a] for p, a in TASK])
    assert bitwise_equal(model(**given).logits, before)
    with beginning(caches, states, given):
        with model.off():
            assert bitwise_equal(model(**given).logits, bare)
        assert bitwise_equal(model.base(**_own(given)).logits, bare)
    caches.close()
    assert not any("forward" in vars(layer) for layer in model.base.model.layers)


def _own(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in given.items() if "__" not in key}
