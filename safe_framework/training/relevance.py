"""Fits the relevance head of a sense, which opens its gate where that is ``"auto"``.

The head sees the base's own states alone, which no adapter changes before the end of a prompt (law
L8). So it needs no second run over the data: each call is run through the frozen base once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.irrelevant import TRAIN
from safe_framework.errors import DataError, SafeError
from safe_framework.training.relevance_calls import CallMaker, GateCall
from safe_framework.training.relevance_states import prompt_states
from safe_framework.utils.progress import ProgressCallback, no_progress

_PENALTY = 10.0  # of squared weights
_REACH = 0.5  # of a landmark: the mean squared difference at which it is a third as near
_LANDMARKS = 1024  # of relevant calls, and of irrelevant ones
_TIMES = 2  # that a form is asked, of other rows and in other chats
_RELEVANT = 2000  # calls, at most
_ITERATIONS = 80


def fit_relevance(
    model: SafeModel,
    name: str,
    recipe: Recipe,
    examples: Sequence[Example],
    texts: Sequence[TextRow],
    *,
    progress: ProgressCallback = no_progress,
) -> RelevanceHead:
    """Fit the head of a modality; its threshold is that of even odds until it is calibrated.

    It reads the output of the base's last layer: on forms unlike those that a head was fitted on,
    one of lower layers opened for fewer. Penalty and reach are fixed, since on one user's forms the
    best of them would be chance.

    Args:
        model: with the modality.
        name: of the modality.
        recipe: its table of the modality says how.
        examples: that the modality was trained on.
        texts: of retention, as in training; may be none.
        progress: called with a label, how many groups of calls have run and of how many.

    Raises:
        SafeError: the recipe has no head for it.
        DataError: the examples ask too few different things.
    """
    spec = recipe.modalities[name].relevance_head
    if spec is None:
        raise SafeError(
            f"the recipe has no relevance head for `{name}`", hint="set `relevance = true`"
        )
    maker = CallMaker(model, recipe, spec)
    having = [example for example in examples if name in example.samples]
    relevant = maker.relevant(having, held_out=False, times=_TIMES, most=_RELEVANT)
    if not relevant:
        raise DataError(f"no training row has a sample of `{name}`")
    calls = [*relevant, *maker.irrelevant(TRAIN), *maker.retention(texts)]
    layer = model.stack.count - 1
    states = prompt_states(model, [call.row for call in calls], [layer], progress=progress)
    return fit_head(states[layer], calls, layer)


def fit_head(states: Tensor, calls: Sequence[GateCall], layer: int) -> RelevanceHead:
    """The head that tells relevant calls from others.

    Args:
        states: (calls, hidden).
        calls: in the same order.
        layer: of the base, whose output the states are, from 0.

    Raises:
        DataError: there are too few calls.
    """
    relevant = torch.tensor([call.relevant for call in calls])
    count = int(relevant.sum())
    if min(count, len(calls) - count) < 2:
        raise DataError(
            "a relevance head needs at least two relevant calls and two others",
            hint="give `question` in [data] more forms, or a bank",
        )
    return _fit(states, relevant, layer)


def _fit(states: Tensor, relevant: Tensor, layer: int) -> RelevanceHead:
    """Kernel logistic regression on landmarks, both classes weighing alike."""
    values = states.double()
    mean, deviation = values.mean(0), values.std(0, correction=0).clamp_min(1e-6)
    scale = deviation * _REACH**0.5  # so that the reach of a head's landmarks is 1
    standard = (values - mean) / scale
    seen = torch.cat([_some(standard[relevant]), _some(standard[~relevant])])
    squares = torch.cdist(standard, seen).square() / standard.shape[1]
    near = torch.exp(-squares)  # (calls, landmarks)
    middle, spread = near.mean(0), near.std(0, correction=0).clamp_min(1e-6)
    weights = _logistic((near - middle) / spread, relevant, _PENALTY)
    weight = weights[:-1] / spread
    return RelevanceHead(
        mean, scale, weight, weights[-1] - weight @ middle, layer=layer, landmarks=seen
    )


def _some(rows: Tensor) -> Tensor:
    """At most as many of the rows as there are landmarks, at equal distances."""
    count = min(_LANDMARKS, len(rows))
    return rows[torch.arange(count) * len(rows) // count]


def _logistic(rows: Tensor, relevant: Tensor, penalty: float) -> Tensor:
    """Weights of an L2 logistic regression, the bias last, (features + 1,)."""
    share = (~relevant).sum() / relevant.sum()
    each = torch.where(relevant, share, torch.ones(())).double()
    wanted = relevant.double()
    weights = rows.new_zeros(rows.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        """The penalised cross entropy, its gradient computed."""
        optimizer.zero_grad()
        scores = rows @ weights[:-1] + weights[-1]
        fit = functional.binary_cross_entropy_with_logits(scores, wanted, weight=each)
        value = fit * len(rows) + penalty / 2 * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch has no types here
    return weights.detach()
