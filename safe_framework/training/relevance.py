"""Fits the relevance head of a sense, which opens its gate where that is ``"auto"``.

The head sees the base's own states alone, which no adapter changes before the end of a prompt (law
L8). So it needs no second run over the data: each call is run through the frozen base once, for all
layers that are tried.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
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

_LAYERS = (0.6, 0.7, 0.8, 0.87, 0.94, 1.0)  # how deep, of all; the first half knows too little
_REACHES = (1.0, 2.0)  # of a landmark: squares of distances are multiplied by it
_PENALTIES = (10.0, 1.0, 0.1)
_LANDMARKS = 512  # of relevant calls, and of irrelevant ones
_FOLDS = 3
_CLUSTERS = 24  # of forms that are alike, each in one fold
_TIMES = 2  # that a form is asked, of other rows and in other chats
_TAIL = 0.99  # of irrelevant calls of each kind that a head is judged beyond
_ITERATIONS = 80


@attrs.frozen
class HeadChoice:
    """What a head is fitted with.

    Attributes:
        layer: of the base, whose output it reads, from 0.
        reach: by which squares of distances to landmarks are multiplied.
        penalty: of squared weights.
    """

    layer: int
    reach: float
    penalty: float


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

    Layer, then reach and penalty, are those with which, over folds of the training calls, most
    relevant calls score above all but a hundredth of the irrelevant ones of each kind.

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
    relevant = maker.relevant(having, held_out=False, times=_TIMES)
    if not relevant:
        raise DataError(f"no training row has a sample of `{name}`")
    calls = [*relevant, *maker.irrelevant(TRAIN), *maker.retention(texts)]
    layers = tried_layers(model.stack.count)
    states = prompt_states(model, [call.row for call in calls], layers, progress=progress)
    return best_head(states, calls)


def tried_layers(count: int) -> list[int]:
    """The layers whose states are tried, of so many.

    >>> tried_layers(30), tried_layers(2)
    ([17, 20, 23, 25, 27, 29], [0, 1])
    """
    return sorted({max(0, round(depth * count) - 1) for depth in _LAYERS})


def best_head(states: Mapping[int, Tensor], calls: Sequence[GateCall]) -> RelevanceHead:
    """The head that tells calls apart best on those that it was not fitted on.

    Args:
        states: by layer, (calls, hidden).
        calls: in the same order.

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
    kinds = [call.kind for call in calls]
    fold = _folds(calls, states[max(states)])

    def judged(choice: HeadChoice) -> tuple[float, float]:
        """How well a head that is fitted so does."""
        return _judged(states[choice.layer], relevant, kinds, fold, choice)

    layer = max((HeadChoice(layer, _REACHES[0], _PENALTIES[1]) for layer in states), key=judged)
    pairs = itertools.product(_REACHES, _PENALTIES)
    best = max((HeadChoice(layer.layer, *pair) for pair in pairs), key=judged)
    return _fit(states[best.layer], relevant, best)


def _folds(calls: Sequence[GateCall], states: Tensor) -> Tensor:
    """The fold of each call, (calls,): what is asked alike stays together.

    A head is to open for forms that are unlike those that it was fitted on. So forms are put into
    clusters by their mean state, and whole clusters into folds. Other texts are spread one by one.

    Args:
        calls: relevant ones and others.
        states: by which forms are alike, (calls, hidden).
    """
    forms = dict.fromkeys(call.text for call in calls if call.relevant)
    number = {text: index for index, text in enumerate(forms)}
    own = torch.tensor([number[call.text] for call in calls if call.relevant])
    asked = states[torch.tensor([call.relevant for call in calls])].double()
    sums = asked.new_zeros(len(forms), asked.shape[1]).index_add(0, own, asked)
    means = sums / torch.bincount(own)[:, None]
    clusters = _clusters((means - means.mean(0)) / means.std(0, correction=0).clamp_min(1e-6))
    found, of_kind = dict[tuple[str, str], int](), Counter[str]()
    for call in calls:
        key = call.kind, call.text
        if call.relevant:
            found[key] = clusters[number[call.text]] % _FOLDS
        elif key not in found:
            found[key] = of_kind[call.kind] % _FOLDS
            of_kind[call.kind] += 1
    return torch.tensor([found[call.kind, call.text] for call in calls])


def _clusters(points: Tensor) -> list[int]:
    """The cluster of each point: that of the nearest of some that lie far apart.

    They are found one after another, each the farthest from those before (Gonzalez 1985,
    "Clustering to minimize the maximum intercluster distance").
    """
    nearest = torch.cdist(points, points[:1]).squeeze(1)
    cluster = torch.zeros(len(points), dtype=torch.long)
    for number in range(1, min(_CLUSTERS, len(points))):
        distance = torch.cdist(points, points[nearest.argmax()][None]).squeeze(1)
        cluster[distance < nearest] = number
        nearest = torch.minimum(nearest, distance)
    return cluster.tolist()


def _judged(
    states: Tensor, relevant: Tensor, kinds: Sequence[str], fold: Tensor, choice: HeadChoice
) -> tuple[float, float]:
    """How many relevant calls are told from the irrelevant ones' tail; then how surely."""
    scores = torch.empty(len(states))
    for number in range(_FOLDS):
        kept, left = fold != number, fold == number
        if relevant[kept].all() or not relevant[kept].any():
            return 0.0, float("-inf")
        scores[left] = _fit(states[kept], relevant[kept], choice)(states[left])
    others = [kind if not mine else "" for kind, mine in zip(kinds, relevant, strict=True)]
    ends = []
    for kind in dict.fromkeys(filter(None, others)):
        own = scores[torch.tensor([one == kind for one in others])]
        ends.append(float(own.quantile(_TAIL)))
    opened = float((scores[relevant] > max(ends)).float().mean())
    loss = functional.binary_cross_entropy_with_logits(scores, relevant.float())
    return opened, -float(loss)


def _fit(states: Tensor, relevant: Tensor, choice: HeadChoice) -> RelevanceHead:
    """Kernel logistic regression on landmarks, both classes weighing alike."""
    values = states.double()
    mean, scale = values.mean(0), values.std(0, correction=0).clamp_min(1e-6)
    scale = scale / choice.reach**0.5
    standard = (values - mean) / scale
    seen = torch.cat([_some(standard[relevant]), _some(standard[~relevant])])
    squares = torch.cdist(standard, seen).square() / standard.shape[1]
    near = torch.exp(-squares)  # (calls, landmarks)
    middle, spread = near.mean(0), near.std(0, correction=0).clamp_min(1e-6)
    weights = _logistic((near - middle) / spread, relevant, choice.penalty)
    weight = weights[:-1] / spread
    return RelevanceHead(
        mean, scale, weight, weights[-1] - weight @ middle, layer=choice.layer, landmarks=seen
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
