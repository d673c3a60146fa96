"""The gate that decides, from a recipe to the statement in the adapter, on a tiny random base."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import safe_framework
from safe_framework.cli import main
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptRow
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.core.relevance import AUTO
from safe_framework.data.irrelevant import CALIBRATION, TEST, read_irrelevant
from safe_framework.data.questions import Form, QuestionBank
from safe_framework.errors import DataError
from safe_framework.evaluation.answers import (
    answer,
    eval_mode,
    example_inputs,
    without_modality,
)
from safe_framework.evaluation.relevance import opened_rows, opens
from safe_framework.evaluation.relevance_risk import risk_shown
from safe_framework.evaluation.summary import sections
from safe_framework.evaluation.wordings import drawn_by, other_questions
from safe_framework.runs.finished import open_run, read_metrics
from safe_framework.runs.inspection import sweep_gate
from safe_framework.runs.relevance import Scores, own_calls, scores_of, shipped_calls
from safe_framework.runs.run import run_recipe
from safe_framework.training import relevance_states
from safe_framework.training.relevance import fit_head
from safe_framework.training.relevance_calls import HELD_OUT, TRAINED, CallMaker
from safe_framework.training.relevance_states import read_ends

FORMS = ["what is this", "is this high", "high low", "this what is", "this", "is this low", "what"]
BANK = [" ".join(words) for words in itertools.permutations(["cat", "sat", "mat", "dog", "ran"], 3)]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose sense has a head; not to be changed."""
    forms = [{"question": form, "held_out": number > 4} for number, form in enumerate(FORMS)]
    (world / "forms.jsonl").write_text("".join(json.dumps(one) + "\n" for one in forms), "utf-8")
    (world / "bank.txt").write_text("\n".join(BANK) + "\n", "utf-8")
    text = (world / "recipe.toml").read_text()
    text = text.replace(
        "[modalities.audio]\n",
        '[modalities.audio]\nattend = "answer"\nrelevance = { irrelevant = ["bank.txt"] }\n',
    )
    text = text.replace("gate = {", 'gate = { value = "auto",')
    text = text.replace("[data]\n", '[data]\nquestion = { bank = "forms.jsonl", replace = true }\n')
    (world / "deciding.toml").write_text(text + "wordings = 4\n", "utf-8")
    return run_recipe(
        str(world / "deciding.toml"), output=tmp_path_factory.mktemp("runs") / "run", quiet=True
    )


def test_a_run_fits_calibrates_and_measures_the_gate(finished: Path, world: Path) -> None:
    """Law: adapter, card and numbers hold the threshold and what it bounds, for the asked kinds."""
    model = safe_framework.load(finished)
    head = model.modality("audio").relevance
    assert model.gates == {"audio": AUTO}
    assert head is not None
    assert head.statement is not None
    (bank,) = read_irrelevant(["bank.txt"], world)
    told = head.statement["false_opens"]["bank"]
    assert told["calls"] == len(bank.of(CALIBRATION)) < 299
    assert head.statement["shown"]["bank"] == pytest.approx(risk_shown(told["calls"], 0.01, 0.95))
    assert head.threshold == head.statement["threshold"]
    assert head.statement["checked"]["bank"]["calls"] == len(bank.of(TEST))
    assert head.statement["sentence"] in (finished / "adapter" / "README.md").read_text("utf-8")
    metrics = read_metrics(finished)
    found = metrics.relevance
    assert metrics.costs["relevance_seconds"] > 0
    assert found is not None
    assert set(found.opens) == {TRAINED, HELD_OUT}
    assert found.gain[HELD_OUT].n == 4
    assert found.influence.keys() == {"silent", "noise", "shuffled"}
    titles = [one.title for one in sections(read_metrics(finished))]
    assert any("auto" in title for title in titles)


def test_a_sweep_shows_the_gate_that_decides(finished: Path) -> None:
    """Law: a head adds a point at which texts that it stays closed on are the base's."""
    found = sweep_gate(open_run(finished), gates=[1.0], budget=0.0)
    assert found.auto is not None
    assert found.auto.name == AUTO
    assert found.all_points[-1] is found.auto
    wide, base = found.at(1.0), found.at(0.0)
    assert wide is not None
    assert base is not None
    low = wide.kept.agreement.value
    assert low <= found.auto.kept.agreement.value <= base.kept.agreement.value == 1


