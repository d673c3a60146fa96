"""The relevance gates of a model: fitted after training, calibrated, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.config.schema import Recipe, RelevanceSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptRow
from safe_framework.core.relevance import AUTO, RelevanceHead
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.irrelevant import CALIBRATION, TEST
from safe_framework.data.readers import iterate_rows
from safe_framework.data.recipe_data import RecipeData, split_by_modality
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation import results
from safe_framework.evaluation.answers import answer, answer_without, eval_mode
from safe_framework.evaluation.metrics import normalise
from safe_framework.evaluation.relevance import (
    counted_by_kind,
    gain_kept,
    influence,
    opens,
    statement_of,
)
from safe_framework.evaluation.relevance_risk import Counted, safe_threshold
from safe_framework.evaluation.results import Evaluation, GainKept, Relevance
from safe_framework.evaluation.wordings import drawn_by, other_questions
from safe_framework.training.relevance import fit_relevance
from safe_framework.training.relevance_calls import (
    HELD_OUT,
    TRAINED,
    CallMaker,
    GateCall,
)
from safe_framework.training.relevance_states import read_ends
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.suggest import nearest

_FIELDS = ("question", "text", "relevant", "kind")
_OWN = "irrelevant"  # the kind of a row that says none
_ASKED = 30  # whole answers are compared of so many questions
_SHIPPED = "the banks that ship with safe-framework"

Scores = dict[PromptRow, Tensor]
"""What a head made of calls that were read before, which may be counted again."""


@attrs.frozen(eq=False)
class CalibrationCalls:
    """The calls that a calibration is made of.

    Attributes:
        calls: irrelevant ones, which choose the threshold, and relevant ones.
        checks: irrelevant ones that were kept from training and calibration; may be none.
        source: where they are from, in words.
    """

    calls: Sequence[GateCall]
    checks: Sequence[GateCall]
    source: str

    def counts(self) -> dict[str, int]:
        """How many irrelevant calls there are of each kind."""
        kinds = [call.kind for call in self.calls if not call.relevant]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def fit_heads(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    texts: Sequence[TextRow],
    progress: ProgressCallback = no_progress,
) -> tuple[list[str], list[str]]:
    """Fit the head of every sense that the recipe gives one, as ``fit_relevance`` does.

    A gate that the recipe leaves to its head is the head's from then on.

    Returns:
        The names of the senses that got one; and for people, why others did not, of which the
        recipe does not say that they must have one.

    Raises:
        DataError: a head that the recipe asks for cannot be fitted.
    """
    names, notes = list[str](), list[str]()
    for name, spec in recipe.modalities.items():
        if spec.relevance_head is None:
            continue
        try:
            head = fit_relevance(model, name, recipe, examples, texts, progress=progress)
        except DataError as error:
            if spec.relevance is not None:
                raise
            notes.append(f'`gate = "auto"` is not to be had for {name}: {error.message}')
            continue
        model.set_relevance(name, head)
        if recipe.modalities[name].gate.value == AUTO:
            model.set_gate(AUTO, name)
        names.append(name)
    return names, notes


def shipped_calls(
    model: SafeModel, name: str, recipe: Recipe, examples: Sequence[Example]
) -> CalibrationCalls:
    """Calls of the banks' calibration part, and of the sense's own questions.

    Args:
        model: with the sense.
        name: of the sense.
        recipe: that it was built from.
        examples: with its samples, best some that were not trained on; may be none.
    """
    maker = CallMaker(model, recipe, _spec(recipe, name))
    having = [example for example in examples if name in example.samples]
    relevant = [
        call
        for held_out in (False, True)
        for call in (maker.relevant(having, held_out=held_out) if having else ())
    ]
    calls = [*maker.irrelevant(CALIBRATION), *relevant]
    return CalibrationCalls(calls, maker.irrelevant(TEST), _SHIPPED)


def own_calls(model: SafeModel, name: str, recipe: Recipe, file: Path) -> CalibrationCalls:
    """Calls of a user's file: rows with ``question`` or ``text``, ``relevant``, and a ``kind``.

    Args:
        model: with the sense.
        name: of the sense.
        recipe: that it was built from.
        file: of data rows, of any kind that is read.

    Raises:
        DataError: a row is wrong, which the message says with its line and field; or no row is
            irrelevant.
    """
    maker, calls = CallMaker(model, recipe, _spec(recipe, name)), list[GateCall]()
    for row in iterate_rows(file):
        if row.error is not None:
            raise row.error
        calls.append(_own_call(maker, row.place, row.values))
    if all(call.relevant for call in calls):
        raise DataError(
            f"no row of `{file}` is irrelevant, so nothing bounds how often the gate may open",
            hint='add rows with `"relevant": false`: what users ask that is about no sample',
        )
    return CalibrationCalls(calls, (), f"`{file.name}`")


def _own_call(maker: CallMaker, place: str, values: Mapping[str, Any]) -> GateCall:
    for field in values:
        if field not in _FIELDS:
            hint = nearest(field, _FIELDS) or f"fields: {', '.join(_FIELDS)}"
            raise DataError(f"{place}: nothing reads the field `{field}`", hint=hint)
    if not isinstance(relevant := values.get("relevant"), bool):
        raise DataError(
            f"{place}: `relevant` must be true or false, not {relevant!r}",
            hint="say whether the call is about the sense's sample",
        )
    given = [field for field in ("question", "text") if values.get(field) is not None]
    if len(given) != 1:
        raise DataError(
            f"{place}: a row must have either `question` or `text`",
            hint="`question` is put into the recipe's prompt, `text` is read as it is",
        )
    kind = values.get("kind") or (HELD_OUT if relevant else _OWN)
    for field, value in ((given[0], values[given[0]]), ("kind", kind)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: `{field}` must be a text that is not empty, not {value!r}")
    return maker.own(values[given[0]], kind, relevant=relevant, whole=given[0] == "text")


def calibrate(
    model: SafeModel,
    name: str,
    given: CalibrationCalls,
    *,
    risk: float,
    confidence: float,
    scores: Scores | None = None,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Choose the threshold of a sense's head, and write what it bounds into the head.

    Args:
        model: with a head, which is changed.
        name: of the sense.
        given: the calls; training saw none of the irrelevant ones.
        risk: largest share of irrelevant calls of each kind that may open the gate.
        confidence: with which that is to hold.
        scores: of calls that the head has read; those of others are added. None for none.
        progress: called with a label, how many groups of calls have run and of how many.

    Returns:
        The statement, as the adapter keeps it.

    Raises:
        SafeError: the sense has no head, MAPIE is missing, or no threshold does.
    """
    head = _head(model, name)
    irrelevant, relevant, checks = (
        (calls, scores_of(model, head, calls, scores, progress=progress))
        for calls in (
            [call for call in given.calls if not call.relevant],
            [call for call in given.calls if call.relevant],
            given.checks,
        )
    )
    by_kind: dict[str, list[float]] = {}
    for call, score in zip(irrelevant[0], irrelevant[1].tolist(), strict=True):
        by_kind.setdefault(call.kind, []).append(score)
    asked = relevant[1].tolist()
    found = safe_threshold(by_kind, asked, risk=risk, confidence=confidence)
    head.threshold = found.value
    calibrated, opens, checked = (
        counted_by_kind([call.kind for call in calls], own, found.value)
        for calls, own in (irrelevant, relevant, checks)
    )
    head.statement = statement_of(
        found,
        calibrated,
        checked,
        opens,
        sense=name,
        risk=risk,
        confidence=confidence,
        source=given.source,
        digest=text_fingerprint(sorted(call.text for call in given.calls if not call.relevant)),
    )
    return head.statement


