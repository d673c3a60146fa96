"""How the test questions are put."""

from collections import Counter

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.data.examples import Example
from safe_framework.evaluation.answers import (
    answer,
    answer_room,
    answer_without,
    derangement,
    with_shuffled_samples,
    without_modality,
)
from safe_framework.evaluation.gain import question_of_prompt

LABELS = st.lists(st.sampled_from("abcd"), min_size=2, max_size=30)


@given(LABELS, st.integers(0, 100))
def test_a_derangement_moves_every_row(labels, seed):
    """Every row gets another row, and every row is used once."""
    order = derangement(labels, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    assert all(row != other for row, other in enumerate(order))


@given(LABELS, st.integers(0, 100))
def test_a_derangement_changes_the_label_as_often_as_is_possible(labels, seed):
    """Only a group of more than half of the rows meets itself, and no more than it must."""
    order = derangement(labels, seed=seed)
    kept = sum(labels[row] == labels[other] for row, other in enumerate(order))
    largest = max(Counter(labels).values())
    assert kept == max(0, 2 * largest - len(labels))


def test_the_seed_decides_the_derangement():
    """Equal seeds shuffle alike, other seeds otherwise."""
    labels = list("aabbccdd")
    assert derangement(labels, seed=1) == derangement(labels, seed=1)
    assert len({tuple(derangement(labels, seed=seed)) for seed in range(10)}) > 1


def test_one_row_stays():
    """A single row can only get itself."""
    assert derangement(["a"]) == [0]


def test_shuffling_moves_only_the_one_modality():
    """Prompts, answers and the samples of other modalities stay where they are."""
    rows = [
        Example(f"prompt {n}", "ab"[n % 2], {"audio": n, "depth": 10 * n}, f"row:{n}")
        for n in range(4)
    ]
    moved = with_shuffled_samples(rows, "audio")
    assert [row.prompt for row in moved] == [row.prompt for row in rows]
    assert [row.samples["depth"] for row in moved] == [0, 10, 20, 30]
    assert all(row.samples["audio"] % 2 != n % 2 for n, row in enumerate(moved))


def test_leaving_a_modality_out_keeps_the_others():
    """Only the modality's own sample is dropped, and the example itself is not changed."""
    row = Example("prompt", "a", {"audio": 1, "depth": 2})
    assert without_modality([row], "audio")[0].samples == {"depth": 2}
    assert row.samples == {"audio": 1, "depth": 2}


def test_the_base_is_asked_each_question_once():
    """Rows with the same prompt share the base's answer; other samples make another question."""
    rows = [
        Example("same", "a", {"audio": 1}, "row:1"),
        Example("same", "b", {"audio": 2}, "row:2"),
        Example("same", "c", {"audio": 3, "depth": 1}, "row:3"),
        Example("other", "a", {"audio": 4}, "row:4"),
    ]
    asked = []

    def ask(examples, label):
        asked.extend(examples)
        return [f"answer to {row.place}" for row in examples]

    answers = answer_without(ask, rows, "audio", label="base")
    assert len(asked) == 3
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3
    assert all("audio" not in row.samples for row in asked)


def test_answers_without_the_modality_are_the_bases(model, examples):
    """Asked without its sample, the model says what the unwrapped base says."""
    alone = without_modality(examples[:1], "touch")
    batch = model.tokenizer(text=[alone[0].prompt], return_tensors="pt")
    tokens = model.base.generate(**batch, max_new_tokens=4, do_sample=False)
    expected = model.tokenizer.decode(
        tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answer(model, alone, max_new_tokens=4) == [expected.strip()]


def test_there_is_room_for_each_expected_answer(model, examples):
    """Where no limit is given, it is that of the longest expected answer; one below is told of."""
    long = attrs.evolve(examples[0], answer=" ".join(["red", "blue"] * 6))
    tokens = len(model.tokenizer(long.answer, add_special_tokens=False)["input_ids"])
    assert tokens > 8
    assert answer_room(model, [*examples, long], None) == tokens + 2
    assert answer_room(model, examples, None) == answer_room(model, [], None) == 8
    assert answer_room(model, [long], tokens) == tokens
    with pytest.warns(UserWarning, match=f"cut at 4 tokens, and an expected one has {tokens}"):
        assert answer_room(model, [long], 4) == 4


def test_a_closed_gate_switches_the_modality_off(model, examples):
    """The gate given for an answer is the one that counts."""
    options = {"max_new_tokens": 3, "batch_size": 5}
    shut = answer(model, examples, gate={"touch": 0.0}, **options)
    assert shut == answer(model, without_modality(examples, "touch"), **options)
    assert shut != answer(model, examples, gate={"touch": 1.0}, **options)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_batch_size_changes_no_order(model, examples, size):
    """Answers come in the order of the examples, one for each."""
    with torch.no_grad():
        model.modality("touch").projector.linear.weight.mul_(100)
    strong = [
        attrs.evolve(row, samples={"touch": np.float32([40 if row.answer == "red" else -40, 0])})
        for row in examples
    ]
    answers = answer(model, strong, max_new_tokens=1, batch_size=size)
    assert answers == answer(model, strong, max_new_tokens=1, batch_size=3)
    assert len(set(answers)) > 1


@given(st.text(min_size=1), st.text(), st.text())
def test_a_question_is_found_in_its_prompt(question, before, after):
    """What a template put around a question is taken off again, whatever either holds."""
    template = before.replace("{question}", "") + "{question}" + after.replace("{question}", "")
    prompt = template.replace("{question}", question)
    assert question_of_prompt(prompt, template) == question


def test_a_prompt_of_another_template_is_left_whole():
    """A prompt that the template cannot have made is shown as it is."""
    assert question_of_prompt("Tell me: what?", "Q: {question}") == "Tell me: what?"
