"""Banks of questions: their files, and how rows are asked from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import QuestionForms, QuestionSpec
from safe_framework.data.preview import preview
from safe_framework.data.questions import (
    Asked,
    Form,
    QuestionBank,
    RowQuestions,
    read_bank,
    read_forms,
    words,
)
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.utils import catalogue

BANKS = sorted(catalogue.questions())
FEWEST_TRAINED, FEWEST_HELD_OUT = 60, 20
LABELS = ("piano", "organ", "harp", "violin")
FUNCTION_WORDS = frozenset(
    words(
        "a an the is are was were be am been do does did i you me my we us it its this that these "
        "those to of in on at for from by with as and or if so please can could would will shall "
        "should may might s re ve d ll t m have has had just there here what which who whose how"
    )
)
"""Words by which one question may differ from another and still be the same."""


def row_questions(*forms: Form, seed: int = 0, **bank: object) -> RowQuestions:
    """What a row of a piano may be asked, of each kind that the forms have."""
    weights = dict.fromkeys((form.kind for form in forms), 1.0)
    made = QuestionBank(forms, weights, **bank)  # type: ignore[arg-type]  # of a test's own
    return RowQuestions(made, "piano", "Q: {question} A:", "rows:1", labels=LABELS, seed=seed)


def content(question: str) -> frozenset[str]:
    """The stems of a question's words, but for those that carry no meaning of their own."""
    own = (word for word in words(re.sub(r"\{[^}]*\}", " ", question)))
    return frozenset(re.sub(r"(ing|ed|es|s)$", "", w) for w in own if w not in FUNCTION_WORDS)


def distinct(questions: Iterable[str]) -> int:
    """How many questions there are, those counted once that differ by order and small words."""
    small = frozenset(words("a an the is are was were be am been it its this that these those"))
    small |= frozenset(words("i you me my we us s re ve d ll m t of in on at for to do does did"))
    texts = (re.sub(r"\{(an? )?(\w+)\}", r"place\2", one.casefold()) for one in questions)
    kept = (frozenset(re.sub(r"(ing|ed|es|s)$", "", w) for w in words(t)) for t in texts)
    return len({own - small for own in kept})


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of two questions' words that they have in common."""
    return len(one & other) / len(one | other) if one | other else 1.0


def by_kind(forms: Iterable[Form], *, held_out: bool) -> dict[str, list[str]]:
    """The questions of each kind."""
    found: dict[str, list[str]] = {}
    for form in forms:
        if form.held_out is held_out:
            found.setdefault(form.kind, []).append(form.question)
    return found


def test_banks_ship() -> None:
    """Law: there is a bank for each of the kinds of data that recipes are made of."""
    wanted = {"labelled-clips", "two-clips", "captions", "transcripts", "counting"}
    wanted |= {"pictures-and-sounds", "depth"}
    assert wanted <= set(BANKS)


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_has_enough_forms_that_differ(name: str) -> None:
    """Law: of each kind at least sixty are trained on and twenty kept, and none stands twice.

    Those that differ by order and small words alone count once.
    """
    forms = read_forms(catalogue.questions_path(name))
    trained, held_out = (by_kind(forms, held_out=held) for held in (False, True))
    assert trained.keys() == held_out.keys()
    for kind in trained:
        assert distinct(trained[kind]) >= FEWEST_TRAINED, kind
        assert distinct(held_out[kind]) >= FEWEST_HELD_OUT, kind
        alike = Counter(" ".join(words(q)) for q in (*trained[kind], *held_out[kind]))
        assert max(alike.values()) == 1, alike.most_common(1)


@pytest.mark.parametrize("name", BANKS)
def test_no_held_out_form_is_nearly_a_trained_one(name: str) -> None:
    """Law: whatever its order and function words, no form kept shares most words with another."""
    forms = read_forms(catalogue.questions_path(name))
    trained, held_out = (by_kind(forms, held_out=held) for held in (False, True))
    for kind, questions in held_out.items():
        known = {question: content(question) for question in trained[kind]}
        for question in questions:
            nearest = max(known, key=lambda one: overlap(known[one], content(question)))
            assert overlap(known[nearest], content(question)) < 0.75, (question, nearest)


