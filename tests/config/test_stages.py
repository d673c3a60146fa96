"""Mistakes in `[[curriculum]]` and `[monitor]` are shown where they are written."""

from pathlib import Path

import pytest

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import ForgetSpec, MonitorSpec, StageSpec, UntilSpec

BASE = """\
[base]
model = "some/model"

[modalities.audio]
encoder = { use = "chime", model = "bell" }
projector = { use = "squeeze" }
fusion = { use = "echo" }
"""
MONITOR = "[monitor]\n"
TWO = "[[curriculum]]\nsteps = 5\n[[curriculum]]\n"


def error_of(text: str) -> str:
    """What is wrong with the base and these tables."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE + text)
    return str(caught.value)


def test_stages_and_monitor_are_read(installed: None) -> None:
    """What is written is read, arrays as tuples, and the rest has its defaults."""
    recipe = parse_recipe(
        BASE + "[monitor]\ntolerance = 0.01\non_forget = { learning_rate = 0.1 }\n"
        '[[curriculum]]\nwhere = { level = ["easy", "odd"] }\nsteps = 5\n'
        "until = { accuracy = 0.6 }\n"
        "[[curriculum]]\nretention_weight = 2\n"
    )
    assert recipe.monitor == MonitorSpec(tolerance=0.01, on_forget=ForgetSpec(learning_rate=0.1))
    assert recipe.curriculum == (
        StageSpec(where={"level": ("easy", "odd")}, steps=5, until=UntilSpec(accuracy=0.6)),
        StageSpec(retention_weight=2.0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[curriculum]]\n[[curriculum]]\n", "a stage that is not the last has no `steps`"),
        ("[[curriculum]]\nsteps = 5\n", "the last stage has `steps`, but it lasts until training"),
        (TWO.replace("5", "5000"), "`curriculum` never comes to its last stage: 5000 steps"),
        (TWO.replace("5", "5\nuntil = { accuracy = 0.5 }"), "`until` needs the measurements of a"),
        (MONITOR + TWO.replace("5", "5\nuntil = { }"), "`until` says nothing"),
        (TWO.replace("5", "5\nwhere = { level = [] }"), "`level` of `where` must be a text"),
        (TWO.replace("5", "5\nwhere = { level = { a = 1 } }"), "`level` of `where` must be a text"),
        (TWO.replace("5", "5\nlearning_rate = 0.0"), "`curriculum[0].learning_rate` must be above"),
        (MONITOR + "held_out = 1.0", "`monitor.held_out` must be above 0 and below 1, not 1.0"),
        (MONITOR + "tolerance = -0.1", "`monitor.tolerance` must be at least 0 and below 1"),
        (MONITOR + "on_forget = { learning_rate = 2 }", "must be above 0 and at most 1, not 2"),
    ],
)
def test_a_mistake_is_named(installed: None, text: str, message: str) -> None:
    """Each mistake has a message of its own, and is the only one."""
    shown = error_of(text)
    assert message in shown
    assert "problems" not in shown


def test_a_stages_file_must_be_there(installed: None, tmp_path: Path) -> None:
    """A stage that names data which do not exist is refused with the nearest name."""
    (tmp_path / "easy.jsonl").write_text("")
    path = tmp_path / "recipe.toml"
    path.write_text(BASE + '[[curriculum]]\ntrain = "eesy.jsonl"\n')
    with pytest.raises(RecipeError, match=r"there is no file `eesy\.jsonl`"):
        read_recipe(path)
    path.write_text(BASE + '[[curriculum]]\ntrain = "easy.jsonl"\n')
    assert read_recipe(path).data_files() == {"curriculum[0].train": tmp_path / "easy.jsonl"}