def test_calibrating_anew_changes_the_threshold_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `safe calibrate` writes threshold and statement, and leaves every tensor as it was."""
    run = shutil.copytree(finished, tmp_path / "run")
    rows = [{"question": text, "relevant": False, "kind": "mine"} for text in BANK[:30]]
    rows += [{"question": "what is this", "relevant": True}]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert main(["calibrate", str(run), "--data", str(data), "--risk", "0.2"]) == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    head = safe_framework.load(run).modality("audio").relevance
    assert head is not None
    assert head.statement is not None
    assert head.statement["false_opens"].keys() == {"mine"}
    assert "mine.jsonl" in head.statement["limits"]
    assert "too few" not in capsys.readouterr().out
    assert main(["calibrate", str(run), "--data", str(data)]) == 0
    assert "`mine` has 30 calls, of 299" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "cat"}, "`relevant` must be true or false, not None"),
        ({"question": "cat", "relevant": "no"}, "`relevant` must be true or false, not 'no'"),
        ({"relevant": False}, "a row must have either `question` or `text`"),
        ({"question": "", "relevant": False}, "`question` must be a text that is not empty"),
        ({"text": "a", "relevent": False}, "nothing reads the field `relevent`"),
        ({"text": "a", "relevant": True}, "is irrelevant, so nothing bounds"),
    ],
)
def test_a_wrong_row_is_named(
    finished: Path, tmp_path: Path, row: dict[str, object], said: str
) -> None:
    """Law: a row that cannot be used is an error that gives its line and its field."""
    run, data = open_run(finished), tmp_path / "mine.jsonl"
    data.write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(DataError) as caught:
        own_calls(run.model, "audio", run.recipe, data)
    assert said in caught.value.message
    assert caught.value.message.startswith("mine.jsonl:1: ") or "irrelevant" in said


def test_a_call_that_was_scored_is_not_read_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: scores that are kept are those of reading the calls anew."""
    run = open_run(finished)
    head = run.model.modality("audio").relevance
    assert head is not None
    calls = shipped_calls(run.model, "audio", run.recipe, run.examples("audio")).calls
    kept: Scores = {}
    first = scores_of(run.model, head, calls, kept)
    monkeypatch.setattr("safe_framework.runs.relevance.read_ends", None)
    assert kept.keys() == {call.row for call in calls}
    assert torch.equal(scores_of(run.model, head, calls[::-1], kept), first.flip(0))


