"""Banks of questions: one thing asked in many forms, of which some are never trained on.

A bank is a file of lines, each a question, or of JSON lines with ``question`` and any of ``kind``,
``answer``, ``yes``, ``no`` and ``held_out``. What a question is made of says what it asks:

- ``{choices}``: which of a few answers is right, one of them and others that training has;
- ``{label}``: whether that is the answer, which it is half of the time;
- neither: for the row's own answer; where the form says how ``yes`` and ``no`` are put, for that.

``{time}`` and ``{other}`` are what the row says under these names: when something is heard, and
what else is heard in a recording.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs

from safe_framework.config.schema import QuestionForms, QuestionSpec, question_file
from safe_framework.data.prompts import filled
from safe_framework.data.readers import Row
from safe_framework.data.readers.files import jsonl_rows
from safe_framework.data.readers.row import utf8
from safe_framework.errors import DataError
from safe_framework.utils.suggest import nearest

PLAIN = "name"
"""The kind of a question that does not say of which it is."""

_FIELDS = ("question", "kind", "answer", "yes", "no", "held_out")
_PLACES = re.compile(r"\{([^{}]*)\}")
_LABEL = ("label", "a label", "A label")
_HEARD = ("heard", "Heard")
OF_ROW = ("time", "other")
"""Fields of a row that a form may be made of."""
_VERDICTS = ("yes", "no")
_HALF = 0.5
_FEWEST = 2  # answers, so that one of them may be wrong
_ARTICLES = ("a ", "an ", "the ", "some ")


@attrs.frozen
class Form:
    """One way of asking.

    Attributes:
        question: with any of ``{choices}``, ``{label}``, ``{a label}``, ``{A label}``, ``{thing}``,
            ``{time}``, ``{other}``.
        kind: what kind of question it is; a report counts each by itself.
        answer: to anything but yes and no; ``{label}`` is the row's own.
        yes: the answer where the label asked about is the row's own, which may be named in it; or,
            of a question without a label, where the row's answer is yes.
        no: the answer where it is not.
        held_out: kept for evaluation, and never trained on.
    """

    question: str
    kind: str = PLAIN
    answer: str = "{label}"
    yes: str = "yes"
    no: str = "no"
    held_out: bool = False

    @cached_property
    def offers(self) -> bool:
        """Whether it gives answers to choose from."""
        return "{choices}" in self.question

    @cached_property
    def names_a_label(self) -> bool:
        """Whether it asks if something is the answer."""
        return any(f"{{{place}}}" in self.question for place in _LABEL)

    @cached_property
    def is_yes_no(self) -> bool:
        """Whether its answer is yes or no, in words of its own."""
        return self.names_a_label or (self.yes, self.no) != _VERDICTS

    @cached_property
    def names_what_is_heard(self) -> bool:
        """Whether its answer says what each sample is."""
        texts = (self.answer, self.yes, self.no)
        return any(f"{{{place}}}" in text for text in texts for place in _HEARD)

    @cached_property
    def of_row(self) -> tuple[str, ...]:
        """The fields of a row that it is made of."""
        texts = (self.question, self.answer, self.yes, self.no)
        return tuple(name for name in OF_ROW if any(f"{{{name}}}" in text for text in texts))

    @cached_property
    def needs_of_row(self) -> bool:
        """Whether some rows cannot be asked it: what it needs is in no row's label."""
        says_more = self.names_what_is_heard or bool(self.of_row)
        return says_more or (self.is_yes_no and not self.names_a_label)

    @cached_property
    def compares(self) -> bool:
        """Whether it needs other answers than the row's own."""
        return self.offers or self.names_a_label


@attrs.frozen
class Asked:
    """A question as it is asked of one row.

    Attributes:
        form: that it was made of.
        question: the text.
        answer: what is right.
        verdicts: the words that only the answer yes, and only the answer no, is told by; None
            where the answer is right or wrong as a whole.
        is_yes: whether yes is right.
    """

    form: Form
    question: str
    answer: str
    verdicts: tuple[frozenset[str], frozenset[str]] | None = None
    is_yes: bool = False

    def conclusion(self, given: str) -> str:
        """What of an answer is right or wrong, where it says more than that.

        Of yes and no that is the one whose word it has, if it has none of the other's; of a form
        whose answer first names what is heard, what stands behind all that it names first.

        >>> Asked(Form("Which was last?", answer="{Heard}, so {a label}."), "", "").conclusion(
        ...     "A harp and an organ, so an organ."
        ... )
        'an organ.'
        >>> both = Form("Which do you hear?", answer="I hear {heard} and see {other}, so {label}.")
        >>> Asked(both, "", "").conclusion("I hear a harp and see a drum and a harp, so harp.")
        'harp.'
        """
        if self.verdicts is not None:
            said = set(words(given))
            yes, no = (bool(said & verdict) for verdict in self.verdicts)
            return given if yes == no else _VERDICTS[no]
        places = list(_PLACES.finditer(self.form.answer))
        if self.form.names_what_is_heard and len(places) > 1:
            before, last = places[-2:]
            return given.rpartition(self.form.answer[before.end() : last.start()])[2]
        return given


