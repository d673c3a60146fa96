"""Questions with a picture and a sample: what each sense alone, or a wrong one, would answer.

A question needs both senses where no baseline comes near. A sense alone is one beside which the
other is absent (a sample) or blank (a picture, grey and of the same size, since a base may need one
to be there); a wrong one is another example's, of another answer wherever that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from safe_framework.data.examples import Example
from safe_framework.data.pictures import Picture
from safe_framework.evaluation.answers import derangement
from safe_framework.evaluation.metrics import bootstrap, exact_match, normalise
from safe_framework.evaluation.results import Answered, Baseline, BothSenses, BothSensesScores
from safe_framework.utils.optional_imports import require

_GREY = (127, 127, 127)

PICTURE_ALONE, OTHER_SAMPLE = "picture alone", "picture, another's sample"
SAMPLE_ALONE, OTHER_PICTURE = "sample alone", "sample, another's picture"


def with_blank_pictures(examples: Sequence[Example]) -> list[Example]:
    """The examples, each with grey pictures of the sizes of its own."""
    return [attrs.evolve(one, images=tuple(map(_blank, one.images))) for one in examples]


def _blank(picture: Picture) -> Picture:
    size = picture.open().size
    blank = require("PIL.Image", "image", "pictures need Pillow").new("RGB", size, _GREY)
    return Picture(blank, f"a blank one of {size[0]} x {size[1]}")


def with_shuffled_pictures(examples: Sequence[Example], *, seed: int = 0) -> list[Example]:
    """The examples, each with the pictures of another one that has as many.

    Of another answer wherever that is possible.
    """
    found = list(examples)
    for count in {len(example.images) for example in examples}:
        rows = [row for row, example in enumerate(examples) if len(example.images) == count]
        order = derangement([normalise(examples[row].answer) for row in rows], seed=seed)
        for row, other in zip(rows, order, strict=True):
            found[row] = attrs.evolve(examples[row], images=examples[rows[other]].images)
    return found


def both_senses(answers: Sequence[Answered], *, resamples: int, seed: int) -> BothSenses | None:
    """How the rows with a picture were answered; None where there are none.

    Args:
        answers: of all test examples, each of which has a sample.
        resamples: of the intervals.
        seed: of the intervals.
    """
    rows = [row for row in answers if row.pictured]
    if not rows:
        return None
    kinds = dict.fromkeys(row.kind for row in rows if row.kind)
    drawing: Any = {"resamples": resamples, "seed": seed}
    return BothSenses(
        _scores(rows, **drawing),
        {kind: _scores([row for row in rows if row.kind == kind], **drawing) for kind in kinds},
    )


def _scores(rows: Sequence[Answered], *, resamples: int, seed: int) -> BothSensesScores:
    expected = [row.expected for row in rows]
    both = exact_match([row.answer for row in rows], expected)
    given = {
        PICTURE_ALONE: [row.base for row in rows],
        OTHER_SAMPLE: [row.shuffled for row in rows],
        SAMPLE_ALONE: [row.blank_picture or "" for row in rows],
        OTHER_PICTURE: [row.other_picture or "" for row in rows],
    }
    baselines = {}
    for name, answers in given.items():
        right = exact_match(answers, expected)
        baselines[name] = Baseline(
            bootstrap(right, resamples=resamples, seed=seed),
            bootstrap(both - right, resamples=resamples, seed=seed),
        )
    return BothSensesScores(bootstrap(both, resamples=resamples, seed=seed), baselines)