def test_a_question_that_several_rows_ask_is_read_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: what a head decides of a question holds for every row that asks it."""
    run, read = open_run(finished), list[int]()
    examples = run.examples("audio")

    def counted(model: SafeModel, name: str, batch: Any) -> list[bool]:
        read.append(len(batch["input_ids"]))
        return opened_rows(model, name, batch)

    monkeypatch.setattr("safe_framework.evaluation.relevance.opened_rows", counted)
    found = opens(run.model, "audio", [*examples, *examples], batch_size=2)
    assert sum(read) == len({one.prompt for one in examples})
    with eval_mode(run.model):
        asked = without_modality(examples, "audio")
        alone = [opened_rows(run.model, "audio", example_inputs(run.model, [e])) for e in asked]
    assert found == [chosen for (chosen,) in alone] * 2


def test_calls_are_one_draw_each(finished: Path) -> None:
    """Law: no text is counted twice, and calibration, check and training share none."""
    run = open_run(finished)
    given = shipped_calls(run.model, "audio", run.recipe, run.examples("audio"))
    texts = [call.text for call in (*given.calls, *given.checks)]
    assert len(set(texts)) == len(texts)


def test_each_bank_of_a_mix_is_asked(finished: Path) -> None:
    """Law: where datasets have banks of their own, calls are made in the forms of all of them."""
    run = open_run(finished)
    spec = run.recipe.modalities["audio"].relevance_head
    assert spec is not None
    maker = CallMaker(run.model, run.recipe, spec)
    asked = [one for one in run.data.examples("train", run.model.encoders) if one.questions]
    other = QuestionBank((Form("low high"), Form("high this")), {"name": 1.0})
    half = len(asked) // 2
    mixed = asked[:half] + [
        attrs.evolve(one, questions=attrs.evolve(one.questions, bank=other)) for one in asked[half:]
    ]
    found = {call.text for call in maker.relevant(mixed, held_out=False)}
    assert found == {*FORMS[:5], "low high", "high this"}


def test_a_head_tells_what_it_was_fitted_on() -> None:
    """Law: a word anywhere in what was read tells relevant calls from others, seen or not.

    And each step is told of.
    """
    draw = torch.Generator().manual_seed(0)
    states, mask = torch.randn(120, 8, 12, generator=draw), torch.ones(120, 8, dtype=torch.bool)
    wanted, begins = torch.arange(120) % 3 == 0, torch.full((120,), 3)
    mask[::5, :2] = False
    at = torch.randint(3, 8, (120,), generator=draw)
    states[torch.arange(120), at, :4] += torch.where(wanted, 9.0, 0.0).unsqueeze(1)
    told: list[tuple[str, int, int]] = []
    head = fit_head(
        PromptEnd(states[:80], mask[:80]), wanted[:80].tolist(), 5, begins[:80],
        progress=lambda *one: told.append(one),
    )  # fmt: skip
    assert told[-1] == ("fitting the relevance gate", len(told), len(told))
    assert (head.layer, head.columns) == (5, 8)
    assert torch.equal(head(PromptEnd(states, mask)) > 0, wanted)


def test_a_head_is_fitted_on_calls_as_often_as_they_are_asked() -> None:
    """Law: a call whose share is nothing is never drawn."""
    states = torch.eye(4).repeat(1, 2).view(4, 1, 8)
    end = PromptEnd(states, torch.ones(4, 1, dtype=torch.bool))
    head = fit_head(end, [True, True, False, False], 1, None, [1.0, 0.0, 1.0, 0.0])
    assert head(end)[0] > 0 > head(end)[2]
    assert head(end)[0] > head(end)[1]


def test_forms_are_drawn_as_often_as_their_kind_is_asked(finished: Path) -> None:
    """Law: two kinds of which one is asked twice as often share a fit so, however many forms."""
    run = open_run(finished)
    spec = run.recipe.modalities["audio"].relevance_head
    assert spec is not None
    many = [Form(f"is {word}") for word in ("this", "high", "what")]
    bank = QuestionBank((Form("low high", kind="few"), *many), {"few": 2.0, "name": 1.0})
    asked = [
        attrs.evolve(one, questions=attrs.evolve(one.questions, bank=bank))
        for one in run.data.examples("train", run.model.encoders)
        if one.questions
    ]
    calls = CallMaker(run.model, run.recipe, spec).relevant(asked, held_out=False)
    shares = {call.text: call.share for call in calls}
    assert sum(shares.values()) == pytest.approx(4)
    assert shares["low high"] == pytest.approx(2 * sum(shares[form.question] for form in many))


@pytest.mark.parametrize("in_trees", [True, False])
def test_states_behind_what_calls_begin_with_are_those_of_whole_calls(
    finished: Path, monkeypatch: pytest.MonkeyPatch, in_trees: bool
) -> None:
    """Law: reading once what calls begin with changes their states by rounding alone."""
    if not in_trees:
        monkeypatch.setattr(relevance_states, "reads_trees", lambda *_: False)
    model, words, others = open_run(finished).model, (3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13)
    ends = itertools.product(range(3, 8), range(8, 13), range(3, 6))
    ended = [(*end, *[8] * (number % 3)) for number, end in enumerate(ends)]
    rows = [PromptRow((*begin, *end)) for end in ended for begin in (words, others)]
    rows.append(PromptRow((12, 3)))
    found, begun = read_each(model, rows), set()
    assert found.keys() == set(rows)
    for row in rows:
        (one,) = read_each(model, [row]).values()
        states, mask, begins = found[row]
        assert torch.equal(mask, one[1])
        assert int(mask.sum()) == min(len(row), 8)
        torch.testing.assert_close(states, one[0], rtol=1e-4, atol=1e-5)
        begun.add(len(row) - (8 - begins) if begins > 8 - min(len(row), 8) else 0)
    assert {len(words), len(others)} <= begun  # behind either, rows have a beginning of their own


def read_each(model: SafeModel, rows: list[PromptRow]) -> dict[PromptRow, Any]:
    """What is read of each row: states and mask of eight columns, and where its own text begins."""
    return {
        row: (read.end.states[number], read.end.mask[number], int(read.begins[number]))
        for read in read_ends(model, rows, 1, 8)
        for number, row in enumerate(read.rows)
    }


def test_where_the_gate_opens_tells_the_answers(finished: Path) -> None:
    """Law: with the gate that decides, an answer is gate 1's where it opens, else the base's."""
    done = open_run(finished)
    model, test = done.model, done.data.examples("test", done.model.encoders)
    examples = [one.example for one in other_questions(test, 8, drawn_by(0))]
    head = model.modality("audio").relevance
    assert head is not None
    with eval_mode(model):
        batch = example_inputs(model, without_modality(examples, "audio"))
        scores = head(model.prompt_states(batch, [head.layer], head.columns)[head.layer])
        head.threshold = float(scores.min() + scores.max()) / 2
        heard = opens(model, "audio", examples, batch_size=3)
        assert 0 < sum(heard) < len(heard)
        plain, opened, auto = (
            answer(model, examples, gate={"audio": gate}, batch_size=3) for gate in (0.0, 1.0, AUTO)
        )
    assert auto == [
        one if hears else base for base, one, hears in zip(plain, opened, heard, strict=True)
    ]
    assert plain != opened
