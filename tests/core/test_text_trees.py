"""Texts in trees: each beginning stands once, and a base reads every text as if it stood alone."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import layer_outputs
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, as_rows
from safe_framework.core.shared_opening import SharedOpening, openings, reads_trees
from safe_framework.core.text_trees import TREES, WIDTH, TextTrees, in_calls
from safe_framework.training import relevance_states
from safe_framework.training.relevance_states import EndReader, read_ends
from safe_framework.utils.tensors import near
from tests.support.toys import LAYERS, PAD, attached, gpt2, llama, mixtral

TEXTS = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=7).map(tuple), min_size=1, max_size=12
)
ROWS = as_rows([(9, 8, 1, 2, 3), (9, 8, 1, 2), (9, 8, 1, 4, 5, 6), (9, 8, 7), (9, 8, 1, 2, 3)])


def prompts(model: SafeModel) -> PromptEncoder:
    """Makes batches of a model's rows."""
    return PromptEncoder.of(model)


@given(TEXTS)
def test_a_beginning_stands_once(texts: list[tuple[int, ...]]) -> None:
    """Law: a text finds its tokens in order, and no two of all are of one beginning."""
    trees = TextTrees.of(texts)
    flat = trees.ids.flatten()
    for text, path in zip(texts, trees.paths, strict=True):
        assert flat[path].tolist() == list(text)
        assert trees.depths.flatten()[path].tolist() == list(range(len(text)))
    used = torch.cat(list(trees.paths)).unique()
    assert len(used) == len({text[: n + 1] for text in texts for n in range(len(text))})
    assert trees.of_texts(trees.ids)[0].tolist() == list(texts[0])


@given(TEXTS)
def test_a_token_sees_its_own_text_up_to_itself(texts: list[tuple[int, ...]]) -> None:
    """Law: and nothing else, so that no text depends on those beside it."""
    trees = TextTrees.of(texts)
    width = trees.ids.shape[1]
    for path in trees.paths:
        row, columns = int(path[0]) // width, path % width
        for number, column in enumerate(columns.tolist()):
            seen = trees.seen[row, column].nonzero().flatten()
            assert sorted(seen.tolist()) == sorted(columns[: number + 1].tolist())


def test_calls_hold_so_many_trees_and_every_row_once() -> None:
    """Law: a tree is no wider than its bound or the longest text, and each row is read."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (300, 12), generator=drawn).tolist()
    rows = as_rows({tuple(row[: 1 + number % 12]) for number, row in enumerate(ids)})
    calls = in_calls(rows, begin=0)
    assert sorted(row.ids for call in calls for row in call) == sorted(row.ids for row in rows)
    for call in calls:
        trees = TextTrees.of([row.ids for row in call])
        assert trees.ids.shape[1] <= WIDTH
        assert len(trees.ids) <= TREES
    assert len(calls) > 1
    long = PromptRow(range(1, 2 * WIDTH))
    assert [row for call in in_calls([*rows, long]) for row in call].count(long) == 1


@pytest.mark.parametrize("opening", [(), (9, 8)])
@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
def test_what_texts_leave_and_give_is_theirs(make: Any, opening: tuple[int, ...]) -> None:
    """Law: keys, values and states of a text in a tree are those of a row of its own."""
    model = attached(make(), attend="answer")
    assert reads_trees(model, prompts(model), PAD)
    own = [PromptRow(row.ids[len(opening) :]) for row in ROWS]
    apart, together = (
        SharedOpening(model, prompts(model), PAD, opening, in_trees) for in_trees in (False, True)
    )
    for one, other in zip(apart.left_by(own), together.left_by(own), strict=True):
        assert one.keys() == other.keys()
        assert all(near(other[name], one[name]) for name in one)
    call, wanted = together.call(own), list[Tensor]()
    given = call.of_rows(layer_outputs(model, call.inputs, [LAYERS - 1])[LAYERS - 1])
    for row in ROWS:
        whole = {"input_ids": torch.tensor([row.ids])}
        wanted.append(layer_outputs(model, whole, [LAYERS - 1])[LAYERS - 1][0, len(opening) :])
    assert all(near(one, other) for one, other in zip(given, wanted, strict=True))


def test_fewer_tokens_are_computed() -> None:
    """Law: what rows begin with is computed once, and rows need no padding."""
    model = attached(llama(), attend="answer")
    shared = SharedOpening(model, prompts(model), PAD, in_trees=True)
    beginnings = {ids for row in ROWS for ids in accumulate((one,) for one in row.ids)}
    assert shared.call(ROWS).inputs["input_ids"].shape == (1, len(beginnings))


def test_a_base_that_takes_no_mask_of_pairs_reads_rows() -> None:
    """Law: where a text in a tree would depend on those beside it, each has a row of its own."""
    model = attached(llama(), attend="answer")

    def deaf_to_masks(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": None}

    model.base.register_forward_pre_hook(deaf_to_masks, with_kwargs=True)
    assert not reads_trees(model, prompts(model), PAD)
    reader = EndReader(model, LAYERS - 1, columns=2)
    assert not reader.shared((9, 8), ROWS).in_trees


def test_what_trees_would_change_is_read_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a base that passes the trial on made-up words, and not that on real rows, reads rows."""
    model = attached(llama(), attend="answer")
    (alone,) = (read.end.states for read in read_ends(model, list(ROWS[:4]), 1, 2))
    of_texts = TextTrees.of_texts
    monkeypatch.setattr(
        TextTrees, "of_texts", lambda trees, values: [v + 1 for v in of_texts(trees, values)]
    )
    monkeypatch.setattr(relevance_states, "reads_trees", lambda *_: True)
    reads = list(read_ends(model, list(ROWS[:4]), 1, 2))
    rows = [row for read in reads for row in read.rows]
    found = torch.cat([read.end.states for read in reads])
    order = [rows.index(row) for row in sorted(set(ROWS[:4]), key=lambda row: row.ids)]
    assert near(found[order], alone)


def test_a_window_is_left_to_the_base() -> None:
    """Law: a mask of pairs would replace the mask of a base that attends to so many tokens."""
    model = attached(mixtral(), attend="answer")
    assert reads_trees(model, prompts(model), PAD)
    model.base.config.sliding_window = 2
    assert not reads_trees(model, prompts(model), PAD)


def test_many_rows_are_wanted_for_an_opening() -> None:
    """Law: what fewer begin with is read with them."""
    model = attached(llama(), attend="answer")
    rows = [PromptRow((9, 8, 7, 6, *([5, 4] if n < 20 else []), 1, n)) for n in range(70)]
    assert sorted(map(len, openings(model, rows))) == [5, 7]
    assert list(map(len, openings(model, rows, 64))) == [4]
