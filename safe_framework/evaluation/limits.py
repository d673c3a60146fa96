"""What limits a modality on its test rows: the features of its encoder, or its training.

A linear probe reads the same frozen features as the modality does. Where the modality is as good as
the probe, more training has little to work with; where it falls behind, the features are not the
reason. Both are also said of each source that rows name, since a source that training never heard
is harder for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs

from safe_framework.data.fields import SOURCE
from safe_framework.data.tasks import CAPTIONS
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match
from safe_framework.utils.formatting import percent

if TYPE_CHECKING:
    from safe_framework.data.examples import Example
    from safe_framework.evaluation.results import Answered

Limiting = Literal["features", "training", "nothing", "unknown"]

_SOLVED = 0.97  # accuracy above which nothing is left to limit
_CLOSE = -0.1  # a difference to the probe that the interval must exclude to call them equal


@attrs.frozen
class Limit:
    """How the modality does on some rows, and how a linear probe on its features does.

    Attributes:
        accuracy: of the modality.
        probe: of the linear probe.
        over_probe: paired difference of the two.
        trained: whether training rows are of the same source; None where they name none.
    """

    accuracy: Estimate
    probe: Estimate
    over_probe: Estimate
    trained: bool | None = None

    @property
    def limiting(self) -> Limiting:
        """What keeps it from being better, as far as so many rows tell."""
        if self.accuracy.value >= _SOLVED:
            return "nothing"
        if self.over_probe.high < 0:
            return "training"
        return "features" if self.over_probe.low > _CLOSE else "unknown"

    @property
    def advice(self) -> str:
        """What would help, in one sentence."""
        reaches = f"a linear probe reaches {percent(self.probe.value)}"
        return {
            "features": f"{reaches}: another layer, encoder or more sources will help, more steps "
            "will not",
            "training": f"{reaches}: more steps, or another projector or fusion, will help",
            "nothing": f"{reaches}, and nearly all is right",
            "unknown": f"{reaches}: {self.accuracy.n} rows are too few to tell",
        }[self.limiting]


def limit_of(
    answers: Sequence[Answered], *, resamples: int, seed: int, trained: bool | None = None
) -> Limit | None:
    """The limit on some rows; None where a probe named none of them.

    Args:
        answers: with what the probe said.
        resamples: of the intervals.
        seed: of the intervals.
        trained: whether training rows are of the same source.
    """
    rows = [row for row in answers if row.probe and row.task != CAPTIONS]
    if not rows:
        return None
    estimate = partial(bootstrap, resamples=resamples, seed=seed)
    expected = [row.expected for row in rows]
    own = exact_match([row.answer for row in rows], expected)
    probe = exact_match([row.probe for row in rows], expected)
    return Limit(estimate(own), estimate(probe), estimate(own - probe), trained)


def by_source(
    answers: Sequence[Answered], train: Sequence[Example], *, resamples: int, seed: int
) -> dict[str, Limit]:
    """The limit on the test rows of each source, as rows name them in ``source``."""
    known = {str(e.fields[SOURCE]) for e in train if e.fields.get(SOURCE) is not None}
    found = {}
    for source in dict.fromkeys(row.source for row in answers if row.source):
        rows = [row for row in answers if row.source == source]
        trained = source in known if known else None
        limit = limit_of(rows, resamples=resamples, seed=seed, trained=trained)
        if limit is not None:
            found[source] = limit
    return found
