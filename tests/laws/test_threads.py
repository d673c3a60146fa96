"""Many calls at once on one shared model, and copies of it."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import io
import itertools
import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.base_model import installed_hooks
from safe_framework.core.model import SafeModel
from tests.laws.calls import all_same, copy_of, forward_tensors
from tests.support.toys import attached, felt, llama, texts

Request = tuple[str, int, int]
INACTIVE = ("off", "absent", "closed", "base", "fails")
ACTIVE = ("on", "one off", "gate", "gates", "mixed", "greedy", "beams", "gradient")


def serve(model: SafeModel, request: Request) -> list[Tensor]:
    """What one request of ``INACTIVE`` or ``ACTIVE`` returns."""
    kind, rows, seed = request
    batch = texts(model.base, rows, 4, seed)
    on = batch | felt(rows, seed=seed) | felt(rows, "smell", seed=seed + 1)
    if kind == "gradient":
        parameters = list(model.trainable_parameters().values())
        return list(torch.autograd.grad(model(**on, labels=on["input_ids"]).loss, parameters))
    with torch.no_grad():
        if kind == "base":
            return [model.base(**batch).logits]
        if kind in ("off", "one off"):
            with model.off(*(["smell"] if kind == "one off" else [])):
                return [model(**on).logits]
        if kind == "fails":
            with pytest.raises(IndexError):
                model(**on | {"input_ids": batch["input_ids"] + 99})
            return [model(**batch).logits]
        if kind in ("greedy", "beams"):
            return [model.generate(**on, max_new_tokens=3, num_beams=1 + (kind == "beams"))]
        if kind == "mixed":
            on["touch__present"][0] = False
        gates = {"gate": 0.5, "gates": {"touch": torch.linspace(0, 1, rows)}, "closed": 0.0}
        return [model(**(batch if kind == "absent" else on), gate=gates.get(kind)).logits]


def requests(count: int) -> list[Request]:
    """Random requests, every kind among them."""
    chance = random.Random(3)
    kinds = INACTIVE + ACTIVE
    some = [(chance.choice(kinds), chance.randint(1, 3), number) for number in range(count)]
    assert {kind for kind, _, _ in some} == set(kinds)
    return some


@pytest.mark.slow
def test_threads_do_not_affect_each_other() -> None:
    """500 mixed requests in 16 threads on one model equal the serial ones bit for bit."""
    model, some = attached(llama(), "touch", "smell"), requests(500)
    expected = [serve(model, request) for request in some]
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda request: serve(model, request), some))
    assert all(map(all_same, seen, expected))


def test_tasks_and_their_threads_do_not_affect_each_other() -> None:
    """100 requests in tasks, every other one in a thread of its task, equal the serial ones."""
    model, some = attached(llama(), "touch", "smell"), requests(100)
    expected = [serve(model, request) for request in some]

    async def ask(number: int, request: Request) -> list[Tensor]:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        if number % 2:
            return await asyncio.to_thread(serve, model, request)
        return serve(model, request)

    async def everyone() -> list[list[Tensor]]:
        return await asyncio.gather(*(ask(*numbered) for numbered in enumerate(some)))

    assert all(map(all_same, asyncio.run(everyone()), expected))


def test_requests_differ_as_they_should() -> None:
    """The comparisons above can fail: silent requests are the base's, the others are not."""
    model = attached(llama(), "touch", "smell")
    expected = serve(model, ("base", 3, 7))
    assert all(all_same(serve(model, (kind, 3, 7)), expected) for kind in INACTIVE)
    active = [serve(model, (kind, 3, 7)) for kind in ACTIVE if kind != "beams"]  # often as greedy
    assert not any(all_same(*pair) for pair in itertools.combinations([expected, *active], 2))


def test_off_holds_in_a_thread_of_its_task() -> None:
    """``asyncio.to_thread`` inside an ``off`` block is off, and beside it is not."""
    model = attached(llama())
    batch = texts(model.base, 1, 4) | felt(1)

    def call() -> Tensor:
        with torch.no_grad():
            return model(**batch).logits

    async def ask(quiet: bool) -> Tensor:
        if not quiet:
            return await asyncio.to_thread(call)
        with model.off():
            return await asyncio.to_thread(call)

    async def everyone() -> list[Tensor]:
        return await asyncio.gather(*(ask(number % 2 == 0) for number in range(8)))

    on = call()
    with model.off():
        off = call()
    assert not torch.equal(on, off)
    assert all_same(asyncio.run(everyone()), [off, on] * 4)


def test_tasks_do_not_affect_each_other() -> None:
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


def test_blocks_may_be_left_in_any_order() -> None:
    """Generators that hold `off` blocks and end in another order leave nothing off."""
    model = attached(llama(), "touch", "smell")
    first, second = model.off("touch"), model.off()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.is_enabled("touch")
    assert not model.is_enabled("smell")
    second.__exit__(None, None, None)
    assert model.is_enabled("touch")
    assert model.is_enabled("smell")


def test_a_block_may_be_left_in_another_context() -> None:
    """A generator that is closed where it was not begun ends its block quietly."""
    model = attached(llama())

    def held() -> Iterator[None]:
        with model.off():
            yield

    begun = held()
    contextvars.copy_context().run(next, begun)
    begun.close()
    assert model.is_enabled("touch")


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
    """Removing a modality from a copy takes its hooks off the copy and leaves the original's."""
    model = attached(llama())
    other = COPIES[way](model)
    assert installed_hooks(other.detach()) == []
    assert len(installed_hooks(model.base)) == 1
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


def test_two_models_on_one_base_do_not_affect_each_other() -> None:
    """Each SafeModel's call moves its own hooks alone."""
    base = llama()
    first, second = attached(base), attached(base)
    second.modality("touch").fusion.scale.data.fill_(float("nan"))
    batch = texts(base, 1, 4) | felt(1)
    assert not first(**batch).logits.isnan().any()
    assert second(**batch).logits.isnan().any()