def test_shipped_rows_of_depth_are_of_the_banks_kinds() -> None:
    """Law: each row says whether it is asked what is nearest or how far, and is answered so."""
    kinds = read_bank("depth", Path()).weights.keys()
    folder = catalogue.recipe_path("depth").parent.parent / "data/depth"
    for split in ("train", "test"):
        answers: dict[str, set[str]] = {kind: set() for kind in kinds}
        for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            answers[row["kind"]].add(row["answer"])
        assert answers["distance"] == {"one metre", "two metres", "three metres"}
        assert len(answers["nearest"] - answers["distance"]) == len(answers["nearest"]) == 6


def test_a_form_says_by_its_places_what_it_asks() -> None:
    """Law: choices hold the right answer and others; a label is asked about half of the time."""
    choose = Form("Is it {choices}?", "choose")
    judge = Form("Is it {a label}?", "judge", yes="{A label}, so yes.", no="{A label}, so no.")
    row = row_questions(choose, judge, choices=3)
    for turn in range(20):
        asked = row.ask(choose, turn=turn)
        listed = set(words(asked.question)) & set(LABELS)
        assert "piano" in listed
        assert 2 <= len(listed) <= 3
        assert asked.answer == "piano"
    right, wrong = (row.ask(judge, is_yes=truth) for truth in (True, False))
    assert (right.question, right.answer) == ("Is it a piano?", "A piano, so yes.")
    assert wrong.answer == "A piano, so no."
    assert "piano" not in wrong.question
    only = attrs.evolve(row, bank=attrs.evolve(row.bank, weights={"judge": 1.0}))
    truths = Counter(only.drawn(turn).is_yes for turn in range(400))
    assert min(truths.values()) > 160


def test_a_form_may_leave_the_verdict_to_the_row() -> None:
    """Law: such a form puts the row's own yes or no into its words, and what is heard before it."""
    form = Form("Are they the same?", "same", yes="{Heard}, so yes.", no="{Heard}, so no.")
    row = attrs.evolve(row_questions(form), label="no", heard=("harp", "organ"))
    asked = row.ask(form, is_yes=True)
    assert (asked.answer, asked.is_yes) == ("A harp and an organ, so no.", False)
    assert asked.verdicts == ({"yes"}, {"no"})
    assert attrs.evolve(row, label="Yes.").ask(form).answer.endswith("so yes.")
    row.check()
    with pytest.raises(DataError, match="answered by yes or no, and not by 'harp'"):
        attrs.evolve(row, label="harp").check()
    with pytest.raises(DataError, match="what is heard in each sample"):
        attrs.evolve(row, heard=()).check()


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("A harp and an organ, so an organ.", "an organ."),
        ("A flute, so a harp, so an organ.", "an organ."),
        ("organ", "organ"),
    ],
)
def test_what_stands_behind_what_is_heard_counts(given: str, counts: str) -> None:
    """Law: of an answer that names what is heard, the end is judged, whatever was named before."""
    form = Form("Which was last?", answer="{Heard}, so {a label}.")
    row = attrs.evolve(row_questions(form), label="organ", heard=("harp", "organ"))
    asked = row.ask(form)
    assert asked.answer == "A harp and an organ, so an organ."
    assert asked.conclusion(given) == counts


def test_what_is_heard_and_seen_may_be_named_before() -> None:
    """Law: whatever an answer names of its row before it concludes, its end is judged."""
    form = Form("Which do you hear?", answer="I hear {heard} and see {other}, so {label}.")
    row = attrs.evolve(
        row_questions(form), label="harp", heard=("harp",), said={"other": "a cat and a harp"}
    )
    asked = row.ask(form)
    assert asked.answer == "I hear a harp and see a cat and a harp, so harp."
    assert asked.conclusion("I hear a cat and see a harp and a bell, so none.") == "none."
    with pytest.raises(DataError, match="made of the row's `other`"):
        attrs.evolve(row, said={}).check()


