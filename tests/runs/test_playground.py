"""What the playground answers, without a browser."""

import sys
from pathlib import Path

import pytest
import torch

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead
from safe_framework.errors import DataError
from safe_framework.pretrained import quietly
from safe_framework.serving import conversation
from safe_framework.serving.playground import playground, respond, turn
from tests.support.seeing import picture, save, seeing_bases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(world: Path) -> SafeModel:
    """A fresh model that hears, moved away from its silent start."""
    return awake(world / "recipe.toml")


def awake(recipe: Path) -> SafeModel:
    """What a recipe builds, moved away from its silent start."""
    import torch

    model = safe_framework.build(recipe)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.5)
    return model


@pytest.fixture(scope="module")
def seeing(world: Path, tmp_path_factory: pytest.TempPathFactory) -> SafeModel:
    """The same of a base that sees."""
    folder = tmp_path_factory.mktemp("seeing")
    with quietly():
        base = save(folder / "base", *seeing_bases()["llava"]())
    text = (world / "recipe.toml").read_text("utf-8").replace(f'"{world}/base"', f'"{base}"')
    recipe = world / "seeing.toml"
    recipe.write_text(text, "utf-8")
    return awake(recipe)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of pictures by their colour."""
    folder, found = tmp_path_factory.mktemp("pictures"), {}
    for colour in ("red", "blue"):
        found[colour] = str(folder / f"{colour}.png")
        picture(colour, 20, 16).save(found[colour])
    return found


def test_the_badge_is_earned(world: Path, model: SafeModel) -> None:
    """Law: at gate 0 the badge says bitwise the base and both answers agree; at 1 it does not."""
    clip = str(world / "test0.wav")
    shut, base, safe = respond(model, "audio", clip, "what is this", 0.0)
    assert "bitwise the base (gate 0)" in shut
    assert base == safe
    opened, _, _ = respond(model, "audio", clip, "what is this", 1.0)
    assert "not the base" in opened
    assert "bitwise" not in opened


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (float("inf"), "bitwise the base (gate auto, which stayed closed)"),
        (float("-inf"), "not the base (gate auto, which opened)"),
    ],
)
def test_the_badge_says_what_a_head_decided(
    world: Path, model: SafeModel, threshold: float, said: str
) -> None:
    """Law: at gate `auto`, closed is the base, and the page says which it was."""
    width = model.stack.hidden_size
    flat = torch.zeros(width)
    head = RelevanceHead(flat, flat + 1, flat[None], flat[None], 0.0, layer=0, threshold=threshold)
    model.set_relevance("audio", head)
    told, base, safe = respond(model, "audio", str(world / "test0.wav"), "what is this", "auto")
    model.set_relevance("audio", None)
    assert said in told
    assert threshold < 0 or base == safe


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


# A picture beside the sample


def test_both_see_the_picture(world: Path, seeing: SafeModel, pictures: dict[str, str]) -> None:
    """Law: at gate 0 both answers are the base's to that picture; another picture is another."""
    clip, question = str(world / "test0.wav"), "what is this"

    def asked(gate: float, colour: str) -> tuple[str, str, str]:
        return respond(seeing, "audio", clip, question, gate, 8, pictures[colour])

    shut, base, safe = asked(0.0, "red")
    assert "bitwise the base (gate 0)" in shut
    assert base == safe
    assert asked(0.0, "blue")[1] != base
    opened, still, heard = asked(1.0, "red")
    assert "not the base" in opened
    assert (still, heard) != (base, base)
    assert still == base


def test_a_picture_alone_is_the_bases(seeing: SafeModel, pictures: dict[str, str]) -> None:
    """Law: with a picture and nothing to hear, any gate gives the base."""
    alone = respond(seeing, "audio", None, "what is this", 1.0, 8, pictures["red"])
    assert "bitwise the base (no sample)" in alone[0]
    assert alone[1] == alone[2]
    assert alone[1] != respond(seeing, "audio", None, "what is this", 1.0, 8)[1]


def broken(folder: Path, kind: str) -> Path:
    """A file that is no picture, one that is cut off, or one that is gone."""
    path = folder / {"other": "<i>.wav", "cut": "cut.png", "gone": "gone.png"}[kind]
    if kind == "other":
        path.write_text("no picture")
    if kind == "cut":
        picture("red", 64, 64).resize((64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:40])
    return path


@pytest.mark.parametrize("kind", ["other", "cut", "gone"])
def test_a_broken_picture_is_told_in_the_page(kind: str, seeing: SafeModel, tmp_path: Path) -> None:
    """Law: what is no picture is said in words with its name, and nothing is answered."""
    file = broken(tmp_path, kind)
    said = respond(seeing, "audio", None, "what is this", 1.0, 8, str(file))
    name = {"other": "&lt;i&gt;.wav", "cut": "cut.png", "gone": "gone.png"}[kind]
    assert name in said[0]
    assert "the picture" in said[0]
    assert said[1:] == ("", "")


@pytest.mark.parametrize("which", ["sample", "picture"])
def test_a_large_file_is_refused_alike(
    which: str,
    world: Path,
    seeing: SafeModel,
    pictures: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: a sound and a picture beyond the limit are refused with the limit, before being read."""
    monkeypatch.setattr(conversation, "MAX_BYTES", 50)
    clip = str(world / "test0.wav") if which == "sample" else None
    seen = pictures["red"] if which == "picture" else None
    said = respond(seeing, "audio", clip, "what is this", 1.0, 8, seen)
    assert "and the page takes at most 50 B" in said[0]
    assert said[1:] == ("", "")


def test_a_base_that_reads_refuses_a_picture(model: SafeModel, pictures: dict[str, str]) -> None:
    """Law: a picture for a base without an image processor is refused, not left out."""
    said = respond(model, "audio", None, "what is this", 1.0, 8, pictures["red"])
    assert "`LlamaForCausalLM` has no image processor" in said[0]
    assert said[1:] == ("", "")


def test_a_turn_shows_what_was_given_and_both_answers() -> None:
    """Law: a chat's turn has the files, the question and each answer under who gave it."""
    found = turn(["a.png", "b.wav"], "which?", 0.5, "audio", "one", "two")
    assert [message["role"] for message in found] == ["user"] * 3 + ["assistant"] * 2
    assert [m["content"] for m in found[:3]] == [{"path": "a.png"}, {"path": "b.wav"}, "which?"]
    answers = {m["metadata"]["title"]: m["content"] for m in found[3:]}
    assert answers == {"Base": "one", "With audio, gate 0.5": "two"}
    assert turn(["a.png"], "which?", 0.5, "audio", "", "") == []
