"""What a report shows besides the evaluation, where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from safe_framework.core.adapter import CERTIFICATE
from safe_framework.evaluation.attention import AttentionSummary, read_attention
from safe_framework.evaluation.sweep import GateSweep, read_sweeps
from safe_framework.utils.run_folder import adapter_in
from safe_framework.verification.certificate import Certificate

_SHOWN_GATES = (0.0, 0.5, 1.0)


@attrs.frozen
class ReportInputs:
    """Results of other commands than the run itself.

    Attributes:
        certificate: of ``safe verify``.
        sweeps: of ``safe sweep``, by modality.
        attention: of a few test samples.
    """

    certificate: Certificate | None = None
    sweeps: Mapping[str, GateSweep] = attrs.field(factory=dict)
    attention: Sequence[AttentionSummary] | None = None

    @classmethod
    def of(cls, folder: Path) -> ReportInputs:
        """What was measured on the run in a folder."""
        path = adapter_in(folder) / CERTIFICATE
        certificate = Certificate.from_json(path.read_text("utf-8")) if path.is_file() else None
        return cls(certificate, read_sweeps(folder), read_attention(folder))

    def answers(self, modality: str, place: str) -> list[tuple[float, str]]:
        """The gates that a sample's card shows, and what was answered there."""
        sweep = self.sweeps.get(modality)
        if sweep is None or place not in sweep.places:
            return []
        row = sweep.places.index(place)
        points = [sweep.at(gate) for gate in _SHOWN_GATES]
        return [(point.gate, point.answers[row]) for point in points if point is not None]