def test_rows_share_what_they_are_asked() -> None:
    """Law: of one form there are few questions, each of which several rows may be asked.

    Each names the same answers to all rows whose own is among them.
    """
    choose, judge = Form("Is it {choices}?"), Form("Is it {label}?")
    rows = [attrs.evolve(row_questions(choose, judge), label=label) for label in LABELS]
    offered = {row.ask(choose).question for row in rows}
    assert len(offered) < len(LABELS)
    for row in rows:
        assert row.label in row.ask(choose).question
    judged = {row.ask(judge, is_yes=truth).question for row in rows for truth in (True, False)}
    assert judged == {f"Is it {label}?" for label in LABELS}


def test_the_right_choice_stands_anywhere() -> None:
    """Law: nothing but the sample tells the right choice: each place has it equally often."""
    row = row_questions(Form("{choices}"), choices=2)
    first = Counter(words(row.ask(row.bank.forms[0], turn=t).question)[0] for t in range(400))
    assert 160 < first["piano"] < 240


def test_a_label_may_hold_braces() -> None:
    """Law: what is filled in is not taken for a place to fill."""
    row = attrs.evolve(row_questions(Form("{choices}: {thing}?")), label="{thing}")
    asked = row.ask(row.bank.forms[0])
    assert "{thing}" in asked.question
    assert asked.question.endswith(": sound?")
    assert asked.answer == "{thing}"


