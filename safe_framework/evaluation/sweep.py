"""How far to open a gate: what each strength gives and what it leaves of the base.

Every strength answers the same questions and reads the same texts with the same irrelevant
samples, so that two of them differ by the gate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from safe_framework.core.relevance import AUTO, Strength
from safe_framework.data.distractors import distractor
from safe_framework.errors import DataError
from safe_framework.evaluation.answers import (
    answer,
    answer_room,
    batched_apart,
    eval_mode,
    model_inputs,
    text_inputs,
    text_rows,
)
from safe_framework.evaluation.metrics import Estimate, TextSums, bootstrap, exact_match, merge_sums
from safe_framework.evaluation.read_once import prompts_read_once
from safe_framework.evaluation.relevance import opened_rows
from safe_framework.evaluation.results import Agreement, SeeingScore
from safe_framework.evaluation.retention import (
    LOGIT_ROWS,
    DistractorDraw,
    agreement_of,
    compare_with_base,
    distractor_pools,
)
from safe_framework.evaluation.seeing import (
    as_example,
    expected_about_pictures,
    picture_questions,
    seeing_score,
)
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.files import atomic_write
from safe_framework.utils.json_records import json_converter, read_json, to_json
from safe_framework.utils.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example, TextRow


SWEEP = "sweep.json"

GATES = tuple(number / 10 for number in range(11))
"""Strengths that are tried where none are asked for."""

TEST, VALIDATION, HELD_OUT = "test", "validation", "held out of train"
"""Which rows a gate is chosen on; those of the test are also what the run's gain is told of."""

BUDGET = 0.99
"""Least share of unchanged next tokens at the recommended gate, where none is asked for."""


@attrs.frozen
class GatePoint:
    """One strength of the gate.

    Attributes:
        gate: from 0 (off) to 1; 1 where a relevance head decides, to which it opens.
        accuracy: share of test examples answered right.
        over_base: paired difference of it to the gate at 0.
        kept: how near texts with irrelevant samples of every kind stay to the base.
        answers: to each test example.
        seeing: of the questions about pictures among the texts, beside irrelevant samples of every
            kind in turn, against the gate at 0; None where there are none.
        decides: whether a relevance head opens or closes the gate on each row.
    """

    gate: float
    accuracy: Estimate
    over_base: Estimate
    kept: Agreement
    answers: tuple[str, ...]
    seeing: SeeingScore | None = None
    decides: bool = False

    @property
    def name(self) -> str:
        """The gate, in words."""
        return AUTO if self.decides else f"{self.gate:g}"

    @property
    def setting(self) -> str:
        """The gate as Python writes it."""
        return f'"{AUTO}"' if self.decides else self.name


@attrs.frozen
class GateSweep:
    """Gain and retention over the strength of one modality's gate.

    Attributes:
        modality: whose gate was moved.
        points: by ascending gate; the first is 0.
        places: of the test examples, where they were read.
        budget: least share of unchanged next tokens that was asked for.
        texts: how many texts retention was measured on.
        resamples: of every interval.
        seed: of the intervals and the irrelevant samples.
        split: which rows of ``[data]`` were asked.
        auto: the same with the gate that its relevance head decides on; None without a head.
    """

    modality: str
    points: tuple[GatePoint, ...]
    places: tuple[str, ...]
    budget: float
    texts: int
    resamples: int
    seed: int
    split: str = TEST
    auto: GatePoint | None = None

    @property
    def all_points(self) -> tuple[GatePoint, ...]:
        """The points, and the one at which a relevance head decides."""
        return self.points if self.auto is None else (*self.points, self.auto)

    @property
    def recommended(self) -> GatePoint | None:
        """The point within the budget at which gain and retention together are best.

        That is the product of the gain over the gate at 0 and the share of tokens kept; of equals
        the smaller gate. Only points that gain beyond doubt are looked at, those whose interval of
        the gain lies above 0: None where there is none, since a gate at which the sense is deaf is
        no advice.
        """
        within = [point for point in self.hearing if point.kept.agreement.value >= self.budget]
        return max(within, key=lambda point: (_together(point), -point.gate), default=None)

    @property
    def hearing(self) -> tuple[GatePoint, ...]:
        """The points that gain something beyond doubt."""
        return tuple(point for point in self.all_points if point.over_base.low > 0)

    @property
    def front(self) -> tuple[GatePoint, ...]:
        """The Pareto front: points than which no other gains more and keeps as much, or reverse."""
        return tuple(
            point
            for point in self.all_points
            if not any(_dominates(other, point) for other in self.all_points)
        )

    def at(self, gate: float) -> GatePoint | None:
        """The point of this gate, if it was measured."""
        return next((point for point in self.points if point.gate == gate), None)


