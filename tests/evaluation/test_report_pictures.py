"""The report of a base that sees: pictures, sounds, questions and answers beside each other."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from safe_framework.data.pictures import Picture
from safe_framework.evaluation.both_senses import both_senses
from safe_framework.evaluation.gain import by_kind
from safe_framework.evaluation.results import Answered, Evaluation, PictureQuestion
from safe_framework.evaluation.seeing import summed_up
from safe_framework.evaluation.summary import headlines, sections
from safe_framework.runs.report.samples import thumbnail
from tests.evaluation.conftest import answered
from tests.evaluation.test_report import Page, written

HOSTILE = '"><script>'


def noise(width: int, height: int) -> Picture:
    """A picture that no format makes small."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Picture(Image.fromarray(values))


def both(number: int) -> Answered:
    """A test row with a picture and a sound."""
    row = answered(number, "yes" if number % 2 else "no", "yes")
    return attrs.evolve(
        row,
        question=f"Is this what you hear? {HOSTILE}",
        kind="is it",
        base="no",
        blank_picture="yes",
        other_picture="no",
        half_open="perhaps",
        images=(noise(900, 300),),
    )


def asked(number: int) -> PictureQuestion:
    """A question about two pictures, every second with a sound."""
    heard = answered(number, "red", "red")
    return PictureQuestion(
        place=f"seen.jsonl:{number + 1}",
        question="What colour?",
        expected=("red", "red", "pink"),
        kind="colour",
        base="red",
        absent="red",
        irrelevant={"silent": "red", "noise": "blue" if number else "red"},
        relevant="pink" if number % 2 else None,
        images=(noise(20, 10), noise(10, 20)),
        sample=heard.sample if number % 2 else None,
    )


@pytest.fixture
def seen(evaluation: Evaluation) -> Evaluation:
    """A finished evaluation of a base that sees."""
    answers = (*evaluation.answers, *map(both, range(20, 24)))
    drawing = {"resamples": 20, "seed": 0}
    return attrs.evolve(
        evaluation,
        answers=answers,
        by="kind",
        kinds=by_kind(answers, **drawing),
        both_senses=both_senses(answers, **drawing),
        seeing=summed_up([asked(number) for number in range(4)], True, True, **drawing),
        unmeasured={"picture_alignment": "the base shows nothing"},
    )


def test_pictures_are_shown_small_and_described(tmp_path: Path, seen: Evaluation) -> None:
    """Law: each picture is in the page itself, bounded, with words for who does not see it."""
    images = Page(written(tmp_path, seen)).all("img")
    assert len(images) == 4 + 2 * 4
    for image in images:
        kind, _, content = image["src"].removeprefix("data:").partition(";base64,")
        raw = base64.b64decode(content)
        opened = Image.open(io.BytesIO(raw))
        assert kind == f"image/{(opened.format or '').lower()}"
        assert max(opened.size) <= 320
        assert len(raw) <= 80_000
        assert image["alt"]
    assert "(2 of 2)" in images[-1]["alt"]


def test_answers_stand_at_three_gates(tmp_path: Path, seen: Evaluation) -> None:
    """Law: a row with a picture and a sound has its player and what is said at 0, 0.5 and 1."""
    text = written(tmp_path, seen)
    page = Page(text)
    for gate in ("gate 0: the base", "gate 0.5", "gate 1"):
        assert page.texts.count(gate) == 4
    assert page.texts.count("perhaps") == 4
    players = [one["aria-label"] for one in page.all("audio")]
    assert len(players) == 8 + 4 + 2  # without a picture, with one, and beside picture questions
    assert HOSTILE not in text


def test_picture_questions_show_every_way_they_were_asked(tmp_path: Path, seen: Evaluation) -> None:
    """Law: the section says what the base, absent, irrelevant and relevant samples gave."""
    page = Page(written(tmp_path, seen))
    assert "What it still sees" in page.texts
    assert "base alone, audio absent, beside silent audio" in page.texts
    assert "beside noise audio" in page.texts
    assert "beside its own audio" in page.texts
    assert page.texts.count("VQA accuracy by kind") == 1
    assert page.texts.count("Questions with both senses by kind") == 1


def test_seeing_is_in_the_tables(seen: Evaluation) -> None:
    """Law: accuracy, retention score and unchanged answers, each with its interval."""
    groups = {group.title: {row.name: row for row in group.rows} for group in sections(seen)}
    accuracy = groups["Seeing: VQA accuracy"]
    assert accuracy["logits, absent"].met is True
    assert accuracy["base"].value == "66.7 %"  # two of three people
    assert accuracy["irrelevant: noise"].value == "16.7 %"
    assert groups["Seeing: retention score"]["irrelevant"].value == "62.5 %"
    assert groups["Seeing: answers unchanged"]["irrelevant: noise"].value == "25.0 %"
    assert groups["Gain by kind"]["is it"].value == "50.0 %"
    assert groups["Questions with both senses"]["picture alone"].value == "50.0 %"
    assert groups["Confidence and alignment"]["cosine to the picture"].note == (
        "the base shows nothing"
    )
    assert headlines(seen)[3].number == "62.5 %"


def test_a_target_for_seeing_is_marked(seen: Evaluation) -> None:
    """Law: the retention score of picture questions can be asked for."""
    for least, met in ((0.6, True), (0.995, False)):
        groups = {group.title: group for group in sections(seen, {"seeing": least})}
        row = next(r for r in groups["Seeing: retention score"].rows if r.name == "irrelevant")
        assert row.met is met


def test_a_broken_law_is_seen(seen: Evaluation) -> None:
    """Law: where a bit differs with the sense absent, the table says so."""
    assert seen.seeing is not None
    broken = attrs.evolve(seen, seeing=attrs.evolve(seen.seeing, logits_identical=False))
    groups = {group.title: group for group in sections(broken)}
    row = next(r for r in groups["Seeing: VQA accuracy"].rows if r.name == "logits, absent")
    assert (row.value, row.met) == ("DIFFER", False)


def test_runs_without_pictures_have_no_such_section(tmp_path: Path, evaluation: Evaluation) -> None:
    """Law: the page of a base that only reads says nothing of seeing."""
    assert "still sees" not in written(tmp_path, evaluation)


def test_equal_input_gives_equal_bytes(tmp_path: Path, seen: Evaluation) -> None:
    """Law: pictures do not change from one writing to the next."""
    assert written(tmp_path, seen) == written(tmp_path, seen)


def test_a_drawing_stays_exact() -> None:
    """Law: what is small without loss is not blurred."""
    drawn = Picture(Image.new("RGB", (300, 200), "teal"))
    content, kind = thumbnail(drawn)
    assert kind == "image/png"
    assert Image.open(io.BytesIO(content)).getcolors() == [(300 * 200, (0, 128, 128))]
