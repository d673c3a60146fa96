"""What a row asks and what is right, by the task of its dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import attrs

from safe_framework.data.conversations import MESSAGES, Talk, has_messages, last_question
from safe_framework.data.prompts import filled
from safe_framework.data.questions import QuestionBank, RowQuestions, said_in
from safe_framework.data.readers import Row
from safe_framework.errors import DataError
from safe_framework.utils.suggest import nearest

NO_FIELDS: Mapping[str, str] = MappingProxyType({})
"""Every field has the name that it has here."""

NO_SAMPLES: Mapping[str, int] = MappingProxyType({})
"""A text has none."""

QUESTIONS, CAPTIONS, CLASSES = "question_answering", "captioning", "classification"
KIND = "kind"
"""The field that says what kind of question a row is, where the recipe names no other."""

OWN_ANSWER = {CAPTIONS: "caption", CLASSES: "label"}
"""What the answer of a task is called, where it is not called ``answer``."""


@attrs.frozen
class TaskFormat:
    """How the rows of one dataset become examples.

    Attributes:
        dataset: its name; empty where there is only one.
        task: ``"question_answering"``, ``"captioning"`` or ``"classification"``.
        prompt: the text that the base is given, around ``{question}`` if it has one.
        question: what is asked where a row asks nothing.
        bank: questions of which rows are asked instead; None where there is one at most.
        labels: the closed set of answers of a classification; empty for whatever the rows say.
        at_tokens: whether a class is read at the modality's tokens and not by an answer.
        fields: what a field is called in the data, by the name that it has here.
        ignore: fields of the data that are left out.
        around: what is made of a prompt with its question: a chat, where the base is asked in one.
        talk: renders conversations; None gives their last question alone.
    """

    dataset: str = ""
    task: str = QUESTIONS
    prompt: str = "{question}"
    question: str | None = None
    bank: QuestionBank | None = None
    labels: tuple[str, ...] = ()
    at_tokens: bool = False
    fields: Mapping[str, str] = NO_FIELDS
    ignore: tuple[str, ...] = ()
    around: Callable[[str], str] = str
    talk: Talk | None = None

    def prompt_of(self, row: Row, present: Mapping[str, int] = NO_SAMPLES) -> str:
        """The text that the base is given; captions and classes need no question.

        Where a bank is asked, ``{question}`` is yet to be filled.

        Args:
            row: that asks.
            present: how many samples it has, by modality, each with its place ``<NAME>`` in the
                text if that names any.

        Raises:
            DataError: the task is question answering, and nothing is asked; or the text names more
                or fewer places than there are samples.
        """
        if has_messages(row):
            return self.talk.before(row) if self.talk else last_question(row.values[MESSAGES])
        asked = self.question
        if asked is None and self.task != QUESTIONS:
            asked = ""
        if self.is_drawn(row):
            return self.prompt
        return self.around(filled(self.prompt, question_of(row, asked), present, row.place))

    def is_drawn(self, row: Row) -> bool:
        """Whether the bank says what the row is asked."""
        has_own = row.values.get("question") is not None
        if has_messages(row):
            return False
        return self.bank is not None and (self.bank.replaces or not has_own)

    def questions_of(
        self, row: Row, present: Mapping[str, int] = NO_SAMPLES, heard: tuple[str, ...] = ()
    ) -> RowQuestions | None:
        """What the bank asks of the row, whose labels are yet to come; None for its own question.

        Args:
            row: that is asked.
            present: how many samples it has, by modality.
            heard: what each of them is, if the row says so.

        Raises:
            DataError: a form that the row may be asked wants yes or no, which its answer is not,
                or names what is heard, which it does not say.
        """
        if self.bank is None or not self.is_drawn(row):
            return None
        kinds, kind = self.bank.of(held_out=False), row.values.get(KIND)
        questions = RowQuestions(
            self.bank,
            self.answer_of(row),
            self.prompt,
            row.place,
            kind if isinstance(kind, str) and kind in kinds else "",
            around=self.around,
            present=present,
            heard=heard,
            said=said_in(row),
        )
        questions.check()
        return questions

    def answer_of(self, row: Row) -> str:
        """The row's ``answer``; of a caption its ``caption``, of a class its ``label``, if given.

        Raises:
            DataError: it has none, or one that is not among the labels.
        """
        own = OWN_ANSWER.get(self.task, "answer")
        answer = text_in(row, own if row.values.get(own) is not None else "answer", instead=own)
        if self.labels and answer not in self.labels:
            raise DataError(
                f"{row.place}: `{answer}` is none of the labels",
                hint=f"labels: {', '.join(self.labels)}",
            )
        return answer


def question_of(row: Row, question: str | None = None) -> str:
    """What the row asks, or ``question`` where it asks nothing.

    Raises:
        DataError: there is neither.
    """
    if question is not None and row.values.get("question") is None:
        return question
    return text_in(row, "question")


def text_of(
    row: Row,
    template: str = "{question}",
    around: Callable[[str], str] = str,
    talk: Talk | None = None,
) -> str:
    """The row's ``text``, its ``question`` in the template and what is ``around`` that, or talk.

    Raises:
        DataError: it has none of them.
    """
    if has_messages(row):
        return talk.whole(row) if talk else last_question(row.values[MESSAGES])
    if row.values.get("question") is not None:
        return around(template.replace("{question}", text_in(row, "question")))
    return text_in(row, "text")


def text_in(row: Row, field: str, *, instead: str = "") -> str:
    """A field that must hold text.

    Args:
        row: that has it.
        field: its name.
        instead: what the message calls it.

    Raises:
        DataError: it holds none.
    """
    value = row.values.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.place}: `{instead or field}` must be a text that is not empty, not {value!r}",
            hint=_hint(field, row),
        )
    return value


def _hint(field: str, row: Row) -> str:
    """What to do about a field that a row lacks: it is misspelt, or called otherwise."""
    there = f"its fields are: {', '.join(row.values)}"
    if field in row.values:
        return there
    if meant := nearest(field, row.values):
        return f"{meant} {there}"
    renamed = f'say which of them it is by `fields = {{ {field} = "NAME" }}` in [data]'
    if field != "question":
        return f"{there}; {renamed}"
    return f'{there}; ask one question of all rows by `question = "..."` in [data], or {renamed}'


def unique(values: Sequence[str]) -> list[str]:
    """The values without repeats, in the order in which they first appear."""
    return list(dict.fromkeys(values))