@attrs.frozen
class QuestionBank:
    """Forms of questions, and how they are drawn.

    Attributes:
        forms: all of them.
        weights: how often a question is of each kind, relative to the others.
        choices: at most so many answers are given to choose from.
        thing: what samples are of, in place of ``{thing}``.
        replaces: asked of rows that have a question of their own, too.
    """

    forms: tuple[Form, ...]
    weights: Mapping[str, float]
    choices: int = 4
    thing: str = "sound"
    replaces: bool = False

    def of(self, *, held_out: bool) -> dict[str, list[Form]]:
        """The forms by kind that are trained on, or the others."""
        return dict(self._by_kind[held_out])

    @cached_property
    def _by_kind(self) -> dict[bool, dict[str, list[Form]]]:
        """The forms by whether they are held out, and by kind: every row asks for them."""
        parts: dict[bool, dict[str, list[Form]]] = {False: {}, True: {}}
        for kind in self.weights:
            for form in self.forms:
                if form.kind == kind:
                    parts[form.held_out].setdefault(kind, []).append(form)
        return parts

    @property
    def compares(self) -> bool:
        """Whether some question needs other answers than a row's own."""
        return any(form.compares for form in self.forms if form.kind in self.weights)


@attrs.frozen
class RowQuestions:
    """All the questions that one row can be asked.

    Attributes:
        bank: of the forms.
        label: the row's own answer.
        template: the prompt around ``{question}``.
        place: of the row, on which draws depend.
        kind: the only kind that fits the row; empty if any does.
        labels: all answers that training has.
        seed: of the run, on which draws depend.
        around: what is made of a prompt with its question: a chat, where one is asked in.
        present: how many samples the row has, by modality.
        heard: what the samples are, one after another; empty where the row does not say.
        said: the row's own ``time`` and ``other``, as far as it has them.
    """

    bank: QuestionBank
    label: str
    template: str
    place: str
    kind: str = ""
    labels: tuple[str, ...] = ()
    seed: int = 0
    around: Callable[[str], str] = str
    present: Mapping[str, int] = attrs.field(factory=dict)
    heard: tuple[str, ...] = ()
    said: Mapping[str, str] = attrs.field(factory=dict)

    def prompt_of(self, asked: Asked) -> str:
        """The text that the base is given of a question.

        Raises:
            DataError: it names more or fewer places than the row has samples.
        """
        return self.around(filled(self.template, asked.question, self.present, self.place))

    def of(self, *, held_out: bool) -> dict[str, list[Form]]:
        """The forms by kind that fit the row."""
        found = self.bank.of(held_out=held_out)
        return {kind: forms for kind, forms in found.items() if kind == self.kind or not self.kind}

    def check(self) -> None:
        """Refuse a row that lacks what a form that it may be asked is made of.

        Raises:
            DataError: a form wants yes or no, names what is heard, or is made of a field, and the
                row says none of it.
        """
        kinds = [*self.of(held_out=False).values(), *self.of(held_out=True).values()]
        for form in (form for forms in kinds for form in forms if form.needs_of_row):
            asks = f"{self.place}: `{form.question}` (of the kind `{form.kind}`)"
            if form.is_yes_no and not form.names_a_label and self._verdict not in _VERDICTS:
                raise DataError(
                    f"{asks} is answered by yes or no, and not by {self.label!r}",
                    hint="say in the row which kind it is to be asked: `kind`",
                )
            if form.names_what_is_heard and not self.heard:
                raise DataError(
                    f"{asks} is answered by what is heard in each sample, and the row lacks it",
                    hint='such as `"align": ["violin", "flute"]`',
                )
            if lacking := [name for name in form.of_row if name not in self.said]:
                raise DataError(
                    f"{asks} is made of the row's `{lacking[0]}`, and the row lacks it",
                    hint="add it, or say which kind the row is to be asked: `kind`",
                )

    def first(self) -> Asked:
        """The question that stands for the row: one of its first kind."""
        forms = next(iter(self.of(held_out=False).values()))
        return self.ask(self._random("first", self.place).choice(forms))

    def drawn(self, turn: int) -> Asked:
        """The question of the row's reading number ``turn`` in training.

        A form does not come again before the row was asked as many as its kind has.
        """
        own = self._random(turn, self.place)
        kinds = self.of(held_out=False)
        (kind,) = own.choices(list(kinds), [self.bank.weights[kind] for kind in kinds])
        forms = kinds[kind]
        order = _order(self.seed, self.place, kind, len(forms))
        return self.ask(forms[order[turn % len(forms)]], is_yes=own.random() < _HALF)

    def ask(self, form: Form, *, turn: int = 0, is_yes: bool = True) -> Asked:
        """The row's question of some form.

        The answers to compare with are the same for all rows at one turn, so that a text that is
        read once serves many rows: labels in an order of the form's own are dealt in groups.

        Args:
            form: of the bank.
            turn: has an order of its own.
            is_yes: what is right, where it asks for yes or no.
        """
        own = self._random(turn, form.question)
        known = dict.fromkeys((*self.labels, self.label))  # a test may have one of its own
        labels = own.sample(list(known), len(known))
        place = labels.index(self.label)
        texts = {"thing": self.bank.thing, **_all_named(self.heard), **self.said}
        if form.offers:
            size = own.randint(_FEWEST, min(self.bank.choices, len(labels)))
            start = min(place - place % size, len(labels) - size)
            texts["choices"] = _listed(labels[start : start + size])
        if not form.is_yes_no:
            answer = _filled(form.answer, texts | _named(self.label))
            return Asked(form, _filled(form.question, texts), answer)
        if not form.names_a_label:
            is_yes = self._verdict == "yes"
        named = self.label if is_yes else labels[(place + 1) % len(labels)]
        answer = _filled(form.yes if is_yes else form.no, texts | _named(self.label))
        question = _filled(form.question, texts | _named(named))
        return Asked(form, question, answer, _verdicts(form), is_yes)

    @property
    def _verdict(self) -> str:
        return self.label.strip(". ").casefold()

    def _random(self, *key: object) -> random.Random:
        """Numbers that depend on the seed and ``key`` alone, on every machine."""
        return _random(self.seed, *key)