def test_draws_depend_on_seed_and_turn_alone() -> None:
    """Law: a reading asks what it asked before in the same run, and another seed something else."""
    forms = [Form(f"form {number} {{choices}}") for number in range(50)]

    def drawn(seed: int) -> list[Asked]:
        """What the first readings ask."""
        row = row_questions(*forms, seed=seed)
        return [row.drawn(turn) for turn in range(10)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len({asked.form for asked in drawn(0)}) > 5


def test_kinds_are_drawn_by_weight() -> None:
    """Law: a kind of weight 3 is asked three times as often as one of weight 1."""
    row = row_questions(Form("a", "often"), Form("b", "seldom"))
    bank = attrs.evolve(row.bank, weights={"often": 3.0, "seldom": 1.0})
    drawn = [attrs.evolve(row, bank=bank).drawn(turn) for turn in range(800)]
    assert 560 < sum(asked.form.kind == "often" for asked in drawn) < 640


def test_held_out_forms_are_never_drawn() -> None:
    """Law: training sees no form that is kept from it, and a row's first question is none."""
    kept = Form("kept", held_out=True)
    row = row_questions(Form("asked"), kept)
    assert {row.drawn(turn).question for turn in range(50)} == {"asked"}
    assert row.first().question == "asked"
    assert row.of(held_out=True) == {"name": [kept]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With files of questions."""
    (tmp_path / "lines.txt").write_text("What is it?\n\n  Name it.  \n", "utf-8")
    rows = [
        {"question": "Was ist das?", "kind": "was"},
        {"question": "Ist das {label}?", "kind": "ob", "yes": "ja", "no": "nein"},
        {"question": "Und das?", "kind": "was", "held_out": True},
    ]
    (tmp_path / "deutsch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("question", "asked", "kinds"),
    [
        ("What do you hear?", ["What do you hear?"], ["name"]),
        (("One?", "Two?"), ["One?", "Two?"], ["name"]),
        ("lines.txt", ["What is it?", "Name it."], ["name"]),
        ("deutsch.jsonl", ["Was ist das?", "Ist das {label}?"], ["was", "ob"]),
        (QuestionSpec("deutsch.jsonl", kinds={"ob": 1}), ["Ist das {label}?"], ["ob"]),
    ],
    ids=["text", "list", "lines", "bank of one's own", "some kinds"],
)
def test_a_question_may_be_one_several_or_a_file(
    folder: Path, question: QuestionForms, asked: list[str], kinds: list[str]
) -> None:
    """Law: each way of writing it gives the forms that it names."""
    bank = read_bank(question, folder)
    found = bank.of(held_out=False)
    assert [form.question for forms in found.values() for form in forms] == asked
    assert list(bank.weights) == kinds


def test_a_bank_of_the_catalogue_goes_by_its_name() -> None:
    """Law: its name alone is enough, and a table may choose from it."""
    assert list(read_bank("labelled-clips", Path()).weights) == ["name", "choose", "yes-no"]
    some = read_bank(QuestionSpec("labelled-clips", kinds={"name": 2}), Path())
    assert some.weights == {"name": 2}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r"`bad.jsonl` has no question to train on"),
        ('{"question": "a", "held_out": true}', 'without `"held_out": true`'),
        ('{"kind": "name"}', r"bad.jsonl:1: `question` is missing"),
        ('{"question": ""}', r"`question` must be a text that is not empty"),
        ('{"question": "a", "held_out": "yes"}', r"`held_out` must be true or false"),
        (
            '{"question": "a", "heldout": true}',
            r"nothing reads the field `heldout`[^`]*`held_out`",
        ),
        ('{"question": "a {lable}"}', r"nothing fills `\{lable\}` of `question`.*\n.*`label`"),
        ('{"question": "a", "answer": "{choices}"}', r"nothing fills `\{choices\}` of `answer`"),
        ('{"question": "{label}", "yes": "no"}', r"must each have a word that the other has not"),
        ("[1]", "a row must be a JSON object"),
    ],
)
def test_a_bad_bank_is_refused_by_its_line(tmp_path: Path, lines: str, message: str) -> None:
    """Law: whatever is wrong with a bank names the line, and what to write."""
    (tmp_path / "bad.jsonl").write_text(lines, "utf-8")
    with pytest.raises(DataError, match=message):
        read_bank("bad.jsonl", tmp_path)


def test_an_unknown_kind_is_refused() -> None:
    """Law: a kind that the bank has not is an error that offers the nearest."""
    with pytest.raises(DataError, match=r"kind `yesno`\nhint: did you mean `yes-no`"):
        read_bank(QuestionSpec("labelled-clips", kinds={"yesno": 1.0}), Path())


Row = dict[str, str]

RECIPE = """
[base]
model = "base"
[modalities.sound]
encoder = {{ use = "whisper", model = "whisper-tiny.en" }}
projector = {{ use = "standard" }}
fusion = {{ use = "lora" }}
[data]
train = "train.jsonl"
question = {question}
"""


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ('{ bank = "labeled-clips" }', "holds no bank of questions `labeled-clips`"),
        ('"labeled-clips"', "did you mean `labelled-clips`"),
        ('{ bank = "labelled-clips", choices = 1 }', "`data.question.choices` must be at least 2"),
        ('{ bank = "labelled-clips", kind = "name" }', "unknown key `data.question.kind`"),
        ("{ kinds = { name = 1 } }", "`data.question.bank` is missing"),
        ('{ bank = "captions", kinds = { caption = 0 } }', "must be above 0"),
        ("[]", "must not be empty"),
        ("3", "`data.question` must be a string or an array of strings or a table"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_its_question(question: str, message: str) -> None:
    """Law: a name that is no bank's, an unknown key and a number out of range are told."""
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE.format(question=question))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., RecipeData]:
    """Makes data of rows without samples, asked in some way."""

    def make(
        question: str, *values: dict[str, str], test: tuple[dict[str, str], ...] = ()
    ) -> RecipeData:
        """The data of a recipe with that ``question``."""
        for name, lines in (("train", values), ("test", test)):
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
        text = RECIPE.format(question=question) + 'test = "test.jsonl"\nchat = false\n'
        return RecipeData(parse_recipe(text, folder=tmp_path))

    return make


