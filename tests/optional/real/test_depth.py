"""The tour of adding a modality on real models: SmolLM2, DINOv2, and the maps that ship."""

import runpy
import sys
from pathlib import Path

import pytest

from safe_framework.evaluation.results import Evaluation
from safe_framework.verification.certificate import Certificate

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_it_sees_and_stays_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gain over shuffled depth is 0.5 or more; without depth it is the base bit for bit."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["tour", "--shipped", "--output", str(tmp_path / "depth")])
    runpy.run_path(str(EXAMPLES / "add_depth_modality.py"), run_name="__main__")
    found = Evaluation.from_json((tmp_path / "depth/metrics.json").read_text("utf-8"))
    assert found.gain.over_shuffled.value >= 0.5
    assert found.retention.absent.identical
    assert found.retention.absent.agreement == 1.0
    assert found.gate_zero.identical
    assert found.retention.overall.agreement.value >= 0.95
    certificate = tmp_path / "depth/adapter/certificate.json"
    assert Certificate.from_json(certificate.read_text("utf-8")).holds
    assert "gain over shuffled depth" in capsys.readouterr().out
