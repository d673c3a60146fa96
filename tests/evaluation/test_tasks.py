"""Which questions a probe may answer together."""

from safe_framework.data.examples import Example
from safe_framework.evaluation.gain import tasks

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
