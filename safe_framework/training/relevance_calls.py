"""The calls that a relevance head is fitted, calibrated and measured on: what is asked of a sense.

Relevant are the forms of its questions. Irrelevant are texts about no sample: those of banks, and
retention's. A quarter of all stand in a chat that was about something else before, so that the
head tells what is asked from where it is asked. Each call is one draw: the head reads the text
alone, so that what it decides holds beside every sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs

from safe_framework.config.schema import Recipe, RelevanceSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow
from safe_framework.data.chat_template import QUESTION, ChatTemplate
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.irrelevant import IrrelevantBank, read_irrelevant
from safe_framework.data.pictures import Picture
from safe_framework.data.prompts import recipe_chat
from safe_framework.errors import SafeError

_Item = TypeVar("_Item")

RETENTION = "retention"
"""The kind of the texts that the base must keep its answers to."""

TRAINED, HELD_OUT = "trained wordings", "held-out wordings"
"""The kinds of relevant calls: forms that were trained on, and others."""

_ENOUGH = 4000  # relevant calls, so that none is asked again: each costs reading time
_MOST = 240  # relevant calls that are counted, and retention's texts
_IN_CHATS = 0.25
_TURNS = (
    ("Thanks for your help so far.", "You're welcome. What else can I do?"),
    ("Which day comes after Friday?", "Saturday comes after Friday."),
    ("I have a few questions for you.", "Go ahead, I'm happy to answer them."),
    ("How do you say thank you in French?", "You say merci."),
    ("Is a whale a fish?", "No, a whale is a mammal."),
)


@attrs.frozen(eq=False)
class GateCall:
    """One call that a gate opens or stays closed on.

    Attributes:
        row: what the base is given, without a sample.
        kind: ``TRAINED``, ``HELD_OUT``, ``RETENTION``, or the name of a bank.
        relevant: whether the gate should open.
        text: what was asked, to group and to show it by.
        share: how often it is drawn for a fit, relative to others.
    """

    row: PromptRow
    kind: str
    relevant: bool
    text: str
    share: float = 1.0


class CallMaker:
    """Makes calls as a model is asked them.

    Args:
        model: with the sense.
        recipe: that it was built from; its seed decides every draw.
        spec: of the sense's head.
    """

    def __init__(self, model: SafeModel, recipe: Recipe, spec: RelevanceSpec) -> None:
        self._prompts = PromptEncoder.of(model)
        self._template, self._seed = model.processor.template, recipe.training.seed
        self._chats = _chats(model, recipe)
        self.banks: tuple[IrrelevantBank, ...] = read_irrelevant(spec.irrelevant, recipe.folder)

    def irrelevant(self, part: str) -> list[GateCall]:
        """The texts of one part of every bank."""
        return [
            self._call(self._around(text), text, bank.name, relevant=False)
            for bank in self.banks
            for text in bank.of(part)
        ]

    def relevant(
        self,
        examples: Sequence[Example],
        *,
        held_out: bool,
        times: int = 1,
        most: int = _MOST,
    ) -> list[GateCall]:
        """Questions of the sense's examples: each form so many times, of rows in turn.

        Args:
            examples: with a sample of the sense; those without a bank have their own question.
            held_out: in forms that were kept from training, of which only banks have some.
            times: how often each is asked, of another row or in another place; once where that
                gives enough calls already.
            most: of the questions; some of all are taken where there are more.
        """
        kind, found = HELD_OUT if held_out else TRAINED, dict[PromptRow, GateCall]()
        asked = [example for example in examples if example.questions is not None]
        own = [] if held_out else [example for example in examples if example.questions is None]
        for turn in range(times):
            if len(found) >= _ENOUGH:
                break
            for text, example, share in self._in_forms(asked, held_out, turn):
                call = attrs.evolve(self._of(example, text, kind, turn), share=share)
                found.setdefault(call.row, call)
            for example in own:
                call = self._of(example, example.prompt, kind, turn)
                found.setdefault(call.row, call)
        return _spread(list(found.values()), most)

    def _in_forms(
        self, asked: Sequence[Example], held_out: bool, turn: int
    ) -> Iterator[tuple[str, Example, float]]:
        """Each form of every bank, and a row that is asked it; another row at another ``turn``.

        With it comes how often it is asked in training, where the mean of a bank's forms is 1.
        """
        for some in _by_bank(asked):
            yield from self._in_forms_of(some, held_out, turn)

    def _in_forms_of(
        self, asked: Sequence[Example], held_out: bool, turn: int
    ) -> Iterator[tuple[str, Example, float]]:
        """The same of rows that one bank asks."""
        assert asked[0].questions is not None
        bank = asked[0].questions.bank
        by_kind, weights = bank.of(held_out=held_out), bank.weights
        forms = [form for some in by_kind.values() for form in some]
        mean = sum(weights[kind] for kind in by_kind) / max(len(forms), 1)
        of_kind = {kind: [e for e in asked if kind in _kinds(e, held_out)] for kind in by_kind}
        drawn = random.Random(repr((self._seed, "forms")))
        for number, form in enumerate(drawn.sample(forms, len(forms)), turn * len(forms)):
            if not (fitting := of_kind[form.kind]):
                continue
            row = fitting[(number + turn) % len(fitting)]
            assert row.questions is not None
            question = row.questions.ask(form, turn=number, is_yes=(number + turn) % 2 == 0)
            share = weights[form.kind] / len(by_kind[form.kind]) / mean
            yield form.question, row.ask(question), share

    def own(self, text: str, kind: str, *, relevant: bool, whole: bool) -> GateCall:
        """A user's text: the whole of what the base reads, or a question in the recipe's prompt."""
        prompt = text if whole else self._template.replace(QUESTION, text)
        return self._call(prompt, text, kind, relevant=relevant)

    def questions(self, part: str, count: int) -> list[Example]:
        """So many questions of one part of the banks, of every bank alike, as examples."""
        each = [_spread(list(bank.of(part)), -(-count // len(self.banks))) for bank in self.banks]
        return [
            Example(self._template.replace(QUESTION, text), "", {}, text)
            for some in each
            for text in some
        ]

    def retention(self, texts: Sequence[TextRow]) -> list[GateCall]:
        """Texts of the base's own domain; every other plain one is cut where it may go on."""
        chosen = _spread(list(texts), _MOST)
        found = []
        for number, row in enumerate(chosen):
            text = _cut(row.text, self._random(row.text)) if number % 2 else row.text
            whole = row.text if row.images or row.text.endswith(self._ending) else text
            found.append(self._call(whole, row.text, RETENTION, relevant=False, images=row.images))
        return found

    @property
    def _ending(self) -> str:
        """What every prompt ends with; a text that does not is no prompt."""
        return self._template.partition(QUESTION)[2] or "\0"

    def _of(self, example: Example, text: str, kind: str, turn: int) -> GateCall:
        before, _, after = self._template.partition(QUESTION)
        prompt = example.prompt
        plain = prompt.startswith(before) and prompt.endswith(after) and not example.images
        if plain:
            asked = prompt.removeprefix(before)
            prompt = self._around(asked.removesuffix(after) if after else asked, turn)
        return self._call(prompt, text, kind, relevant=True, images=example.images)

    def _around(self, text: str, turn: int = 0) -> str:
        """A question in the prompt, a quarter of all in a chat that has gone on before."""
        drawn = self._random((text, turn) if turn else text)
        chat = drawn.choice(self._chats) if self._chats and drawn.random() < _IN_CHATS else None
        return (chat or self._template).replace(QUESTION, text)

    def _call(
        self,
        prompt: str,
        text: str,
        kind: str,
        *,
        relevant: bool,
        images: Sequence[Picture] = (),
    ) -> GateCall:
        return GateCall(self._prompts.prompt(prompt, images), kind, relevant, text)

    def _random(self, what: object) -> random.Random:
        return random.Random(repr((self._seed, what)))


