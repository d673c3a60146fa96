"""Score the answers: with the sense, without it, with another's sample, by a probe, by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from safe_framework.evaluation.metrics import bootstrap, exact_match, normalise, token_f1
from safe_framework.evaluation.results import OTHER, Answered, Gain
from safe_framework.evaluation.semantic import SentenceEncoder, similarity


def gain(
    answers: Sequence[Answered],
    train_labels: Sequence[str],
    *,
    resamples: int,
    seed: int,
    judge: SentenceEncoder | None = None,
) -> Gain:
    """Accuracies and paired gains, with intervals.

    Args:
        answers: the test examples with all their answers.
        train_labels: answers of the training examples; the commonest one is chance's.
        resamples: of the intervals.
        seed: of the intervals.
        judge: says how like an answer is to the expected one; None to leave that out.
    """
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    expected = [row.expected for row in answers]
    with_sense = exact_match([row.answer for row in answers], expected)
    base = exact_match([row.base for row in answers], expected)
    shuffled = exact_match([row.shuffled for row in answers], expected)
    commonest = Counter(map(normalise, train_labels)).most_common(1)[0][0]
    classes = sorted(set(map(normalise, expected)))
    names = [normalise(answer) for answer in expected]
    return Gain(
        accuracy=estimate(with_sense),
        probe=estimate(exact_match([row.probe for row in answers], expected)),
        base=estimate(base),
        shuffled=estimate(shuffled),
        chance=estimate(exact_match([commonest] * len(answers), expected)),
        over_base=estimate(with_sense - base),
        over_shuffled=estimate(with_sense - shuffled),
        per_class={
            name: estimate(with_sense[[other == name for other in names]]) for name in classes
        },
        confusion=confusion(answers, {*classes, *map(normalise, train_labels)}),
        semantic=estimate(similarity(judge, [row.answer for row in answers], expected))
        if judge
        else None,
        token_f1=estimate(token_f1([row.answer for row in answers], expected)),
    )


def confusion(answers: Sequence[Answered], classes: set[str]) -> Mapping[str, Mapping[str, int]]:
    """For each expected answer, how often each class, or ``OTHER``, was answered."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in sorted({normalise(row.expected) for row in answers})
    }
    for row in answers:
        given = normalise(row.answer)
        counts[normalise(row.expected)][given if given in classes else OTHER] += 1
    return {name: dict(sorted(row.items())) for name, row in counts.items()}