def scores_of(
    model: SafeModel,
    head: RelevanceHead,
    calls: Sequence[GateCall],
    known: Scores | None = None,
    *,
    progress: ProgressCallback = no_progress,
) -> Tensor:
    """What a head makes of each call, (calls,), on the CPU.

    Args:
        model: whose base reads the calls.
        head: of one of its senses.
        calls: with their rows.
        known: of rows that this head has read, to which the others are added; None for none.
        progress: called with a label, how many were read and of how many.
    """
    found = {} if known is None else known
    rows = [call.row for call in calls]
    if new := [row for row in rows if row not in found]:
        layer, columns = head.layer, head.columns
        for read in read_ends(model, new, layer, columns, label="calls", progress=progress):
            found |= dict(zip(read.rows, head(read.end).cpu(), strict=True))
    return torch.stack([found[row] for row in rows]) if rows else torch.zeros(0)


@torch.no_grad()
def measure_relevance(
    model: SafeModel,
    recipe: Recipe,
    data: RecipeData,
    evaluation: Evaluation,
    progress: ProgressCallback = no_progress,
    *,
    scores: Scores | None = None,
) -> Relevance | None:
    """What the gate of the evaluated sense does on calls kept from training and calibration.

    Args:
        model: the trained one.
        recipe: that trained it.
        data: what it names.
        evaluation: of the sense at gate 1.
        progress: called with a label, how many are done and of how many.
        scores: of calls that its head has read; None for none.

    Returns:
        None where the sense has no head.
    """
    name = evaluation.modality
    if (head := model.modality(name).relevance) is None:
        return None
    spec, encoders = recipe.evaluation, model.encoders
    maker = CallMaker(model, recipe, _spec(recipe, name))
    test, _ = split_by_modality(data.examples("test", encoders), name)
    banks, texts = maker.irrelevant(TEST), maker.retention(data.texts("retention_test", encoders))
    relevant = [
        *maker.relevant(test, held_out=False), *maker.relevant(test, held_out=True)
    ]  # fmt: skip
    opened = [
        counted_by_kind(
            [call.kind for call in calls],
            scores_of(model, head, calls, scores, progress=progress),
            head.threshold,
        )
        for calls in (banks, texts, relevant)
    ]
    foreign = data.samples("foreign_test", name, encoders[name])
    statement = head.statement or {}
    return Relevance(
        layer=head.layer,
        threshold=head.threshold,
        false_opens={**opened[0], **opened[1]},
        opens=opened[2],
        influence=influence(
            model, name, maker.questions(TEST, _ASKED), test, foreign,
            batch_size=spec.batch_size, seed=recipe.training.seed, progress=progress,
        ),
        gain=_gain(model, recipe, test, evaluation, progress),
        sentence=str(statement.get("sentence", "")),
    )  # fmt: skip


