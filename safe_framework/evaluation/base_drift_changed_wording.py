"""What every output of a model with a changed base says, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safe_framework.evaluation.base_drift_changed import BaseChanged, Drift
from safe_framework.utils.formatting import percent


def given_up(laws: Sequence[str]) -> str:
    """Which laws do not hold.

    >>> given_up(("L1", "L2"))
    'L1 and L2 do not hold'
    """
    return f"{' and '.join(laws)} do not hold"


def sentence(changed: BaseChanged) -> str:
    """The base was changed: how, what that gives up, how far it went, and what off() is."""
    return (
        f"THE BASE WAS CHANGED ({changed.described}): {given_up(changed.laws_given_up)}. "
        f"Without a sample, {drifted(changed.drift)}. {of_off(changed.off_is_the_original_base)}"
    )


def drifted(drift: Drift) -> str:
    """How far the base went, in numbers."""
    return (
        f"{percent(drift.agreement.value)} of next tokens are the original's, KL "
        f"{drift.kl.value:.2g} nats, largest logit difference {drift.largest:.2g} "
        f"({drift.texts} {drift.source})"
    )


def of_off(original: bool) -> str:
    """What switching everything off gives."""
    if original:
        return "off() is the original base, bit for bit."
    return "off() is the changed base: its layers were trained in place."


def for_the_card(facts: Mapping[str, Any]) -> str:
    """What the model card of an adapter says, from the adapter's config."""
    drift = facts["drift"]
    told = (
        f"Without a sample, {percent(drift['agreement'])} of next tokens on {drift['texts']} "
        f"{drift['source']} were the original's (KL {drift['kl']:.2g} nats, largest logit "
        f"difference {drift['largest']:.2g})."
        if drift
        else "How far it went from the original was not measured: `safe verify` does."
    )
    return (
        f"**The base was changed** ({facts['described']}, {facts['parameters']:,} parameters). "
        f"{given_up(facts['laws_given_up'])}: with the sense absent or its gate at 0, outputs are "
        f"NOT the base model's. {told} {of_off(facts['off_is_the_original_base'])}"
    )


def for_the_adapter(drift: Drift) -> dict[str, Any]:
    """The numbers that an adapter's config keeps."""
    return {
        "agreement": drift.agreement.value,
        "kl": drift.kl.value,
        "largest": drift.largest,
        "positions": drift.positions,
        "texts": drift.texts,
        "source": drift.source,
    }
