"""Which questions a probe may answer together."""

from safe_framework.data.examples import Example
from safe_framework.data.questions import Form, QuestionBank, RowQuestions
from safe_framework.evaluation.gain import asks, tasks

ASKED = [("what?", "ball"), ("which?", "mug"), ("far?", "one"), ("far?", "two")]


def of(asked: list[tuple[str, str]], *prompts: str) -> tuple[list[str], list[str]]:
    """The tasks of the training rows and of test rows with these prompts."""
    return tasks(asked, [Example(prompt, "") for prompt in prompts])


def test_questions_without_a_common_answer_are_apart() -> None:
    """Law: two questions belong together only if an answer of training is common to them."""
    train, test = of(ASKED, "far?", "what?", "which?")
    assert len(set(train)) == len(set(test)) == 3
    assert train[2] == train[3] == test[0]


def test_a_common_answer_joins_questions() -> None:
    """Law: joining goes on through any number of questions, in whatever order rows come."""
    rows = [*ASKED, ("which?", "ball"), ("z?", "mug"), ("a?", "two")]
    for asked in (rows, rows[::-1]):
        train, _ = of(asked)
        of_prompt = {prompt: task for (prompt, _), task in zip(asked, train, strict=True)}
        assert of_prompt["what?"] == of_prompt["which?"] == of_prompt["z?"]
        assert of_prompt["far?"] == of_prompt["a?"] != of_prompt["what?"]


def test_a_new_question_belongs_somewhere() -> None:
    """Law: a question that training never asked is answered by a probe all the same."""
    train, test = of(ASKED, "new?")
    assert test[0] in train


def test_forms_of_a_bank_are_no_tasks() -> None:
    """Law: rows that may be asked the same are of one task, though each is asked in other words."""
    forms = [Form("name", f"what {word} is it") for word in ("thing", "sound", "noise", "one")]
    bank = QuestionBank(forms, {"name": 1.0})
    rows = [
        Example(f"what {number}", label, questions=RowQuestions(bank, label, "{question}", "r:1"))
        for number, label in enumerate(("high", "low", "high", "low"))
    ]
    here, there = tasks([(asks(row), row.answer) for row in rows[:3]], rows[3:])
    assert len({*here, *there}) == 1
