"""The quickstart on its real models: what it must reach, and the laws on its trained adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import safe_framework
from safe_framework.data.audio import read_audio
from safe_framework.evaluation.results import Evaluation
from safe_framework.runs.run import run_recipe
from safe_framework.utils.catalogue import recipe_path
from safe_framework.utils.tensors import bitwise_equal

pytestmark = pytest.mark.real

TEXTS = ["The capital of France is", "Name a string instrument.", "2 + 2 ="]
CALLS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "use_cache": False},
    {"num_beams": 3, "do_sample": False},
    {"do_sample": True, "temperature": 1.0},
]


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """All cores, for the one long training run."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, threads: None) -> Path:
    """The folder of a whole run of the quickstart."""
    return run_recipe("quickstart", output=tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def measured(run: Path) -> Evaluation:
    """What the run measured."""
    return Evaluation.from_json((run / "metrics.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def model(run: Path) -> safe_framework.SafeModel:
    """The trained adapter, loaded as a user would."""
    return safe_framework.load(run / "adapter")


@pytest.fixture(scope="module")
def batch(model: safe_framework.SafeModel) -> dict[str, torch.Tensor]:
    """Three texts, two of them beside a flute."""
    clips = recipe_path("quickstart").parent.parent / "data" / "instruments" / "clips"
    wave = read_audio(sorted(clips.glob("flute*"))[0], 16_000)
    return dict(model.processor(text=TEXTS, audio=[wave, None, wave]))


def plain(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same texts without the modality."""
    return {key: value for key, value in batch.items() if "__" not in key}


def test_it_names_instruments_and_notes(measured: Evaluation) -> None:
    """0.70 of unseen notes of its banks, 0.85 of what a probe names; of a third bank 0.35."""
    own = [found for found in measured.sources.values() if found.trained]
    (other,) = (found for found in measured.sources.values() if not found.trained)
    notes = sum(found.accuracy.n for found in own)
    for what, least in (("accuracy", 0.70), ("probe", 0.70)):
        right = sum(getattr(found, what).value * found.accuracy.n for found in own)
        assert right >= least * notes
    assert measured.gain.accuracy.value >= 0.85 * measured.gain.probe.value
    assert measured.gain.over_shuffled.value >= 0.45
    assert other.accuracy.value >= 0.35


def test_it_keeps_what_the_base_was(measured: Evaluation) -> None:
    """Absent and at gate 0 it is the base bit for bit; irrelevant sound leaves 0.985 of tokens."""
    assert measured.retention.absent.identical
    assert measured.retention.absent.agreement == 1.0
    assert measured.gate_zero.identical
    assert measured.retention.overall.agreement.value >= 0.985


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_off_is_the_base(
    model: safe_framework.SafeModel, batch: dict[str, torch.Tensor], call: dict[str, Any]
) -> None:
    """L2: with the trained adapter off, every way of generating gives the base's tokens."""
    options = {"max_new_tokens": 8, **call}
    torch.manual_seed(0)
    base = model.base.generate(**plain(batch), **options)  # type: ignore[operator]  # a method
    torch.manual_seed(0)
    with model.off():
        off = model.generate(**batch, **options)
    torch.manual_seed(0)
    shut = model.generate(**batch, gate=0.0, **options)
    assert torch.equal(base, off)
    assert torch.equal(base, shut)


def test_rows_without_a_sample_keep_their_bits(
    model: safe_framework.SafeModel, batch: dict[str, torch.Tensor]
) -> None:
    """L4: in a mixed batch the row without a sound is the base's, and the others are not."""
    with torch.no_grad():
        base, mixed = model.base(**plain(batch)).logits, model(**batch).logits
    assert bitwise_equal(base[1], mixed[1])
    assert not torch.equal(base[0], mixed[0])


def test_cached_decoding_is_uncached_decoding(
    model: safe_framework.SafeModel, batch: dict[str, torch.Tensor]
) -> None:
    """With the modality on, a cache changes no token."""
    options = {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, use_cache=False, **options))
