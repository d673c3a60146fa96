"""What a report shows beside the evaluation, where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from safe_framework.evaluation.attention import Attended
from safe_framework.evaluation.sweep import GateSweep

if TYPE_CHECKING:
    from safe_framework.verification.certificate import Certificate

_SHOWN_GATES = (0.0, 0.5, 1.0)


@attrs.frozen
class Extras:
    """Results of other commands than the run itself.

    Attributes:
        certificate: of ``safe verify``.
        sweeps: of ``safe sweep``, by modality.
        attention: of a few test samples.
    """

    certificate: Certificate | None = None
    sweeps: Mapping[str, GateSweep] = attrs.field(factory=dict)
    attention: Sequence[Attended] | None = None

    def answers(self, modality: str, place: str) -> list[tuple[float, str]]:
        """The gates that a sample's card shows, and what was answered there."""
        sweep = self.sweeps.get(modality)
        if sweep is None or place not in sweep.places:
            return []
        row = sweep.places.index(place)
        points = [sweep.at(gate) for gate in _SHOWN_GATES]
        return [(point.gate, point.answers[row]) for point in points if point is not None]
