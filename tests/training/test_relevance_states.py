"""Calls about pictures are read behind these, and a relevance head sees what it saw before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow
from safe_framework.training.relevance_states import EndReader, read_ends
from tests.evaluation.pictured import COLOURS, seen
from tests.support.lanes import slow_but
from tests.support.seeing import WORDS, seeing_bases

BASES = seeing_bases()
COLUMNS = 6
"""Fewer than the longest question has, and more than the shortest."""


def test_there_are_bases() -> None:
    """Law: the list of bases below is not empty."""
    assert "llava" in BASES


def asked(model: SafeModel, count: int = 24) -> list[PromptRow]:
    """Questions of several lengths, several about each picture."""
    drawn, prompts = np.random.default_rng(0), PromptEncoder.of(model)
    return [
        prompts.prompt(
            " ".join([*drawn.choice(WORDS, 1 + n % 9), WORDS[n % 11]]), [seen(COLOURS[n % 3])]
        )
        for n in range(count)
    ]


def read_each(model: SafeModel, rows: list[PromptRow]) -> dict[PromptRow, Any]:
    """What is read of each row: states, mask and where its own text begins."""
    return {
        row: (read.end.states[number], read.end.mask[number], int(read.begins[number]))
        for read in read_ends(model, rows, 0, COLUMNS)
        for number, row in enumerate(read.rows)
    }


@pytest.mark.parametrize("name", slow_but(["llava"], BASES))
def test_states_behind_pictures_are_those_of_whole_calls(name: str) -> None:
    """Law: reading a picture once changes the states of calls about it by rounding alone."""
    base, processor = BASES[name]()
    model = SafeModel(base.double(), processor)
    rows = asked(model)
    found = read_each(model, rows)
    assert found.keys() == set(rows)
    for row in rows:
        (alone,) = read_each(model, [row]).values()
        torch.testing.assert_close(found[row][0], alone[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(found[row][1], alone[1])
        assert found[row][2] == alone[2]


def test_a_picture_is_looked_at_once() -> None:
    """Law: the tower sees each picture once, and those of two rows that are tried."""
    model, towers = SafeModel(*BASES["llava"]()), list[int]()
    rows = asked(model)
    base: Any = model.base
    base.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: towers.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    list(read_ends(model, rows, 0, COLUMNS))
    whole, cut = 2, 2
    assert sum(towers) == len(COLOURS[:3]) + whole + cut


def test_what_pictures_would_change_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a base that gives something else behind its pictures reads whole rows."""
    model = SafeModel(*BASES["llava"]())
    rows, behind = asked(model, 8), EndReader._behind_pictures
    alone = {row: read_each(model, [row])[row][0] for row in rows}
    monkeypatch.setattr(
        EndReader,
        "_behind_pictures",
        lambda self, rows: [[part + 1 for part in own] for own in behind(self, rows)],
    )
    for row, (states, *_) in read_each(model, rows).items():
        torch.testing.assert_close(states, alone[row], rtol=1e-4, atol=1e-5)