def _together(point: GatePoint) -> float:
    return point.over_base.value * point.kept.agreement.value


def _merits(point: GatePoint) -> tuple[float, float]:
    return point.accuracy.value, point.kept.agreement.value


def _dominates(one: GatePoint, other: GatePoint) -> bool:
    pairs = list(zip(_merits(one), _merits(other), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


_CONVERTER = json_converter(
    omitted_if_default={GatePoint: ("seeing", "decides"), GateSweep: ("auto",)}
)


def read_sweeps(folder: Path) -> dict[str, GateSweep]:
    """The sweeps of a run by modality; empty where none was made.

    Raises:
        DataError: the file is there and cannot be read.
    """
    path = folder / SWEEP
    if not path.is_file():
        return {}
    return read_json(
        path,
        dict[str, GateSweep],
        _CONVERTER,
        problem="cannot be read as a gate sweep",
        hint="delete it and run `safe sweep` again",
    )


def write_sweep(folder: Path, sweep: GateSweep) -> Path:
    """Put a sweep into the run's ``sweep.json``, and keep those of other modalities."""
    kept: Mapping[str, GateSweep] = {**read_sweeps(folder), sweep.modality: sweep}
    return atomic_write(folder / SWEEP, to_json(kept, _CONVERTER))


@torch.no_grad()
def sweep(
    model: SafeModel,
    *,
    modality: str,
    test: Sequence[Example],
    texts: Sequence[str | TextRow],
    foreign: Sequence[Sample] = (),
    gates: Sequence[float] = GATES,
    budget: float = BUDGET,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    split: str = TEST,
    progress: ProgressCallback | None = None,
) -> GateSweep:
    """Measure gain and retention at each of ``gates``; the model is left as it was.

    Args:
        model: with ``modality`` attached.
        modality: whose gate is moved; the others stay as they are.
        test: examples, never trained on; best some that the run's gain is not measured on.
        texts: of the base's own domain, never trained on, with their pictures.
        foreign: samples that are not of the task; may be none.
        gates: strengths from 0 to 1; 0 is always measured, since gains are over it.
        budget: least share of unchanged next tokens that a recommended gate may have.
        max_new_tokens: limit of an answer's length; None for as much as each expected one needs.
        batch_size: examples at a time.
        resamples: of every 95 % interval.
        seed: of the intervals and the irrelevant samples.
        split: what to call the rows that ``test`` are.
        progress: called with a label, how many are done and of how many.

    Raises:
        DataError: there is no example or no text, or a gate or the budget is not from 0 to 1.
    """
    strengths = _checked(gates, budget, test, texts)
    decides = model.modality(modality).relevance is not None
    wanted: list[Strength] = [*strengths, *((AUTO,) if decides else ())]
    show = progress or no_progress
    most = answer_room(model, [*test, *expected_about_pictures(texts)], max_new_tokens)
    ask = partial(answer, model, test, max_new_tokens=most, batch_size=batch_size)
    with eval_mode(model), prompts_read_once(model):
        answers = {
            gate: ask(gate={modality: gate}, label=f"answers at gate {gate}", progress=show)
            for gate in wanted
        }
        kept = _retention_by_gate(model, modality, wanted, test, texts, foreign, seed, show)
        asked = _about_pictures(modality, test, texts, foreign, seed)
        ask = partial(answer, model, max_new_tokens=most, batch_size=batch_size)
        seen = {
            gate: ask(asked, gate={modality: gate}, label=f"pictures at gate {gate}", progress=show)
            for gate in wanted
        }
    people = [row.people for row in picture_questions(texts)]
    expected = [example.judged(example.answer) for example in test]
    right = {
        gate: exact_match([e.judged(text) for e, text in zip(test, given, strict=True)], expected)
        for gate, given in answers.items()
    }
    estimate = partial(bootstrap, resamples=resamples, seed=seed)

    def point(gate: Strength) -> GatePoint:
        """What was found at one strength."""
        return GatePoint(
            gate=1.0 if gate == AUTO else float(gate),
            accuracy=estimate(right[gate]),
            over_base=estimate(right[gate] - right[0.0]),
            kept=agreement_of(kept[gate], resamples, seed),
            answers=tuple(answers[gate]),
            seeing=seeing_score(people, seen[0.0], [seen[gate]], resamples=resamples, seed=seed)
            if people
            else None,
            decides=gate == AUTO,
        )

    points, places = tuple(map(point, strengths)), tuple(example.place for example in test)
    auto = point(AUTO) if decides else None
    return GateSweep(modality, points, places, budget, len(texts), resamples, seed, split, auto)


def _checked(
    gates: Sequence[float], budget: float, test: Sequence[Any], texts: Sequence[Any]
) -> list[float]:
    for name, value in (*(("gate", gate) for gate in gates), ("budget", budget)):
        if not 0 <= value <= 1:
            raise DataError(f"a {name} must be from 0 to 1, not {value:g}")
    if not test or not texts:
        raise DataError(
            "there is nothing to measure a gate on", hint="give at least one example and one text"
        )
    return sorted({0.0, *map(float, gates)})


def _about_pictures(
    modality: str,
    test: Sequence[Example],
    texts: Sequence[str | TextRow],
    foreign: Sequence[Sample],
    seed: int,
) -> list[Example]:
    """The questions about pictures, each beside an irrelevant sample of the next kind."""
    pools = distractor_pools(modality, test, foreign)
    draw, kinds = DistractorDraw(modality, pools, seed), list(pools)
    return [
        as_example(row, draw(kinds[number % len(kinds)], 1)[0])
        for number, row in enumerate(picture_questions(texts))
    ]


def _retention_by_gate(
    model: SafeModel,
    modality: str,
    gates: Sequence[Strength],
    test: Sequence[Example],
    texts: Sequence[str | TextRow],
    foreign: Sequence[Sample],
    seed: int,
    progress: ProgressCallback,
) -> Mapping[Strength, list[TextSums]]:
    """By gate, for each text how it fares with all kinds of irrelevant samples together.

    Where a relevance head decides, it does so at the end of the text, as of any prompt: what is
    kept of a text is all of it, or what gate 1 keeps.
    """
    pools = distractor_pools(modality, test, foreign)
    found: dict[Strength, list[TextSums]] = {gate: [] for gate in gates}
    done = 0
    for rows in batched_apart(text_rows(texts), LOGIT_ROWS):
        plain = text_inputs(model, rows)
        with model.original_base():
            base = model.base(**plain).logits
        accompanied = list(_with_distractors(model, modality, rows, pools, seed + done))
        opened = _opened(model, modality, rows) if AUTO in gates else []
        for gate in gates:
            kinds = [
                _decided(compare, opened) if gate == AUTO else compare(float(gate))
                for given in accompanied
                for compare in [partial(compare_with_base, model, modality, given, plain, base)]
            ]
            found[gate] += [merge_sums(row) for row in zip(*kinds, strict=True)]
        done += len(rows)
        progress("texts at every gate", done, len(texts))
    return found


def _opened(model: SafeModel, modality: str, rows: Sequence[TextRow]) -> list[bool]:
    """On which texts a relevance head opens the gate."""
    prompts = model_inputs(model, [row.text for row in rows], (), [row.images for row in rows])
    return opened_rows(model, modality, prompts)


def _decided(compare: Callable[[float], list[TextSums]], opened: Sequence[bool]) -> list[TextSums]:
    """How texts fare at gate 1 where it opens, and at 0 where it stays closed."""
    return [
        at_one if opens else at_zero
        for opens, at_one, at_zero in zip(opened, compare(1.0), compare(0.0), strict=True)
    ]


def _with_distractors(
    model: SafeModel,
    modality: str,
    rows: Sequence[TextRow],
    pools: Mapping[str, Sequence[Sample]],
    seed: int,
) -> Iterator[Mapping[str, Any]]:
    """The texts with each kind of irrelevant sample, encoded here once for all gates."""
    draw = torch.Generator().manual_seed(seed)
    for kind, pool in pools.items():
        samples = [{modality: distractor(kind, pool, draw)} for _ in rows]
        yield with_encoded_frames(model, modality, text_inputs(model, rows, samples))


def with_encoded_frames(
    model: SafeModel, modality: str, batch: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The batch with finished frames of ``modality``, which every row carries."""
    prefix = f"{modality}__"
    own = {
        key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)
    }
    made = model.modality(modality).encoded(own)
    rest = {key: value for key, value in batch.items() if not key.startswith(prefix)}
    return {**rest, **{f"{prefix}{key}": value for key, value in made.items()}}