def _gain(
    model: SafeModel,
    recipe: Recipe,
    test: Sequence[Example],
    evaluation: Evaluation,
    progress: ProgressCallback,
) -> dict[str, GainKept]:
    """What the gate that decides keeps of the gain, as the rows ask and in held-out forms."""
    name, spec = evaluation.modality, recipe.evaluation
    base = [float(normalise(row.base) == normalise(row.expected)) for row in evaluation.answers]
    right = [float(row.right) for row in evaluation.answers]
    heard = opens(model, name, test, batch_size=spec.batch_size)
    kept = {"the test's wordings": gain_kept(base, right, heard)}
    if evaluation.wordings is None or not evaluation.wordings.kinds:
        return kept
    asked = other_questions(test, spec.wordings, drawn_by(recipe.training.seed))
    pairs = zip(asked, evaluation.wordings.asked, strict=False)  # behind them those in chats
    held = [(question, again) for question, again in pairs if question.way == results.HELD_OUT]
    examples = [question.example for question, _ in held]
    with eval_mode(model):
        ask = partial(
            answer, model, max_new_tokens=evaluation.max_new_tokens, batch_size=spec.batch_size,
            progress=progress,
        )  # fmt: skip
        given = answer_without(ask, examples, name, label="held-out wordings, gate 0")
    kept[HELD_OUT] = gain_kept(
        [question.score(text) for (question, _), text in zip(held, given, strict=True)],
        [again.score for _, again in held],
        opens(model, name, examples, batch_size=spec.batch_size),
    )
    return kept


def _spec(recipe: Recipe, name: str) -> RelevanceSpec:
    return recipe.modalities[name].relevance_head or RelevanceSpec()


def _head(model: SafeModel, name: str) -> RelevanceHead:
    head = model.modality(name).relevance
    if head is None:
        raise SafeError(
            f"`{name}` has no relevance head to calibrate",
            hint=f"train with `relevance = true` in [modalities.{name}]",
        )
    return head


__all__ = [
    "HELD_OUT",
    "TRAINED",
    "CalibrationCalls",
    "Counted",
    "calibrate",
    "fit_heads",
    "measure_relevance",
    "own_calls",
    "shipped_calls",
]