def test_rows_are_asked_from_the_bank(rows: Callable[..., RecipeData]) -> None:
    """Law: a row without a question is asked one of the bank's first kind; its own stays its own.

    Other answers to compare with are those of training, for the test too.
    """
    own = {"question": "Mine?", "answer": "harp"}
    data = rows(
        '"labelled-clips"',
        {"answer": "piano"},
        {"answer": "organ"},
        own,
        test=({"answer": "piano"},),
    )
    first, second, kept = data.examples("train", {})
    (tested,) = data.examples("test", {})
    assert kept.questions is None
    assert (kept.prompt, kept.answer) == ("Mine?", "harp")
    forms = first.questions.bank.of(held_out=False)["name"]  # type: ignore[union-attr]
    names = {form.question.replace("{thing}", "sound") for form in forms}
    assert {one.prompt for one in (first, second)} <= names
    for example in (first, second, tested):
        assert example.questions is not None
        assert example.questions.labels == ("piano", "organ")
    asked = first.ask(first.questions.ask(Form("Is it {label}?"), is_yes=False))  # type: ignore[union-attr]
    assert (asked.prompt, asked.answer, asked.aligned) == ("Is it organ?", "no", ("piano",))


def test_a_bank_may_replace_rows_own_questions(rows: Callable[..., RecipeData]) -> None:
    """Law: with ``replace`` all rows are asked from it."""
    spec = '{ bank = "labelled-clips", kinds = { name = 1 }, replace = true }'
    (example,) = rows(spec, {"question": "Mine?", "answer": "harp"}).examples("train", {})
    assert example.questions is not None
    assert example.prompt != "Mine?"


def test_a_rows_kind_chooses_among_kinds(rows: Callable[..., RecipeData]) -> None:
    """Law: a row that says of which kind it is, is asked in forms of that kind alone."""
    made = rows('"labelled-clips"', {"answer": "piano", "kind": "choose"}, {"answer": "organ"})
    example, other = made.examples("train", {})
    assert example.questions is not None
    assert {example.questions.drawn(turn).form.kind for turn in range(20)} == {"choose"}
    assert other.questions is not None
    assert len({other.questions.drawn(turn).form.kind for turn in range(40)}) == 3


def test_one_sample_may_be_named_by_a_text(rows: Callable[..., RecipeData]) -> None:
    """Law: what is heard is what ``align`` says, as a text or as a list of one."""
    row = {"answer": "no", "kind": "match", "other": "a cat"}
    both: list[Any] = [row | {"align": "harp"}, row | {"align": ["harp"]}]
    for example in rows('"pictures-and-sounds"', *both).examples("train", {}):
        assert example.answer == "I hear a harp and see a cat, so no."


def test_yes_and_no_are_no_classes(rows: Callable[..., RecipeData]) -> None:
    """Law: a row of a classification that is asked for yes or no is answered by words."""
    data = rows(
        '"labelled-clips"\ntask = "classification"', {"answer": "piano"}, {"answer": "harp"}
    )
    example = data.examples("train", {})[0]
    assert (example.task, example.labels) == ("classification", ("piano", "harp"))
    assert example.questions is not None
    judged = example.ask(example.questions.ask(Form("Is it {label}?")))
    assert (judged.task, judged.labels, judged.answer) == ("question_answering", (), "yes")


def test_a_bad_bank_is_told_once_before_a_run(
    rows: Callable[..., RecipeData], tmp_path: Path
) -> None:
    """Law: a look at a recipe's data names the line of its bank, however many sources ask it."""
    (tmp_path / "mine.jsonl").write_text('{"question": "{lable}"}')
    rows('"mine.jsonl"', {"answer": "piano"}, test=({"answer": "piano"},))
    text = RECIPE.format(question='"mine.jsonl"') + 'test = "test.jsonl"\n'
    (error,) = preview(parse_recipe(text, folder=tmp_path)).errors
    assert str(error).startswith("mine.jsonl:1: nothing fills `{lable}`")


def test_one_answer_cannot_be_compared(rows: Callable[..., RecipeData]) -> None:
    """Law: questions that compare answers need two of them, or an error names the fix."""
    with pytest.raises(DataError, match=r"needs at least 2 answers.*\nhint: choose other kinds"):
        rows('"labelled-clips"', {"answer": "piano"}).examples("train", {})