def _random(*key: object) -> random.Random:
    return random.Random(repr(key))


@lru_cache(maxsize=4096)
def _order(seed: int, place: str, kind: str, count: int) -> tuple[int, ...]:
    """In which order a row is asked the forms of a kind: of many forms, a while to draw."""
    return tuple(_random(seed, place, kind).sample(range(count), count))


def said_in(row: Row) -> dict[str, str]:
    """The texts of a row that forms may be made of."""
    found = {name: row.values.get(name) for name in OF_ROW}
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def read_bank(question: QuestionForms, folder: Path) -> QuestionBank:
    """The bank that a recipe's ``question`` names, or is.

    Args:
        question: as ``[data]`` has it.
        folder: what file names are relative to.

    Raises:
        DataError: a line of its file is wrong, or a kind has no form.
        CatalogueError: the catalogue holds no such bank.
    """
    path = question_file(question, folder)
    if path is None:
        texts = (question,) if isinstance(question, str) else question
        assert not isinstance(texts, QuestionSpec)  # which has a file
        return QuestionBank(tuple(map(Form, texts)), {PLAIN: 1.0})
    forms = read_forms(path)
    kinds = dict.fromkeys((form.kind for form in forms if not form.held_out), 1.0)
    if not isinstance(question, QuestionSpec):
        return QuestionBank(forms, kinds)
    for kind in question.kinds:
        if kind not in kinds:
            hint = nearest(kind, kinds) or f"kinds: {', '.join(kinds)}"
            raise DataError(f"`{path.name}` has no form of the kind `{kind}`", hint=hint)
    weights = question.kinds or kinds
    return QuestionBank(forms, weights, question.choices, question.thing, question.replace)


def question_and_bank(
    question: QuestionForms | None, folder: Path
) -> tuple[str | None, QuestionBank | None]:
    """The one question that rows are asked, or the bank that theirs are drawn from.

    The arguments and errors are those of :func:`read_bank`.
    """
    one = question is None or (
        isinstance(question, str) and question_file(question, folder) is None
    )
    if one:
        assert question is None or isinstance(question, str)
        return question, None
    assert question is not None
    return None, read_bank(question, folder)