def _chats(model: SafeModel, recipe: Recipe) -> list[str]:
    """The text around a question in chats that have gone on, where questions are asked in chats."""
    chat: ChatTemplate | None = recipe_chat(recipe.data, model.base_processor)
    if chat is None or recipe.data is None:
        return []
    asked = {"role": "user", "content": recipe.data.prompt}
    own = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    found = []
    for user, assistant in _TURNS:
        turn = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        try:
            text = chat.before_answer([*own, *turn, asked])
        except SafeError:  # a template may take no chat of several turns
            return []
        if QUESTION in text:
            found.append(text)
    return found


def _by_bank(asked: Sequence[Example]) -> list[list[Example]]:
    """The rows that each bank asks: each dataset of a mix has its own."""
    found: dict[int, list[Example]] = {}
    for example in asked:
        if example.questions is not None:
            found.setdefault(id(example.questions.bank), []).append(example)
    return list(found.values())


def _kinds(example: Example, held_out: bool) -> list[str]:
    assert example.questions is not None
    return list(example.questions.of(held_out=held_out))


def _cut(text: str, drawn: random.Random) -> str:
    """The beginning of a text, up to the end of some word."""
    words = text.split(" ")
    return " ".join(words[: drawn.randint(1, len(words))])


def _spread(items: list[_Item], most: int) -> list[_Item]:
    """At most so many of the items, at equal distances."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]
