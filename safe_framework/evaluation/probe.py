"""A linear probe: how much of the answer frozen frames show to the simplest reader.

It bounds from below what a trained modality should reach: multinomial logistic regression on the
mean and deviation of the frames over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from safe_framework.interfaces.types import Frames

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 5
_ITERATIONS = 100
_HISTORY = 10

Features = Annotated[Tensor, "examples features"]


def pool(frames: Frames) -> Features:
    """Mean and standard deviation over a sample's real frames, (batch, 2 * dim), fp64 on CPU."""
    values = frames.values.detach().double().cpu()
    mask = frames.mask.cpu().unsqueeze(-1)
    count = mask.sum(dim=1).clamp_min(1)
    mean = torch.where(mask, values, 0.0).sum(dim=1) / count
    deviation = torch.where(mask, values - mean.unsqueeze(1), 0.0).square().sum(dim=1) / count
    return torch.cat([mean, deviation.sqrt()], dim=1)


def probe(
    train: Features, labels: Sequence[str], test: Features, *, seed: int = 0
) -> tuple[str, ...]:
    """Fit on ``train`` alone and name the rows of ``test``.

    The features are standardised by the training rows, and the L2 penalty is the one that names
    most left-out training rows over seeded folds; the test rows choose nothing.

    Args:
        train: (examples, features).
        labels: one for each training row.
        test: rows to name, (examples, features).
        seed: of the folds.
    """
    names = sorted(set(labels))
    index = {name: number for number, name in enumerate(names)}
    targets = torch.tensor([index[label] for label in labels])
    mean, scale = train.mean(dim=0), train.std(dim=0, correction=0).clamp_min(1e-8)
    train, test = (train - mean) / scale, (test - mean) / scale
    weights = _fit(train, targets, len(names), _best_penalty(train, targets, len(names), seed))
    return tuple(names[number] for number in _scores(test, weights).argmax(dim=1).tolist())


def cross_validate(
    rows: Features, labels: Sequence[str], groups: Sequence[str] = (), *, seed: int = 0
) -> tuple[str, ...]:
    """What probes say of rows that they were not fitted on.

    Each is fitted on all folds but one, or on all groups but one, and names the one left out. The
    penalty is the one that names most rows right, of all folds together.

    Args:
        rows: (examples, features).
        labels: of the rows.
        groups: of the rows, such as their sources; seeded folds if there are none.
        seed: of the folds.
    """
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    known = sorted(set(groups))
    fold = torch.tensor([known.index(group) for group in groups]) if known else None
    fold = _folds(targets, seed) if fold is None else fold
    rows = _reduced((rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0).clamp_min(1e-8))
    best = targets.new_full(targets.shape, -1)
    for penalty in _PENALTIES:
        named = torch.empty_like(targets)
        for number in sorted(set(fold.tolist())):
            kept, left = fold != number, fold == number
            weights = _fit(rows[kept], targets[kept], len(names), penalty)
            named[left] = _scores(rows[left], weights).argmax(dim=1)
        if (named == targets).sum() >= (best == targets).sum():
            best = named
    return tuple(names[number] for number in best.tolist())


def _reduced(rows: Features) -> Features:
    """The rows turned so that they need no more columns than there are rows.

    That changes no product of two rows, on which alone a regression with an L2 penalty depends.
    """
    if rows.shape[1] <= rows.shape[0]:
        return rows
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    turned: Features = left * sizes
    return turned


def _best_penalty(train: Features, targets: Tensor, classes: int, seed: int) -> float:
    fold = _folds(targets, seed)
    right = {penalty: 0 for penalty in _PENALTIES}
    for penalty in _PENALTIES:
        for number in range(min(_FOLDS, len(targets))):
            kept, left = fold != number, fold == number
            if kept.any():
                weights = _fit(train[kept], targets[kept], classes, penalty)
                named = _scores(train[left], weights).argmax(dim=1)
                right[penalty] += int((named == targets[left]).sum())
    return max(reversed(_PENALTIES), key=lambda penalty: right[penalty])


def _folds(targets: Tensor, seed: int) -> Tensor:
    """The fold of each row, (examples,): classes are spread evenly, in a seeded order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    by_class = order[targets[order].argsort(stable=True)]
    fold = torch.empty_like(targets)
    fold[by_class] = torch.arange(len(targets)) % _FOLDS
    return fold


def _fit(rows: Features, targets: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights of the logistic regression, (features + 1, classes); the last row is the bias."""
    weights = rows.new_zeros(rows.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_ITERATIONS,
        history_size=_HISTORY,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        """The penalised cross entropy, its gradient computed."""
        optimizer.zero_grad()
        value = functional.cross_entropy(_scores(rows, weights), targets)
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch has no types here
    return weights.detach()


def _scores(rows: Features, weights: Tensor) -> Tensor:
    return rows @ weights[:-1] + weights[-1]
