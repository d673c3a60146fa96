"""What the page shows besides the evaluation: gates, attention, certificate, pictures."""

import base64
import io

import attrs
import numpy as np
import pytest
from PIL import Image

from safe_framework.evaluation.attention import AttentionSummary
from safe_framework.evaluation.metrics import Estimate
from safe_framework.evaluation.sweep import GatePoint, GateSweep
from safe_framework.runs.report.extras import ReportInputs
from safe_framework.runs.report.samples import picture
from safe_framework.verification.certificate import (
    Certificate,
    Comparison,
    law_result,
    not_applicable,
)
from tests.evaluation.conftest import agreement
from tests.evaluation.test_report import HOSTILE, Page, written

NAN = None


@pytest.fixture
def sweep(evaluation):
    """Three gates: more gain and less retention with each."""
    samples = tuple(row.place for row in evaluation.answers)
    points = tuple(
        GatePoint(
            gate,
            Estimate(gain, gain - 0.1, gain + 0.1, 11),
            Estimate(gain, gain - 0.1, gain + 0.1, 11),
            agreement(kept, 1 - kept),
            (f"answer at {gate:g}",) * len(samples),
        )
        for gate, gain, kept in ((0.0, 0.1, 1.0), (0.5, 0.4, 0.995), (1.0, 0.8, 0.97))
    )
    return GateSweep("audio", points, samples, 0.99, 64, 1000, 0)


@pytest.fixture
def attended(evaluation):
    """Two samples of two layers, the second of which has one head less."""
    numbers = [[0.2, 0.3], [0.1, NAN]]
    timeline = [[[0.1, 0.4, 0.2], [0.3, 0.2, 0.1]], [[0.1, 0.1, 0.6], [NAN] * 3]]
    return tuple(
        AttentionSummary(
            row.place, "audio", (4, 9), numbers, numbers, numbers, numbers, timeline, 0.1
        )
        for row in evaluation.answers[:2]
    )


def certificate(*, broken=False):
    """A certificate of two laws."""
    findings = ["beam search: token 3"] if broken else []
    laws = (
        law_result("L2", "off is the base", "3 calls", findings),
        not_applicable("L6", "two", "one"),
    )
    compared = (Comparison("forward", "absent", "no_grad", True),)
    return Certificate(
        1, "2026-01-01", {}, "cpu", "float32", "sdpa", "quick", "given", {}, {}, laws, compared, 1.0
    )


def test_the_sweep_is_drawn_and_described(tmp_path, evaluation, sweep):
    """Law: both pictures, the recommended gate, and a row of numbers for each gate are there."""
    page = Page(written(tmp_path, evaluation, extras=ReportInputs(sweeps={"audio": sweep})))
    labels = [div["aria-label"] for div in page.all("div") if div.get("role") == "img"]
    assert any("right answers go from 10.0 % to 80.0 %" in label for label in labels)
    assert any("On the Pareto front: 0, 0.5, 1. Recommended: 0.5." in label for label in labels)
    assert "0.5" in page.texts
    assert "recommended" in " ".join(page.texts)


def test_a_sweep_without_advice_says_so(tmp_path, evaluation, sweep):
    """Law: where no gate within the budget gains anything, none is drawn as recommended."""
    points = tuple(
        attrs.evolve(one, over_base=attrs.evolve(one.over_base, low=0.0)) for one in sweep.points
    )
    deaf = attrs.evolve(sweep, points=points)
    page = Page(written(tmp_path, evaluation, extras=ReportInputs(sweeps={"audio": deaf})))
    labels = [div["aria-label"] for div in page.all("div") if div.get("role") == "img"]
    assert any(label.endswith("On the Pareto front: 0, 0.5, 1.") for label in labels)
    assert "gains anything, nor does any other." in " ".join(page.texts)
    assert "recommended" not in page.texts  # a note in the table


def test_samples_show_their_answers_at_three_gates(tmp_path, evaluation, sweep):
    """Law: a card names gates 0, 0.5 and 1, and the answer at each."""
    page = Page(written(tmp_path, evaluation, extras=ReportInputs(sweeps={"audio": sweep})))
    for gate in ("gate 0: the base", "gate 0.5", "gate 1"):
        assert page.texts.count(gate) == 8
    for answer in ("answer at 0", "answer at 0.5", "answer at 1"):
        assert page.texts.count(answer) == 8


