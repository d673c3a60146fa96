"""A recipe with every kind of mistake is answered with all of them, each where it is written."""

import pickle
from pathlib import Path

import pytest

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import read_recipe
from safe_framework.errors import SafeError
from safe_framework.interfaces.registry import projectors

FOLDER = Path(__file__).parent
RECIPE = FOLDER / "mistakes.toml"


@pytest.fixture
def error(installed, monkeypatch) -> RecipeError:
    """What reading the recipe of mistakes raises."""
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        read_recipe("mistakes.toml")
    return caught.value


def test_the_whole_message_is_as_agreed(error):
    """Every mistake is shown in the recipe's order, with its line, a caret and what to do."""
    shown = str(error).replace(str(FOLDER), "FOLDER").replace(", ".join(projectors), "ALL")
    assert shown == (FOLDER / "mistakes.txt").read_text("utf-8").rstrip("\n")


def test_every_mistake_is_data(error):
    """An editor can ask where each mistake is without reading the message."""
    assert len(error.problems) == 23
    lines = RECIPE.read_text("utf-8").splitlines()
    for problem in error.problems:
        assert problem.source == "mistakes.toml"
        assert problem.excerpt == lines[problem.line - 1]
        assert 1 <= problem.column <= len(problem.excerpt)


def test_it_is_one_of_our_errors(error):
    """A caller who catches the framework's errors catches this one."""
    assert isinstance(error, SafeError)
    assert isinstance(error, ValueError)


def test_it_survives_pickling(error):
    """A worker process can raise it."""
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.problems == error.problems
