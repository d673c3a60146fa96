"""The parts of ``benchmarks/speed.py``, on a tiny base; no test asserts a time."""

import sys
from collections.abc import Iterator
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from tests.support.toys import attached, felt, llama

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The script's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    yield lambda name: import_module(f"speed{name}")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def calls(modules: Any) -> Any:
    """Calls of a tiny base with a toy sense."""
    return modules("_measures").calls_of(attached(llama()), "touch", 9)


def test_every_form_of_a_call_gives_finite_ratios(modules: Any, calls: Any) -> None:
    """Law: each arm of prefill and decoding runs, and has a positive, finite ratio to another."""
    measures = modules("_measures")
    with torch.no_grad():
        rows = [*measures.prefill(calls, 2), *measures.decode(calls, 2, steps=2)]
    assert {row.against for row in rows} == {"base", "prefix of 32"}
    assert len(rows) == 8
    for row in rows:
        assert all(isfinite(value) and value > 0 for value in (row.value, row.low, row.least))


def test_a_sense_that_is_off_sends_the_bases_operations(modules: Any, calls: Any) -> None:
    """Law: absent and with its gate at 0, the operations are the base's."""
    assert modules("_measures").same_operations(calls) == {"absent": "", "gate 0": ""}


def test_a_planted_operation_is_found(modules: Any, calls: Any) -> None:
    """Law: one more operation in a layer is found, and told with its place."""
    model = modules("_model")
    base, text = calls.model.base, calls.text
    wanted = model.trace_of(base, text, base)
    layer = calls.model.stack.of(base)[1]
    handle = layer.register_forward_pre_hook(lambda module, args: (args[0] * 1, *args[1:]))
    seen = model.trace_of(base, text, base)
    handle.remove()
    found = modules("_measures").differing(seen, wanted)
    assert "mul" in found
    assert "operation" in found


def test_nothing_traced_is_refused(modules: Any) -> None:
    """Law: two empty traces are no proof that operations are the same."""
    with pytest.raises(RuntimeError, match="no operation"):
        modules("_measures").differing([], [])


def test_the_costs_of_a_step_tell_what_a_sense_adds(modules: Any, calls: Any) -> None:
    """Law: a step in which a sense is heard costs more operations, one without it the base's."""
    model = modules("_model")
    own = {**felt(1)}
    with torch.no_grad():
        base = model.step_costs(calls, calls.model.base.generate, {})
        absent = model.step_costs(calls, calls.model.generate, {})
        heard = model.step_costs(calls, calls.model.generate, own)
    assert base.operations > 0
    assert absent == base
    assert heard.operations > base.operations
    assert heard.frames > base.frames


def test_arms_take_turns(modules: Any) -> None:
    """Law: every round runs every arm once, every other one backwards, the warm-up uncounted."""
    order: list[str] = []
    arms = {name: lambda name=name: order.append(name) for name in "ab"}
    found = modules("_turns").taking_turns(arms, 2, warm_up=1)
    assert "".join(order) == "abbaab"
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_rounds(modules: Any) -> None:
    """Law: a slow round that falls on both arms does not move the ratio."""
    found = {"own": [2.0, 20.0, 2.0], "other": [1.0, 10.0, 1.0]}
    compared = modules("_turns").compare(found, "own", "other")
    assert (compared.ratio, compared.low, compared.high, compared.least) == (2.0, 2.0, 2.0, 2.0)
    assert compared.seconds == 2.0


def test_the_page_gets_the_table_between_its_marks(modules: Any) -> None:
    """Law: the block is replaced, what is around it stays, and a missed target is said."""
    rows = modules("_rows")
    row = rows.Row("on", "base", 1.2, 1.1, 1.3, least=1.1, seconds=0.1, rounds=5, most=1.08)
    machine = {"cores": 2, "threads": 2, "processor": "some", "load": [0.1, 0.2]}
    result = {"machine": machine, "versions": {"torch": "2"}, "groups": {"g": [attrs.asdict(row)]}}
    whole = rows.replaced("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter", rows.page(result))
    assert whole.startswith("before\n<!-- speed -->\n2 cores")
    assert whole.endswith("<!-- /speed -->\nafter")
    assert "old" not in whole
    assert (
        "| on | base | 1.200 | 1.100 to 1.300 | 1.100 | 100.0 ms | at most 1.080, missed |" in whole
    )
    with pytest.raises(ValueError, match="no block"):
        rows.replaced("nothing", "block")


def test_the_page_has_a_block_for_the_table(modules: Any) -> None:
    """Law: ``--write-docs`` of both scripts finds its place in the benchmarks' page."""
    text = (BENCHMARKS / "speed.md").read_text("utf-8")
    for marks in (modules("_rows").MARKS, import_module("large").MARKS):
        assert modules("_rows").replaced(text, "block", marks) != text


def test_the_large_base_is_measured_in_its_own_numbers(modules: Any) -> None:
    """Law: the base is bfloat16, the sense what is asked for, and off sends the same operations."""
    large = import_module("large")
    with torch.no_grad():
        model, attached = large.built("tiny", "cpu", torch.float32)
        rows = large.measured(model, ["off"], [9], 2)["off"]
    kinds = {p.dtype for p in model.trainable_parameters().values()}
    assert (model.base.dtype, kinds) == (torch.bfloat16, {torch.float32})
    assert [row.value for row in rows] == [0.0, 0.0]
    assert [row.unit for row in attached] == ["s"]


def test_a_picture_costs_the_sense_what_text_does(modules: Any) -> None:
    """Law: beside a picture off sends the base's operations, and on adds what it adds to text."""
    pictures = modules("_pictures")
    with torch.no_grad():
        rows = {
            row.what: row for row in pictures.picture_rows(pictures.seeing_model("tiny"), [5], 2)
        }
    differing = [row.value for what, row in rows.items() if what.endswith("that differ")]
    assert differing == [0.0, 0.0]
    assert rows["operations added, a picture"].value == 1.0
    assert rows["operations added, a picture"].against == "as much text"
    timed = [row for row in rows.values() if row.seconds is not None]
    assert len(timed) == 5
    assert all(isfinite(row.value) and row.value > 0 for row in timed)


def test_a_picture_is_in_the_calls_that_are_timed(modules: Any) -> None:
    """Law: another picture changes the logits of the benchmark's own calls."""
    pictures = modules("_pictures")
    with torch.no_grad():
        model = pictures.seeing_model("tiny")
        calls = modules("_measures").calls_of(model, "audio", 5)
        given = pictures.with_picture(calls).text
        other = given | {"pixel_values": -given["pixel_values"]}
        assert not torch.equal(model(**given).logits, model(**other).logits)
