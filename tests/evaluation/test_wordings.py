"""Rows asked in forms that were kept from training, and in other chats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import pytest

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import Example
from safe_framework.data.questions import Form, QuestionBank, RowQuestions
from safe_framework.evaluation import answers, wordings
from safe_framework.evaluation.compare_runs import compare_runs
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.results import HELD_OUT, TRAINED, Evaluation
from safe_framework.evaluation.summary import sections
from safe_framework.runs.report.results import form_table

LABELS = ("red", "blue")
FORMS = (
    Form("what is this"),
    Form("is this {label}", "judge"),
    Form("the cat", held_out=True),
    Form("a cat sat", held_out=True),
    Form("{label} cat", "judge", held_out=True),
)
CHATS = {"after another turn": "the mat {question}"}


@pytest.fixture
def asked(examples: list[Example]) -> list[Example]:
    """The examples, with questions of a bank."""
    bank = QuestionBank(FORMS, {"name": 1.0, "judge": 1.0})
    return [
        example.with_questions(
            RowQuestions(bank, example.answer, "{question}", example.place, labels=LABELS)
        )
        for example in examples
    ]


def answering(monkeypatch: pytest.MonkeyPatch, right: Mapping[str, bool]) -> list[Example]:
    """Let every question that holds a text be answered right, or wrong; gives what was asked."""
    seen: list[Example] = []

    def answer(model: SafeModel, examples: Sequence[Example], **options: Any) -> list[str]:
        """What is expected, or another answer."""
        seen.extend(examples)
        wrong = {"red": "blue", "blue": "red", "yes": "no", "no": "yes"}
        return [
            one.answer
            if next(ok for text, ok in right.items() if text in one.prompt)
            else wrong[one.answer]
            for one in examples
        ]

    monkeypatch.setattr(wordings, "answer", answer)
    return seen


def measured(model: SafeModel, asked: list[Example], texts: list[str], count: int) -> Evaluation:
    """An evaluation with so many questions in other words."""
    return evaluate(
        model, modality="touch", train=asked, test=asked, texts=texts, max_new_tokens=2,
        bootstrap=20, wordings=count, chats=CHATS,
    )  # fmt: skip


def test_forms_are_scored_apart(
    model: SafeModel, asked: list[Example], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: mean, worst form and balanced accuracy are of held-out forms, trained ones beside."""
    answering(
        monkeypatch,
        {"is this": True, "the mat": True, "the cat": True, "a cat sat": False, "cat": True},
    )
    found = measured(model, asked, texts, 24).wordings
    assert found is not None
    name, judge = found.kinds["name"], found.kinds["judge"]
    assert name.held_out.value == name.balanced == 0.5
    assert name.worst.form == "a cat sat"
    assert name.worst.score == 0
    assert sum(form.n for form in name.forms) == name.held_out.n == 24
    assert (judge.trained.value, judge.trained_balanced, judge.balanced) == (1, 1, 1)
    assert found.chats["after another turn"].value == 1
    assert found.chats_trained["after another turn"].n == found.chats["after another turn"].n == 12


@pytest.mark.parametrize("given", [None, 4])
def test_all_answers_have_one_limit(
    model: SafeModel,
    examples: list[Example],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    given: int | None,
) -> None:
    """Law: an evaluation has one limit, room for what is expected in any wording or as given.

    A limit that is given holds in every wording, and a warning says where it cuts.
    """
    long = " ".join(["red", "blue"] * 6)
    forms = (Form("what is this"), Form("the cat", held_out=True, answer=long))
    bank = QuestionBank(forms, {"name": 1.0})
    asked = [
        one.with_questions(RowQuestions(bank, one.answer, "{question}", one.place, labels=LABELS))
        for one in examples
    ]
    needed = len(model.tokenizer(long, add_special_tokens=False)["input_ids"])
    limits = set()
    for module in (answers, wordings):
        real = module.answer

        def noting(*arguments: Any, real: Any = real, **options: Any) -> list[str]:
            limits.add(options["max_new_tokens"])
            found: list[str] = real(*arguments, **options)
            return found

        monkeypatch.setattr(module, "answer", noting)
    said = pytest.warns(UserWarning, match=f"cut at 4 tokens, and an expected one has {needed}")
    with said if given else nullcontext():
        found = evaluate(
            model, modality="touch", train=asked, test=asked, texts=texts, max_new_tokens=given,
            bootstrap=20, wordings=4,
        )  # fmt: skip
    assert found.wordings is not None
    assert limits == {found.max_new_tokens} == {given or needed + 2}


