"""What the page promises: complete, self-contained, harmless, the same bytes each time."""

import base64
import io
import re
import sys
import wave
from html.parser import HTMLParser

import attrs
import numpy as np
import pytest

from safe_framework.data.audio import Waveform
from safe_framework.errors import DataError
from safe_framework.runs.report import write_report
from safe_framework.runs.report.html import element
from safe_framework.runs.report.samples import chosen, wav

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</script><b>"


class Page(HTMLParser):
    """The elements and texts of a page; raises where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def written(tmp_path, evaluation, curves=(), **options):
    """The text of a written report."""
    path = tmp_path / "report.html"
    given = {
        "recipe_text": 'model = "x"\n', "versions": {"torch": "2.13"}, "title": "A title", **options
    }  # fmt: skip
    write_report(path, evaluation, curves=curves, **given)
    return path.read_text("utf-8")


@pytest.fixture
def text(tmp_path, evaluation, curves):
    """The text of a report on everything."""
    return written(tmp_path, evaluation, curves)


def test_nothing_is_fetched(text):
    """The page names no address, holds no script, and forbids itself to load anything."""
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in re.sub(r'src="data:[^"]*"', "", text)
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policies[0]


def test_every_picture_is_there_and_described(text):
    """Curves and the confusion matrix are SVG in figures with a label and a caption."""
    page = Page(text)
    labels = [div["aria-label"] for div in page.all("div") if div.get("role") == "img"]
    assert len(labels) == len(page.all("svg")) == len(page.all("figcaption")) == 4
    assert labels[0] == "task loss against training step: 2 at step 1, 0.0667 at step 30"
    assert labels[-1].startswith("Confusion matrix of 4 expected answers: 8 of 11 right.")


def test_clips_can_be_played(text):
    """Eight players, each with a WAV file inside the page and a name."""
    players = Page(text).all("audio")
    assert len(players) == 8
    assert all("controls" in player and player["aria-label"] for player in players)
    content = base64.b64decode(players[0]["src"].removeprefix("data:audio/wav;base64,"))
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnframes()) == (8000, 2, 800)


def test_original_files_are_embedded_as_they_are(tmp_path, evaluation):
    """A file that browsers play is not encoded again."""
    (tmp_path / "one.ogg").write_bytes(b"OggS content")
    rows = [attrs.evolve(row, file=tmp_path / "one.ogg") for row in evaluation.answers]
    page = Page(written(tmp_path, attrs.evolve(evaluation, answers=tuple(rows))))
    expected = "data:audio/ogg;base64," + base64.b64encode(b"OggS content").decode()
    assert {player["src"] for player in page.all("audio")} == {expected}


def test_samples_that_are_no_sound_are_left_silent(tmp_path, evaluation):
    """Without a sound, the card shows the answers alone."""
    rows = [attrs.evolve(row, sample=np.zeros(3)) for row in evaluation.answers]
    page = Page(written(tmp_path, attrs.evolve(evaluation, answers=tuple(rows))))
    assert not page.all("audio")
    assert len(page.all("article")) == 8


def test_hostile_text_stays_text(tmp_path, evaluation, curves):
    """Whatever an answer, recipe, version, title or modality holds, it adds no element."""
    curves = [{**row, HOSTILE: 1.0} for row in curves]
    calm = Page(written(tmp_path, evaluation, curves))
    rows = [attrs.evolve(r, answer=HOSTILE, base=HOSTILE, question=HOSTILE, place=HOSTILE)
            for r in evaluation.answers]  # fmt: skip
    hostile = attrs.evolve(evaluation, answers=tuple(rows), modality=HOSTILE)
    text = written(
        tmp_path, hostile, curves, recipe_text=HOSTILE, versions={HOSTILE: HOSTILE}, title=HOSTILE
    )
    page = Page(text)
    assert HOSTILE not in text
    assert not page.all("b")
    assert not page.all("script")
    assert len(page.all("svg")) == len(calm.all("svg"))
    assert page.texts.count(HOSTILE) > 8


@pytest.mark.parametrize("name", ["$x_1^$", "楽器", r"\frac{", "$title", "a\nb"])
def test_class_names_are_drawn_as_they_are(tmp_path, evaluation, name):
    """Names are neither read as formulas nor as places of the template."""
    gain = attrs.evolve(evaluation.gain, confusion={name: {name: 2}})
    page = Page(written(tmp_path, attrs.evolve(evaluation, gain=gain)))
    assert name.split("\n")[0] in "".join(page.texts)


def test_equal_input_gives_equal_bytes(tmp_path, evaluation, curves):
    """Nothing in the page depends on when or how often it is written."""
    assert written(tmp_path, evaluation, curves) == written(tmp_path, evaluation, curves)


def test_identifiers_are_unique(text):
    """No two elements share an id, within a picture or between pictures."""
    identifiers = [found["id"] for _, found in Page(text).elements if "id" in found]
    assert len(identifiers) > 5
    assert len(set(identifiers)) == len(identifiers)


def test_tables_and_headings_can_be_navigated(text):
    """One h1; every table has a caption; every header cell says what it heads."""
    page = Page(text)
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) >= 8
    assert len(page.all("table")) == len(page.all("caption")) == 7
    assert all("scope" in cell for cell in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_light_dark_and_phone(text):
    """The page follows the reader's colours, pictures included, and the screen's width."""
    assert "prefers-color-scheme: dark" in text
    assert {meta.get("name") for meta in Page(text).all("meta")} >= {"viewport", "color-scheme"}
    drawing = text[text.index("<svg") :]
    assert "var(--ink)" in drawing
    assert "#0a0b0" not in drawing
    assert "#000000" not in drawing


def test_results_recipe_and_versions_are_there(text):
    """All three headline numbers, the recipe and the versions can be read."""
    texts = Page(text).texts
    assert {"+72.7", " points", "bit for bit", "98.0", 'model = "x"\n', "2.13"} <= set(texts)


def test_without_training_the_page_says_so(tmp_path, evaluation):
    """No curve is no error; values that are missing or not finite are left out."""
    assert "No training was logged." in written(tmp_path, evaluation)
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}, {"step": 3, "gate": None}]
    assert "No training was logged." in written(tmp_path, evaluation, rows)


def test_long_training_stays_a_small_page(tmp_path, evaluation):
    """Twenty thousand steps add no more to the page than a few hundred do."""
    rows = [{"step": step, "loss": 1 + (step * 7919 % 100) / 100} for step in range(20_000)]
    assert len(written(tmp_path, evaluation, rows)) < 1.2 * len(
        written(tmp_path, evaluation, rows[:400])
    )


def test_many_classes_are_cut_and_said_so(tmp_path, evaluation):
    """Beyond what can be read, the commonest rows are shown and the others counted."""
    confusion = {f"class {n:02}": {f"class {n:02}": 1 + n} for n in range(50)}
    gain = attrs.evolve(evaluation.gain, confusion=confusion)
    text = written(tmp_path, attrs.evolve(evaluation, gain=gain))
    assert "20 left out" in text
    assert "Confusion matrix of 30 expected answers" in text


def test_clips_are_spread_over_the_answers(evaluation):
    """As many different expected answers as possible are heard, chosen without the result."""
    names = [row.expected for row in chosen(evaluation.answers, 4)]
    assert len(set(names)) == 4
    assert len(chosen(evaluation.answers, 100)) == len(evaluation.answers)
    few = chosen(evaluation.answers, 2)
    wrong = [attrs.evolve(row, answer="") for row in evaluation.answers]
    assert [row.place for row in chosen(wrong, 2)] == [row.place for row in few]


def test_loud_samples_are_clipped_and_not_wrapped():
    """Amplitudes beyond 1 become the largest 16-bit numbers of their sign."""
    content = wav(Waveform(np.array([2.0, -2.0, 0.0]), 8000))
    with wave.open(io.BytesIO(content)) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [32767, -32767, 0]


def test_attributes_are_escaped():
    """A quote cannot end an attribute."""
    assert element("p", class_='"><b>') == '<p class="&quot;&gt;&lt;b&gt;"></p>'


def test_missing_matplotlib_says_what_to_install(tmp_path, evaluation, monkeypatch):
    """Without the extra, the error holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DataError, match=r"pip install 'safe-framework\[report\]'"):
        written(tmp_path, evaluation)
