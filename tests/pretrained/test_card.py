"""Cards: those that ship, and mistakes in those that do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import read_card
from safe_framework.utils import catalogue

SHIPPED = {"smollm2-135m-instruct-q4", "whisper-tiny.en"}


@pytest.fixture
def text(card_text: Callable[..., str]) -> str:
    """A card that is right."""
    return card_text(b"weights")


def test_every_card_that_ships_is_read() -> None:
    """Law: each shipped card is valid and is named as its file."""
    cards = catalogue.cards()
    assert cards.keys() >= SHIPPED
    assert {name: read_card(path).name for name, path in cards.items()} == {n: n for n in cards}


def test_a_card_says_how_to_install_its_package(tmp_path: Path, text: str) -> None:
    """Law: the requirement pins the one version that the card was written for."""
    (tmp_path / "tiny.toml").write_text(text)
    card = read_card(tmp_path / "tiny.toml")
    assert card.package.requirement == "tiny-audio==1.2"
    assert (card.facts, card.package.companions) == ({"layers": 2}, ())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('summary = "tiny"', "", "lacks the key `summary`"),
        ('hub = "acme/tiny"', "hub = 3", "'hub' must be <class 'str'>"),
        ("layers = 2", 'layers = "2"', "must be <class 'int'>"),
        ('version = "1.2"', 'version = "1.2"\nsise = 2', "has the unknown key `sise`"),
        ('file = "', 'file" = "', r"cannot be read: .*at line 13"),
        ('"ctranslate2"', '"pickle"', "'format' must be in"),
        ('sha256 = "', 'sha256 = "x', "'sha256' must match"),
        ("[package]", "[packages]", "has the unknown key `packages`"),
        ('version = "1.2"', 'version = "1.2"\ncompanions = 3', "'companions' must be"),
    ],
)
def test_a_mistake_in_a_card_is_named(
    tmp_path: Path, text: str, old: str, new: str, words: str
) -> None:
    """Law: the error names the card's file and what is wrong in it."""
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=rf"(?s)tiny\.toml` .*({words})"):
        read_card(tmp_path / "tiny.toml")


def test_weights_are_in_a_package_or_on_the_hub(tmp_path: Path, text: str) -> None:
    """Law: a card may leave out its hub id where a package has the weights, and not otherwise."""
    path, hub = tmp_path / "tiny.toml", 'hub = "acme/tiny"'
    path.write_text(text.replace(hub, ""))
    assert read_card(path).hub is None
    path.write_text(text.replace(hub, "").partition("[package]")[0])
    with pytest.raises(CheckpointError, match="neither `hub` nor `\\[package\\]`"):
        read_card(path)
