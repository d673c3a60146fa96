"""What each reading of an example asks, in a run and in a resumed one."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder
from safe_framework.data.examples import Example
from safe_framework.data.questions import Form, QuestionBank, RowQuestions
from safe_framework.training.batches import TokenizedExample, tokenize
from safe_framework.training.questions import Questions
from safe_framework.training.trainer import SafeTrainer, training_arguments
from tests.support.toys import PAD

FORMS = (*(Form(f"w{number}") for number in range(5, 15)), Form("w20", held_out=True))
LABELS = ("w30", "w31")
SPEC = TrainingSpec(max_steps=8, batch_size=3, warmup_steps=0, balance=True, save_steps=100)


def examples_of(model: SafeModel, seed: int = 0) -> list[TokenizedExample]:
    """Four rows without samples, of two answers, each of which has ten questions to be asked."""
    bank = QuestionBank(FORMS, {"name": 1.0})
    prompts, made = PromptEncoder.of(model), list[TokenizedExample]()
    for number in range(4):
        label = LABELS[number > 0]
        questions = RowQuestions(bank, label, "{question}", f"t:{number}", "", LABELS, seed)
        made.append(tokenize(prompts, Example("", label).with_questions(questions), {}))
    return made


@pytest.fixture
def trainer(model: SafeModel, tmp_path: Path) -> SafeTrainer:
    """Of a run of 24 readings."""
    return SafeTrainer(model, training_arguments(SPEC, tmp_path), examples_of(model), SPEC, pad=PAD)


def test_each_reading_asks_another_question(trainer: SafeTrainer) -> None:
    """Law: answers come alike often whatever is asked, and no held-out form is."""
    dataset: list[TokenizedExample] = trainer.train_dataset  # type: ignore[assignment]  # a list
    assert len(dataset) == 24
    for label in LABELS:
        assert sum(one.label == label for one in dataset) == 12
    asked = [one.prompt.ids for one in dataset if one.label == LABELS[0]]
    assert len(set(asked)) == 10  # all forms, in 12 readings
    assert (20,) not in {tuple(ids) for ids in asked}


def test_a_second_trainer_asks_the_same(
    model: SafeModel, trainer: SafeTrainer, tmp_path: Path
) -> None:
    """Law: what is asked follows from the seed, so a resumed run asks what it would have."""
    again = SafeTrainer(
        model, training_arguments(SPEC, tmp_path), examples_of(model), SPEC, pad=PAD
    )
    rows = [[one.row.identity for one in each.train_dataset] for each in (trainer, again)]  # type: ignore[union-attr]  # lists
    assert rows[0] == rows[1]
    other = Questions(examples_of(model, seed=1)).read_in([0] * 10)
    same = Questions(examples_of(model)).read_in([0] * 10)
    assert [one.prompt.ids for one in other] != [one.prompt.ids for one in same]


def test_rows_are_those_that_are_read(model: SafeModel) -> None:
    """Law: what is stored of the base's states has each question of the run, and no other."""
    questions = Questions(examples_of(model))
    order = [0, 1, 0, 2, 0]
    rows = {one.row for one in questions.all_of(order)}
    assert rows == {one.row for one in questions.read_in(order)}
    plain = [attrs.evolve(one, drawn=None) for one in examples_of(model)]
    assert Questions(plain).all_of(order) == plain
    assert Questions(plain).read_in(order) == [plain[index] for index in order]


def test_a_curriculum_asks_from_what_is_ready(model: SafeModel) -> None:
    """Law: where stages choose, every question that may come is among the rows."""
    questions = Questions(examples_of(model))
    rows = {one.row for one in questions.all_of(None)}
    for position in np.random.default_rng(0).integers(10_000, size=20).tolist():
        assert questions.of(position % 4, position).row in rows
