"""What the playground answers, without a browser."""

import sys
from pathlib import Path

import pytest

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.errors import DataError
from safe_framework.serving.playground import playground, respond

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(world: Path) -> SafeModel:
    """A fresh model that hears, moved away from its silent start."""
    import torch

    model = safe_framework.build(world / "recipe.toml")
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.5)
    return model


def test_the_badge_is_earned(world: Path, model: SafeModel) -> None:
    """Law: at gate 0 the badge says bitwise the base and both answers agree; at 1 it does not."""
    clip = str(world / "test0.wav")
    shut, base, safe = respond(model, "audio", clip, "what is this", 0.0)
    assert "bitwise the base (gate 0)" in shut
    assert base == safe
    opened, _, _ = respond(model, "audio", clip, "what is this", 1.0)
    assert "not the base" in opened
    assert "bitwise" not in opened


def test_without_a_sample_both_are_the_base(model: SafeModel) -> None:
    """Law: with nothing to hear, any gate gives the base."""
    assert "bitwise the base (no sample)" in respond(model, "audio", None, "what is this", 1.0)[0]


def test_mistakes_are_told_in_the_page(model: SafeModel, tmp_path: Path) -> None:
    """Law: no question and an unreadable file are said in words, and what they hold stays text."""
    assert "hint: write one" in respond(model, "audio", None, " ", 1.0)[0]
    bad = tmp_path / "<b>.wav"
    bad.write_text("no sound")
    said = respond(model, "audio", str(bad), "what", 1.0)
    assert "&lt;b&gt;.wav" in said[0]
    assert said[1:] == ("", "")


def test_a_missing_gradio_says_what_to_install(
    model: SafeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: without the extra, the error holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DataError, match=r"pip install 'safe-framework\[play\]'"):
        playground(model, "audio")
