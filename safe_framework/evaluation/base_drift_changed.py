"""What a result says of a base that Stage B changed."""

from __future__ import annotations

import attrs

from safe_framework.evaluation.metrics import Estimate

HELD_OUT, SHIPPED, MADE_UP = "held-out texts", "texts that ship with the framework", "made-up words"


@attrs.frozen
class Drift:
    """The changed base without a sample, against the original, at the positions of some texts.

    Attributes:
        agreement: share of positions where both rank the same next token first.
        kl: mean KL(original || changed) of a position, in nats.
        largest: the largest difference of two logits.
        positions: how many were compared.
        texts: how many there were.
        source: where they come from.
        off_identical: whether ``off()`` gave the original's logits bit for bit.
    """

    agreement: Estimate
    kl: Estimate
    largest: float
    positions: int
    texts: int
    source: str
    off_identical: bool


@attrs.frozen
class BaseChanged:
    """What every result of a model with a changed base says of it.

    Attributes:
        method: of ``[stage_b]``.
        described: what was changed, for people.
        parameters: how many numbers of the base, or beside it, were trained.
        laws_given_up: keys of docs/laws.md.
        off_is_the_original_base: whether ``off()`` is meant to be.
        drift: how far the base was taken.
    """

    method: str
    described: str
    parameters: int
    laws_given_up: tuple[str, ...]
    off_is_the_original_base: bool
    drift: Drift
