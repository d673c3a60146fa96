"""The threshold of a gate that decides, against exact binomial arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from safe_framework.errors import DataError
from safe_framework.evaluation.relevance import shortage
from safe_framework.evaluation.relevance_risk import (
    Counted,
    calls_needed,
    risk_shown,
    safe_threshold,
    upper_bound,
)

ASKED = [5.0, 6.0, 7.0]


def scores(calls: int, mistakes: int) -> list[float]:
    """Scores of irrelevant calls, of which some lie among the relevant ones'."""
    return [6.5] * mistakes + np.linspace(-3.0, -1.0, calls - mistakes).tolist()


@pytest.mark.parametrize(("calls", "mistakes"), [(299, 0), (473, 1), (628, 2), (298, 0), (472, 1)])
def test_threshold_is_the_binomial_bound_s(calls: int, mistakes: int) -> None:
    """Law: a gate may open on ``mistakes`` of ``calls`` exactly where the binomial tail allows."""
    found = safe_threshold({"some": scores(calls, mistakes)}, ASKED, risk=0.01, confidence=0.95)
    allowed = binom.cdf(mistakes, calls, found.risks["some"]) <= 0.05 + 1e-9
    opens_when_asked = found.value < min(ASKED)
    # Fewer than 299 calls are held to the risk that they can show, which is then no longer 1 %.
    assert opens_when_asked == allowed
    assert (found.risks["some"] == 0.01) == (calls >= 299)


def test_every_kind_is_bounded() -> None:
    """Law: the threshold is the highest of those that the kinds need by themselves."""
    kinds = {"easy": scores(400, 0), "hard": [3.3, *scores(399, 0)]}
    alone = {
        name: safe_threshold({name: own}, ASKED, risk=0.01, confidence=0.95).value
        for name, own in kinds.items()
    }
    both = safe_threshold(kinds, ASKED, risk=0.01, confidence=0.95).value
    assert both == max(alone.values()) > alone["easy"]
    assert 3.3 <= both < 3.4


def test_guarantee_holds_over_repetitions() -> None:
    """Law: the true risk is above what was asked in at most as many calibrations as that says."""
    draw, over, turns = np.random.default_rng(0), 0, 40
    for _ in range(turns):
        own = draw.normal(size=320)
        found = safe_threshold({"all": own.tolist()}, [9.0], risk=0.05, confidence=0.9)
        over += float(norm.sf(found.value)) > 0.05
    assert over <= binom.ppf(0.999, turns, 0.1)


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    """Law: the interval of a share is the beta distribution's."""
    for count, calls in ((0, 140), (3, 140), (139, 140), (140, 140)):
        found = Counted.of([True] * count + [False] * (calls - count))
        low = beta.ppf(0.025, count, calls - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, calls - count) if count < calls else 1.0
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
        assert found.each.count("1") == count


def test_too_few_calls_say_what_they_show() -> None:
    """Law: so many calls without a mistake bound the risk that is given for them."""
    assert calls_needed(0.01, 0.95) == 299
    assert upper_bound(0, 120, 0.95) == pytest.approx(risk_shown(120, 0.01, 0.95), rel=1e-6)
    assert "`mine` has 120 calls, of 299" in shortage({"mine": 120}, 0.01, 0.95)
    assert not shortage({"mine": 299}, 0.01, 0.95)


def test_missing_mapie_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: without MAPIE the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "mapie.risk_control", None)
    with pytest.raises(DataError, match=r"pip install 'safe-framework\[calibrate\]'"):
        safe_threshold({"some": scores(300, 0)}, ASKED, risk=0.01, confidence=0.95)
