"""Many calls at once on one shared model, and copies of it."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.base import hooks_of
from safe_framework.model import SafeModel
from tests.laws.calls import all_same, copy_of, forward_tensors
from tests.toys import attached, felt, llama, texts

Request = tuple[str, int, int]
KINDS = ("on", "off", "absent", "base", "gate", "generate", "mixed", "fails")


def serve(model: SafeModel, request: Request) -> list[Tensor]:
    """What one request of ``KINDS`` returns."""
    kind, rows, seed = request
    batch, samples = texts(model.base, rows, 4, seed), felt(rows, seed=seed)
    with torch.no_grad():
        if kind == "base":
            return [model.base(**batch).logits]
        if kind == "off":
            with model.off():
                return [model(**batch, **samples).logits]
        if kind == "fails":
            with pytest.raises(IndexError):
                model(input_ids=batch["input_ids"] + 99, **samples)
            return [model(**batch).logits]
        if kind == "generate":
            return [model.generate(**batch, **samples, max_new_tokens=3, num_beams=2)]
        if kind == "absent":
            samples = {}
        if kind == "mixed":
            samples["touch__present"][0] = False
        gate = 0.5 if kind == "gate" else None
        return [model(**batch, **samples, gate=gate).logits]


def requests(count: int) -> list[Request]:
    """Random requests, every kind among them."""
    chance = random.Random(3)
    some = [(chance.choice(KINDS), chance.randint(1, 3), number) for number in range(count)]
    assert {kind for kind, _, _ in some} == set(KINDS)
    return some


def test_threads_do_not_hear_each_other() -> None:
    """80 mixed requests in 8 threads on one model equal the serial ones bit for bit."""
    model, some = attached(llama()), requests(80)
    expected = [serve(model, request) for request in some]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda request: serve(model, request), some))
    assert all(map(all_same, seen, expected))


def test_tasks_do_not_hear_each_other() -> None:
    """An ``off`` block holds for its own task, also across an await."""
    model = attached(llama())
    batch = texts(model.base, 1, 4) | felt(1)
    on = model(**batch).logits
    with model.off():
        off = model(**batch).logits

    async def ask(quiet: bool) -> list[Tensor]:
        seen = []
        for _ in range(3):
            await asyncio.sleep(0)
            if not quiet:
                seen.append(model(**batch).logits)
                continue
            with model.off():
                await asyncio.sleep(0)
                seen.append(model(**batch).logits)
        return seen

    async def everyone() -> list[list[Tensor]]:
        return await asyncio.gather(*(ask(number % 2 == 0) for number in range(6)))

    for number, seen in enumerate(asyncio.run(everyone())):
        assert all_same(seen, [off if number % 2 == 0 else on] * 3)


def test_off_in_one_thread_does_not_silence_another() -> None:
    """A thread started inside an ``off`` block of another is not off."""
    model = attached(llama())
    batch = texts(model.base, 1, 4) | felt(1)
    on = model(**batch).logits
    with model.off(), ThreadPoolExecutor(1) as pool:
        seen = pool.submit(lambda: model(**batch).logits).result()
    assert all_same([seen], [on])


def _saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_the_model_behaves_alike(way: str) -> None:
    """On and off, a copy gives the same bits as the model that was copied."""
    model = attached(llama(), "touch", "smell")
    model.set_gate(0.5, "smell")
    other = COPIES[way](model)
    batch = texts(model.base, 2, 4)
    on = batch | felt(2) | felt(2, "smell")
    assert all_same(forward_tensors(other, on), forward_tensors(model, on))
    with other.off():
        assert all_same(forward_tensors(other, on), forward_tensors(model, batch))


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_the_model_detaches_by_itself(way: str) -> None:
    """Removing a sense from a copy takes its hooks off the copy and leaves the original's."""
    model = attached(llama())
    other = COPIES[way](model)
    assert hooks_of(other.detach()) == []
    assert len(hooks_of(model.base)) == 1
    batch = texts(model.base, 1, 4)
    assert not torch.equal(model(**batch, **felt(1)).logits, model(**batch).logits)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_the_base_is_a_base(way: str) -> None:
    """The hooks on a copied base are inert, and it can be attached to again."""
    model = attached(llama())
    base, batch = COPIES[way](model.base), texts(model.base, 2, 4)
    untouched = copy_of(llama())
    assert all_same(forward_tensors(base, batch), forward_tensors(untouched, batch))
    again = attached(base)
    expected = forward_tensors(model, batch | felt(2))
    assert all_same(forward_tensors(again, batch | felt(2)), expected)


@pytest.mark.parametrize("way", COPIES)
def test_turning_a_model_off_does_not_silence_its_copy(way: str) -> None:
    """``off`` is for the model whose method it is."""
    model = attached(llama())
    other, batch = COPIES[way](model), texts(model.base, 1, 4) | felt(1)
    on = forward_tensors(other, batch)
    with model.off():
        assert all_same(forward_tensors(other, batch), on)


def test_two_models_on_one_base_do_not_hear_each_other() -> None:
    """Each SafeModel's call moves its own hooks alone."""
    base = llama()
    first, second = attached(base), attached(base)
    second.modality("touch").fusion.scale.data.fill_(float("nan"))
    batch = texts(base, 1, 4) | felt(1)
    assert not first(**batch).logits.isnan().any()
    assert second(**batch).logits.isnan().any()