def read_forms(path: Path) -> tuple[Form, ...]:
    """The forms of questions in a file of lines or of JSON lines.

    Raises:
        DataError: there is none, or a line is wrong; the message gives its place.
    """
    if path.suffix.lower() == ".jsonl":
        forms = [_form(row) for row in jsonl_rows(path)]
    else:
        lines = enumerate(utf8(path).splitlines(), start=1)
        rows = [(f"{path.name}:{number}", line.strip()) for number, line in lines if line.strip()]
        forms = [_checked(Form(line), place) for place, line in rows]
    if not any(not form.held_out for form in forms):
        raise DataError(
            f"`{path.name}` has no question to train on",
            hint="write one on each line" + (', without `"held_out": true`' if forms else ""),
        )
    return tuple(forms)


def _form(row: Row) -> Form:
    if row.error is not None:
        raise row.error
    for name in row.values:
        if name not in _FIELDS:
            hint = nearest(name, _FIELDS) or f"fields: {', '.join(_FIELDS)}"
            raise DataError(f"{row.place}: nothing reads the field `{name}`", hint=hint)
    values: dict[str, Any] = {k: v for k, v in row.values.items() if v is not None}
    for name, value in values.items():
        wanted = bool if name == "held_out" else str
        if not isinstance(value, wanted) or value == "":
            what = "true or false" if wanted is bool else "a text that is not empty"
            raise DataError(f"{row.place}: `{name}` must be {what}, not {value!r}")
    if "question" not in values:
        raise DataError(f"{row.place}: `question` is missing", hint='such as "What is it?"')
    return _checked(Form(**values), row.place)


def _checked(form: Form, place: str) -> Form:
    """The form, if nothing in it would be left unfilled."""
    known: dict[str, tuple[str, ...]] = {"question": ("choices", "thing", *OF_ROW, *_LABEL)}
    known |= dict.fromkeys(("answer", "yes", "no"), ("thing", *_HEARD, *OF_ROW, *_LABEL))
    for field, names in known.items():
        for name in _PLACES.findall(getattr(form, field)):
            if name not in names:
                hint = nearest(name, names) or f"it may hold {', '.join(f'{{{n}}}' for n in names)}"
                raise DataError(f"{place}: nothing fills `{{{name}}}` of `{field}`", hint=hint)
    if form.is_yes_no and not all(_verdicts(form)):
        raise DataError(
            f"{place}: `yes` and `no` must each have a word that the other has not",
            hint='such as "yes": "{A label}, so yes.", "no": "{A label}, so no."',
        )
    return form


def check_bank(bank: QuestionBank, labels: Sequence[str], place: str) -> None:
    """Refuse questions that compare answers where there are not two to compare.

    Raises:
        DataError: there is one answer alone.
    """
    if bank.compares and len(labels) < _FEWEST:
        raise DataError(
            f"{place}: a bank that asks which answer is right needs at least {_FEWEST} answers in "
            f"`train`, which has {len(labels)}",
            hint="choose other kinds of the bank: `kinds = { name = 1 }`",
        )


def with_article(label: str) -> str:
    """A label with its indefinite article, where one fits.

    >>> with_article("organ"), with_article("violin"), with_article("the sea"), with_article("Bach")
    ('an organ', 'a violin', 'the sea', 'Bach')
    """
    if label.lower().startswith(_ARTICLES) or not label[:1].islower():
        return label
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _named(label: str) -> dict[str, str]:
    article = with_article(label)
    return {"label": label, "a label": article, "A label": article[:1].upper() + article[1:]}


def _all_named(heard: Sequence[str]) -> dict[str, str]:
    """What samples are, in one phrase: "a harp and an organ"."""
    phrase = " and ".join(map(with_article, heard))
    return {"heard": phrase, "Heard": phrase[:1].upper() + phrase[1:]} if heard else {}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """The text with each place filled; what was filled in is not looked at again."""
    return _PLACES.sub(lambda found: values.get(found[1], found[0]), text)


def _listed(labels: Sequence[str]) -> str:
    """Labels in one phrase.

    >>> _listed(["a", "b"]), _listed(["a", "b", "c"])
    ('a or b', 'a, b or c')
    """
    return f"{', '.join(labels[:-1])} or {labels[-1]}"


def _verdicts(form: Form) -> tuple[frozenset[str], frozenset[str]]:
    """The words by which its yes, and its no, is known."""
    yes, no = (set(words(_PLACES.sub(" ", text))) for text in (form.yes, form.no))
    return frozenset(yes - no), frozenset(no - yes)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words("A violin, so no.")
    ['a', 'violin', 'so', 'no']
    """
    return re.findall(r"[^\W_]+", text.casefold())
