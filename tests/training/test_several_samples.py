"""Training on two samples a row: which came first is learned, and none is lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from safe_framework.config.schema import MonitorSpec, TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example, TextRow
from safe_framework.interfaces.samples import Several
from safe_framework.training.batches import TokenizedExample
from safe_framework.training.distributed import encode_rows
from safe_framework.training.retention.counterfactual import distractor_pools
from safe_framework.training.setup import task_samples, whole_row
from safe_framework.training.splits import hold_out
from safe_framework.training.trainer import SafeTrainer, training_arguments
from tests.support.marked import marking
from tests.support.toys import DIM, END, PAD, llama
from tests.training.conftest import KINDS, model_with_modality

QUESTION, ANSWERS = [5, 6], (10, 11)
SPEC = TrainingSpec(
    max_steps=60, batch_size=8, projector_learning_rate=1e-2, fusion_learning_rate=1e-2,
    warmup_steps=0, save_steps=1000, schedule="constant",
)  # fmt: skip


def pairs(count: int, seed: int) -> list[tuple[list[np.ndarray], int]]:
    """Two samples of two kinds in either order, and the kind of the first."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        kinds = [number % 2, 1 - number % 2]
        means = [(2 * kind - 1) * np.array([1, 1, -1, 0]) for kind in kinds]
        samples = [0.3 * random.normal(size=(3, DIM)) + mean for mean in means]
        found.append(([one.astype(np.float32) for one in samples], kinds[0]))
    return found


def answers(model: SafeModel, given: list[list[np.ndarray]]) -> list[int]:
    """Which of the two answers is the likelier one, for each pair of samples."""
    with torch.no_grad():
        batch = model.processor(["w5 w6"] * len(given), touch=given)
        last = model.eval()(**batch).logits[:, -1]
    found: list[int] = (last[:, ANSWERS[1]] > last[:, ANSWERS[0]]).int().tolist()
    return found


def test_which_came_first_is_learned(tmp_path: Path) -> None:
    """Law: trained on pairs in both orders, a model names the first of pairs that it never heard.

    Exchanged, the same two samples are answered the other way round.
    """
    model = model_with_modality(llama())
    examples = []
    for samples, kind in pairs(16, seed=0):
        encoded = model.encode("touch", samples)
        held = Several([encoded.rows(torch.tensor([row])) for row in range(2)])
        answer = ANSWERS[kind]
        examples.append(TokenizedExample(QUESTION, [answer, END], f"w{answer}", {"touch": held}))
    SafeTrainer(model, training_arguments(SPEC, tmp_path), examples, SPEC, pad=PAD).train()
    new = pairs(20, seed=1)
    right = [kind for _, kind in new]
    found = answers(model, [samples for samples, _ in new])
    exchanged = answers(model, [samples[::-1] for samples, _ in new])
    assert np.mean(np.equal(found, right)) >= 0.9
    assert np.mean(np.equal(exchanged, right)) <= 0.1


def rows_of(samples: list[np.ndarray]) -> list[Example]:
    """A row with two samples, one with one, and one with none."""
    held = [Several(samples[:2]), samples[2], None]
    return [
        Example(f"w{n}", "w9", {} if one is None else {"touch": one}, place=f"rows:{n}")
        for n, one in enumerate(held)
    ]


def test_each_sample_is_kept_by_itself(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path
) -> None:
    """Law: the cache has a file for each sample, whichever rows it is in, and no pair of them."""
    store = model.modality("touch").frame_cache(tmp_path)
    rows = [Several([samples[0], samples[1]]), samples[0], Several([samples[1], samples[0]])]
    both, one, exchanged = encode_rows(store, rows)
    assert isinstance(both, Several)
    assert isinstance(exchanged, Several)
    assert torch.equal(both[0].values, one.values)
    assert torch.equal(both[1].values, exchanged[0].values)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_distractors_are_as_many_as_a_rows_samples(
    model: SafeModel, samples: list[np.ndarray], tmp_path: Path
) -> None:
    """Law: what stands beside a text is made like a row's samples; with markers it is one."""
    examples = rows_of(samples)
    stores = {"touch": model.modality("touch").frame_cache(tmp_path)}
    pools = distractor_pools(KINDS, task_samples(model, examples), stores, seed=3)["touch"]
    assert [isinstance(one, Several) for one in pools["shuffled"]] == [True, False]
    assert {isinstance(one, Several) for one in pools["noise"]} == {True, False}
    marked = task_samples(marking(llama()), examples)["touch"]
    assert [id(one) for one in marked] == [id(one) for one in samples[:3]]


def test_a_text_beside_a_sample_that_is_not_its_own_names_no_place_too_many() -> None:
    """Law: a retention text about `<touch>` is marked once, however often it says the word."""
    model = marking(llama())
    prompts = PromptEncoder.of(model)
    start, end = model.processor.markers.spans["touch"]
    found = [
        whole_row(prompts, TextRow(text), {"touch": 1}).ids
        for text in ("w3 w4", "w3 <touch> w4", "<touch> w3 <touch> w4")
    ]
    assert found == [(start, end, 3, 4), (3, start, end, 4), (start, end, 3, 4)]


def test_held_out_pairs_are_not_trained_on(samples: list[np.ndarray]) -> None:
    """Law: rows with the same samples in the same order are held out together."""
    first, second = Several(samples[:2]), Several(samples[:2][::-1])
    every = [
        Example(f"w{n}", f"w{n}", {"touch": held})
        for n, held in enumerate([first, first, second, samples[0], samples[1], samples[2]])
    ]
    spec = MonitorSpec(held_out=0.5)
    held_out, remaining = hold_out(spec, 0, every, None, {})
    left = {tuple(map(id, every[n].samples["touch"])) for n in remaining if n < 3}
    assert held_out
    assert not left & {
        tuple(map(id, one.samples["touch"]))
        for one in held_out
        if isinstance(one.samples["touch"], Several)
    }