def test_what_is_asked_is_bounded_and_chosen_by_the_seed(
    model: SafeModel, asked: list[Example], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: no more is asked than was allowed; yes is right half the time; rows come alike often."""
    seen = answering(monkeypatch, {"": True})
    found = measured(model, asked, texts, 8).wordings
    assert found is not None
    ways = Counter((one.way, one.kind) for one in found.asked)
    assert ways == {
        (HELD_OUT, "name"): 8, (HELD_OUT, "judge"): 8, (TRAINED, "judge"): 4,
        ("after another turn", ""): 4,
    }  # fmt: skip
    judged = [one.expected for one in found.asked if one.kind == "judge" and one.way == HELD_OUT]
    assert Counter(judged) == {"yes": 4, "no": 4}
    assert len({one.place for one in found.asked if one.way == HELD_OUT}) > 8 - 2
    again = measured(model, asked, texts, 8).wordings
    assert again == found
    assert len(seen) == 2 * len(found.asked)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("A violin, so no.", True),
        ("no", True),
        ("No!", True),
        ("A violin, so yes.", False),
        ("violin", False),
        ("yes and no", False),
        ("nobody knows", False),
    ],
)
def test_a_verdict_is_read_from_its_word(given: str, right: bool) -> None:
    """Law: what is heard may be named first, by any name; the word that judges decides alone."""
    form = Form("Is it {label}?", yes="{A label}, so yes.", no="{A label}, so no.")
    bank = QuestionBank((form,), {"name": 1.0})
    row = RowQuestions(bank, "harp", "{question}", "", labels=("harp", "organ"))
    assert (row.ask(form, is_yes=False).conclusion(given) == "no") is right


def test_no_row_is_asked_twice_in_one_form(
    model: SafeModel, asked: list[Example], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: however many are allowed, a row is asked a form once."""
    answering(monkeypatch, {"": True})
    found = measured(model, asked, texts, 1000).wordings
    assert found is not None
    pairs = Counter((one.place, one.form) for one in found.asked if one.kind == "name")
    assert set(pairs.values()) == {1}
    assert len(pairs) == 2 * len(asked)


def test_datasets_have_kinds_of_their_own(
    model: SafeModel, asked: list[Example], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a kind that two datasets have is counted for each, in the forms of its own bank."""
    answering(monkeypatch, {"": True})
    bank = QuestionBank((Form("a mat"), Form("on a mat", held_out=True)), {"name": 1.0})
    halves = [
        attrs.evolve(example, dataset="old") if number % 2 else attrs.evolve(
            example.with_questions(attrs.evolve(example.questions, bank=bank)), dataset="new"
        )
        for number, example in enumerate(asked)
    ]  # fmt: skip
    found = measured(model, halves, texts, 12).wordings
    assert found is not None
    assert set(found.kinds) == {"new: name", "old: name", "judge"}
    assert {form.form for form in found.kinds["new: name"].forms} == {"on a mat"}
    assert found.kinds["old: name"].trained.n == found.kinds["new: name"].trained.n == 6


def test_rows_of_one_question_are_asked_in_other_chats_alone(
    model: SafeModel, examples: list[Example], texts: list[str]
) -> None:
    """Law: without a bank there are no other words, which the results say, but other chats."""
    found = measured(model, examples, texts, 8)
    assert found.wordings is not None
    assert not found.wordings.kinds
    assert [one.question for one in found.wordings.asked] == [
        one.question.removeprefix("the mat ") for one in found.wordings.asked
    ]
    assert found.wordings.chats["after another turn"].n == 4
    (section,) = [part for part in sections(found) if part.title == "In other words"]
    assert [row.name for row in section.rows] == ["after another turn", "held-out forms"]
    assert "bank" in section.rows[1].note


def test_nothing_is_asked_where_nothing_was_wanted(
    model: SafeModel, asked: list[Example], texts: list[str]
) -> None:
    """Law: with 0 no question is asked anew, and results have no part of it."""
    found = measured(model, asked, texts, 0)
    assert found.wordings is None
    assert "wordings" not in found.to_json()
    assert "In other words" not in [part.title for part in sections(found)]


def test_results_show_kinds_forms_and_chats(
    model: SafeModel, asked: list[Example], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: they are kept on disk, printed, drawn in the report, and compared between runs."""
    answering(monkeypatch, {"a cat sat": False, "": True})
    found = measured(model, asked, texts, 24)
    assert Evaluation.from_json(found.to_json()).wordings == found.wordings
    (section,) = [part for part in sections(found) if part.title == "In other words"]
    rows = {row.name: row for row in section.rows}
    assert rows["name: held-out forms"].value == "50.0 %"
    assert rows["name: worst form"].value == "0 %"
    assert "a cat sat" in rows["name: worst form"].note
    assert rows["judge: trained forms"].note.startswith("balanced 100 %")
    page = "".join(form_table(found.wordings))
    assert re.search(r"a cat sat</th><td>name</td><td>0 %</td><td>12", page)
    better = attrs.evolve(
        found,
        wordings=attrs.evolve(
            found.wordings,
            asked=tuple(attrs.evolve(one, score=1.0) for one in found.wordings.asked),  # type: ignore[union-attr]  # asked above
        ),
    )
    (row,) = [one for one in compare_runs([found], [better]) if one.name == "in other words"]
    assert row.difference == pytest.approx(12 / 36)
    other = measured(model, asked, texts, 8)
    assert "in other words" not in [one.name for one in compare_runs([found], [other])]
