"""``safe check`` says before a run begins what it would be refused for, of data and libraries."""

import warnings

import pytest

from safe_framework.cli import main
from safe_framework.data import preview
from tests.runs.conftest import EVERY_METHOD, RECIPE, write_base, write_rows, write_tones


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny base."""
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture
def check(base, tmp_path, capsys):
    """What is said of a recipe that has been changed, and how it ends."""
    (tmp_path / "base").symlink_to(base)
    write_tones(tmp_path, "train", 4, 200)
    write_tones(tmp_path, "test", 2, 230)
    for name in ("texts", "texts_test"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "the cat"}, {"text": "the dog"}])

    def run(*changes):
        text = RECIPE.format(folder=tmp_path)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "recipe.toml").write_text(text, "utf-8")
        code = main(["check", str(tmp_path / "recipe.toml")])
        return code, capsys.readouterr().out

    run.folder = tmp_path
    return run


def test_a_whole_recipe_lacks_nothing(check):
    """What would run is valid, and nothing else is said of it."""
    code, said = check()
    assert code == 0
    assert "but not run" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('retention_test = "texts_test.jsonl"\n', ""), "`retention_test`"),
        (('retention = "texts.jsonl"\n', ""), "[[retention]] needs text"),
        (("[data]", f"{EVERY_METHOD}\n[data]"), "there is no foreign sample"),
        (
            ('[[retention]]\nuse = "distillation"\nweight = 0.5', "[monitor]\neval_steps = 2"),
            "",
        ),
    ],
)
def test_missing_data_are_named(change, said, check):
    """Each file that a part of the recipe needs and `[data]` does not name."""
    code, found = check(change)
    assert code == 0
    assert said in found
    assert ("but not run" in found) == bool(said)


def test_a_monitor_needs_texts(check):
    """Without texts to train or to validate on there is nothing to monitor retention by."""
    parts = ('[[retention]]\nuse = "distillation"\nweight = 0.5', "[monitor]\neval_steps = 2")
    _, found = check(parts, ('retention = "texts.jsonl"\n', ""))
    assert "[monitor] needs text" in found


def test_missing_libraries_are_named(check, monkeypatch):
    """The report's and the tracker's, with the command that installs them."""
    monkeypatch.setattr(preview, "find_spec", lambda name: None)
    _, found = check(("save_steps = 2", 'save_steps = 2\nreport_to = "wandb"'))
    assert "a run needs `matplotlib`" in found
    assert "a run needs `wandb`" in found
    assert "hint: pip install wandb" in found


@pytest.mark.parametrize("broken", ["empty", "cut", "text"])
def test_sounds_are_opened(broken, check):
    """A sound that is there and cannot be read, or not whole, is named by its row."""
    path = check.folder / "train1.wav"
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no sound"}[broken])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, found = check()
    assert code == 1
    assert "a run would be refused for its data:" in found
    assert "train.jsonl:2: `audio`: " in found
    assert found.count("train.jsonl:") == 1