def test_attention_is_drawn_for_each_sample(tmp_path, evaluation, attended):
    """Law: a heat map for each sample says where it is strongest, and the table has each head."""
    page = Page(written(tmp_path, evaluation, extras=ReportInputs(attention=attended)))
    labels = [div["aria-label"] for div in page.all("div") if div.get("role") == "img"]
    strongest = "strongest at layer 9, head 0, stretch 3 of 3."
    assert sum(strongest in label for label in labels) == 2
    heads = ["layer 4, head 0", "layer 4, head 1", "layer 9, head 0", "layer 9, head 1"]
    assert [text for text in page.texts if text in heads] == heads


@pytest.mark.parametrize("broken", [False, True])
def test_the_certificate_says_what_it_found(tmp_path, evaluation, broken):
    """Law: a certificate that holds says so, and a broken law is named with its finding."""
    extras = ReportInputs(certificate=certificate(broken=broken))
    texts = " ".join(Page(written(tmp_path, evaluation, extras=extras)).texts)
    assert ("Every law that applies holds." in texts) is not broken
    assert ("A law is broken." in texts) is broken
    assert ("beam search: token 3" in texts) is broken


def test_what_was_not_measured_names_its_command(tmp_path, evaluation):
    """Law: without sweep, attention and certificate the page says how to get each."""
    texts = Page(written(tmp_path, evaluation)).texts
    assert {"safe sweep RUN", "safe report RUN", "safe verify ADAPTER"} <= set(texts)


def test_hostile_extras_stay_text(tmp_path, evaluation, sweep, attended):
    """Law: nothing that a sweep, an attention or a certificate holds becomes an element."""
    points = [attrs.evolve(p, answers=(HOSTILE,) * len(p.answers)) for p in sweep.points]
    bad = attrs.evolve(sweep, modality=HOSTILE, points=tuple(points))
    law = law_result(HOSTILE, HOSTILE, HOSTILE, [HOSTILE])
    extras = ReportInputs(
        attrs.evolve(certificate(), laws=(law,), device=HOSTILE),
        {HOSTILE: bad},
        [attrs.evolve(row, place=HOSTILE) for row in attended],
    )
    text = written(tmp_path, attrs.evolve(evaluation, modality=HOSTILE), extras=extras)
    assert HOSTILE not in text
    assert not Page(text).all("b")
    assert not Page(text).all("script")


@pytest.mark.parametrize(
    "sample",
    [
        np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8),
        np.random.default_rng(0).uniform(size=(20, 30)).astype(np.float32),
        np.full((20, 30), np.nan),
        np.zeros((5, 20, 30, 3), np.uint8),
    ],
)
def test_what_is_seen_is_shown(tmp_path, evaluation, sample):
    """Law: colours, depths with holes and films become PNG images with a name."""
    rows = tuple(attrs.evolve(row, sample=sample) for row in evaluation.answers)
    page = Page(written(tmp_path, attrs.evolve(evaluation, answers=rows)))
    images = page.all("img")
    assert len(images) == 8
    assert all(image["alt"].startswith("sample ") for image in images)
    content = base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(content)).size == (30, 20)


def test_an_image_file_is_embedded_as_it_is(tmp_path):
    """Law: a small file that browsers show keeps its bytes; a large array is thinned."""
    path = tmp_path / "one.png"
    path.write_bytes(b"\x89PNG content")
    assert picture(None, path) == (b"\x89PNG content", "image/png")
    large = picture(np.zeros((2000, 1000)), None)
    assert large is not None
    assert max(Image.open(io.BytesIO(large[0])).size) <= 512


@pytest.mark.parametrize("sample", [None, "text", np.zeros(3), np.zeros((2, 2)), np.zeros((0, 9))])
def test_what_is_no_picture_is_not_drawn(sample):
    """Law: vectors, tiny arrays and whatever is no array are left to words."""
    assert picture(sample, None) is None
