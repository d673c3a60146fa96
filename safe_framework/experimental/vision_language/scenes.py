"""Scenes of one or two emoji on a coloured ground, and questions about them with their answers.

A scene is a few numbers, not a file: it is drawn when it is needed, so that a data set is the
sprites and a seed. What training shows and what is held out is parted by the sha256 of what is
combined (a name and a colour, or two names), whatever the seed.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from safe_framework.errors import DataError
from safe_framework.utils.optional_imports import require

Split = Literal["train", "validation", "test"]

_HEARD = ("saxophone", "guitar", "violin", "harp", "flute")  # those that the instruments name too

NAMES: Mapping[str, str] = {
    **{name: name for name in _HEARD},
    **{"piano": "musical_keyboard", "trumpet": "trumpet", "drum": "drum_with_drumsticks"},
    **{"maracas": "maracas", "banjo": "banjo", "accordion": "accordion", "bell": "bell"},
    **{"cat": "cat2", "dog": "dog2", "horse": "racehorse", "cow": "cow2", "pig": "pig2"},
    **{"elephant": "elephant", "rabbit": "rabbit2", "monkey": "monkey", "frog": "frog"},
    **{"chicken": "rooster", "penguin": "penguin", "owl": "owl", "duck": "duck"},
    **{"fish": "fish", "whale": "whale2", "snail": "snail", "bee": "bee"},
    **{"spider": "spider", "butterfly": "butterfly", "snake": "snake", "turtle": "turtle"},
    **{"apple": "apple", "banana": "banana", "strawberry": "strawberry", "grapes": "grapes"},
    **{"carrot": "carrot", "bread": "bread", "pizza": "pizza", "cheese": "cheese_wedge"},
    **{"egg": "egg", "burger": "hamburger"},
    **{"car": "car", "bus": "bus", "bicycle": "bike", "boat": "boat", "rocket": "rocket"},
    **{"clock": "alarm_clock", "umbrella": "umbrella", "book": "closed_book", "key": "key"},
    **{"hammer": "hammer", "scissors": "scissors", "camera": "camera", "ball": "soccer"},
    **{"hat": "tophat", "cup": "coffee", "chair": "chair", "tree": "deciduous_tree"},
    **{"tulip": "tulip"},
}
"""Name in the answers to the short name in a set's ``emoji.json``."""

COLOURS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "red": ((0.0, 0.85, 0.8), (0.015, 0.1, 0.12)),
    "orange": ((0.08, 0.9, 0.95), (0.012, 0.1, 0.05)),
    "yellow": ((0.155, 0.75, 0.95), (0.012, 0.15, 0.05)),
    "green": ((0.36, 0.7, 0.6), (0.04, 0.15, 0.15)),
    "blue": ((0.61, 0.75, 0.75), (0.03, 0.15, 0.15)),
    "purple": ((0.77, 0.6, 0.6), (0.02, 0.12, 0.12)),
    "black": ((0.0, 0.0, 0.08), (0.5, 0.2, 0.06)),
    "white": ((0.0, 0.02, 0.95), (0.5, 0.02, 0.04)),
}
"""Hue, saturation and value of a ground, and how far each may stray."""

COUNTS = ("zero", "one", "two")
SIDES = ("left", "right")
_PLURAL = frozenset({"scissors", "grapes", "maracas"})
_SHARES: Mapping[Split, tuple[float, float]] = {
    "test": (0.0, 0.15),
    "validation": (0.15, 0.25),
    "train": (0.25, 1.0),
}


@attrs.frozen
class Wordings:
    """How a kind of question is worded.

    Attributes:
        seen: what training asks; also asked about held-out scenes.
        unseen: what only tests ask.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


WORDINGS: Mapping[str, Wordings] = {
    "name": Wordings(
        (
            "What is in the picture?",
            "What do you see?",
            "What is this?",
            "What does the picture show?",
            "Name what you see.",
            "What can you see in this image?",
            "Tell me what is in the image.",
            "What is it?",
        ),
        ("What is shown here?", "What is in this image?", "What does this picture show?"),
    ),
    "there": Wordings(
        (
            "Is there {a} in the picture?",
            "Do you see {a}?",
            "Is {a} shown here?",
            "Does the picture show {a}?",
            "Is there {a}?",
            "Is {a} in this image?",
            "Does this image have {a} in it?",
            "Tell me if you see {a}.",
        ),
        (
            "Can you see {a} in this picture?",
            "Does the image show {a}?",
            "Is there {a} in this image?",
        ),
    ),
    "colour": Wordings(
        (
            "What colour is the background?",
            "Which colour is behind it?",
            "What is the colour of the background?",
            "What colour is the ground?",
            "Which colour does the background have?",
            "What is the background's colour?",
            "Tell me the colour of the background.",
            "On which colour is it?",
        ),
        (
            "Name the background's colour.",
            "Which colour is the background?",
            "What colour does the background have?",
        ),
    ),
    "count": Wordings(
        (
            "How many things are there?",
            "How many things do you see?",
            "How many things are in the picture?",
            "How many objects are in this image?",
            "How many objects do you see?",
            "Count the things in the picture.",
            "What is the number of things?",
            "Is it one thing or two?",
        ),
        (
            "How many things are shown?",
            "How many objects are there?",
            "Count the objects in this image.",
        ),
    ),
    "told": Wordings(
        (
            "You hear {a}. Is this what you hear?",
            "The sound is {a}. Does the picture show what you hear?",
            "You hear {a}. Do you see what you hear?",
            "You hear {a}. Is that in the picture?",
            "The sound is {a}. Is it what you see?",
            "There is the sound of {a}. Is it in the picture?",
            "You hear the sound of {a}. Is this it?",
            "You hear {a}. Does the picture match the sound?",
        ),
        (
            "There is the sound of {a}. Is that what is shown?",
            "You hear {a}. Does this picture show what you hear?",
            "The sound is {a}. Do you see what you hear?",
        ),
    ),
    "both": Wordings(
        (
            "Which things are in the picture?",
            "What are the two things?",
            "Name both things.",
            "Which two things do you see?",
            "What are the things in this image?",
            "Name the two things in the picture.",
            "Tell me which things you see.",
            "Which objects does the picture show?",
        ),
        (
            "Which two things are shown?",
            "Name both objects.",
            "What are the two objects in the picture?",
        ),
    ),
    "which": Wordings(
        (
            "You hear {a}. Which thing in the picture do you hear?",
            "The sound is {a}. Which of these things is it?",
            "You hear {a}. Which of the things do you hear?",
            "There is the sound of {a}. What in the picture makes it?",
            "You hear {a}. What do you see that you hear?",
            "The sound is {a}. Which thing here do you hear?",
            "You hear the sound of {a}. Which of the two is it?",
            "You hear {a}. Name the thing that you see and hear.",
        ),
        (
            "You hear {a}. Which of the things in the picture do you hear?",
            "The sound is {a}. Which thing in the picture do you hear?",
            "There is the sound of {a}. Which of the things is it?",
        ),
    ),
    "side": Wordings(
        (
            "What is on the {side}?",
            "What do you see on the {side}?",
            "What is on the {side} side?",
            "Which thing is on the {side}?",
            "Name the thing on the {side}.",
            "What does the picture show on the {side}?",
            "Tell me what is on the {side}.",
            "What can you see on the {side} side?",
        ),
        (
            "Which object is on the {side}?",
            "What is shown on the {side}?",
            "Name what is on the {side} side.",
        ),
    ),
    "where": Wordings(
        (
            "On which side is the {name}?",
            "Where is the {name}, left or right?",
            "Is the {name} on the left or on the right?",
            "Is the {name} left or right?",
            "On what side do you see the {name}?",
            "Where do you see the {name}, on the left or on the right?",
            "Tell me on which side the {name} is.",
            "Which side has the {name}?",
        ),
        (
            "Which side is the {name} on?",
            "Left or right: where is the {name}?",
            "On which side do you see the {name}?",
        ),
    ),
}

KINDS = tuple(WORDINGS)
_ABOUT_ONE = ("name", "name", "there", "there", "told", "told", "count", "colour")
_ABOUT_TWO = ("both", "there", "there", "told", "which", "count", "colour", "side", "where")


@attrs.frozen
class Sprite:
    """One thing in a scene; lengths are parts of the picture's side.

    Attributes:
        name: of the thing.
        style: index of the set that it is drawn from.
        x: of its middle, from the left.
        y: of its middle, from the top.
        size: its side.
        angle: how far it is turned, in degrees.
        mirrored: left and right exchanged.
    """

    name: str
    style: int
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool


@attrs.frozen
class Scene:
    """Things from left to right, on a ground.

    Attributes:
        sprites: one or two things.
        colour: of the ground.
        seed: of the ground's shade, pattern and grain.
    """

    sprites: tuple[Sprite, ...]
    colour: str
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """What is there, from left to right."""
        return tuple(sprite.name for sprite in self.sprites)


@attrs.frozen
class Question:
    """A question about a scene.

    Attributes:
        kind: one of ``KINDS``.
        text: its words.
        answer: the one right answer.
    """

    kind: str
    text: str
    answer: str


def split_of(names: Sequence[str], colour: str) -> Split | None:
    """The split that a scene of these belongs to.

    Args:
        names: of its one thing or two things.
        colour: of its ground.

    Returns:
        None for two things that training may show together, but not each on this colour.
    """
    single = [_part(f"{name} on {colour}") for name in names]
    if len(names) == 1:
        return single[0]
    both = _part(" and ".join(sorted(names)))
    return None if both == "train" and set(single) != {"train"} else both


def _part(words: str) -> Split:
    share = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") / 2**32
    return next(split for split, (low, high) in _SHARES.items() if low <= share < high)


def scenes(count: int, seed: int, split: Split, *, styles: int = 2) -> Iterator[Scene]:
    """Random scenes of one split, as many with one thing as with two.

    Args:
        count: how many.
        seed: of all that is random.
        split: of combinations that are in no other split.
        styles: sets of sprites to draw from.
    """
    rng, made = random.Random(f"{split} {seed}"), 0
    while made < count:
        many = made % 2 + 1
        names, colour = rng.sample(list(NAMES), many), rng.choice(list(COLOURS))
        if split_of(names, colour) == split:
            yield arranged(names, colour, rng, styles=styles)
            made += 1


def arranged(names: Sequence[str], colour: str, rng: random.Random, *, styles: int = 2) -> Scene:
    """A scene of chosen things from left to right: how each lies is random."""
    sprites = tuple(_place(rng, name, styles, at, len(names)) for at, name in enumerate(names))
    return Scene(sprites, colour, rng.getrandbits(32))


def _place(rng: random.Random, name: str, styles: int, at: int, many: int) -> Sprite:
    size = rng.uniform(0.4, 0.7) if many == 1 else rng.uniform(0.34, 0.46)
    low, high = at / many, (at + 1) / many
    return Sprite(
        name=name,
        style=rng.randrange(styles),
        x=rng.uniform(low + size / 2, high - size / 2),
        y=rng.uniform(size / 2, 1 - size / 2),
        size=size,
        angle=rng.uniform(-20, 20),
        mirrored=rng.random() < 0.5,
    )


def ask(scene: Scene, seed: str, *, unseen: bool = False) -> list[Question]:
    """Questions of every kind that suits a scene.

    Yes and no are asked as often: where a kind is asked twice, one answer is yes and one is no.

    Args:
        scene: what is asked about.
        seed: of what is random.
        unseen: in wordings that training never asks.
    """
    rng = random.Random(seed)
    kinds = _ABOUT_ONE if len(scene.names) == 1 else _ABOUT_TWO
    asked: dict[str, bool] = {}  # whether the last question of a kind was true
    found = []
    for kind in kinds:
        true = asked[kind] = not asked[kind] if kind in asked else rng.random() < 0.5
        wordings = WORDINGS[kind].unseen if unseen else WORDINGS[kind].seen
        found.append(_question(scene, kind, rng.choice(wordings), true, rng))
    return found


def _question(scene: Scene, kind: str, wording: str, true: bool, rng: random.Random) -> Question:
    """One question; ``true`` where it asks for what is there, as far as the kind can ask so."""
    names = scene.names
    absent = [name for name in NAMES if name not in names]
    side = rng.randrange(len(names))
    sought = names[side] if true else rng.choice(absent)
    answer = {
        "name": names[0],
        "both": " and ".join(names),
        "there": "yes" if true else "no",
        "told": "yes" if true else "no",
        "which": sought if true else "none",
        "count": COUNTS[len(names)],
        "colour": scene.colour,
        "side": names[side],
        "where": SIDES[side],
    }[kind]
    text = wording.format(a=with_article(sought), name=names[side], side=SIDES[side])
    return Question(kind, text, answer)


def with_article(name: str) -> str:
    """A name as a question speaks of it."""
    if name in _PLURAL:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


class SpriteSets:
    """The sprites of some sets of emoji.

    Args:
        folders: each holds ``emoji.json`` and pictures ``img/SET/64/FILE``, as the npm packages
            ``emoji-datasource-SET`` do.

    Raises:
        DataError: a set lacks a sprite.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._sprites = [_read_sprites(folder) for folder in folders]

    def __len__(self) -> int:
        return len(self._sprites)

    def draw(self, scene: Scene, side: int) -> Any:
        """The picture of a scene, ``side`` pixels square."""
        pillow = _pillow()
        picture = _ground(scene, side)
        for sprite in scene.sprites:
            drawn = self._sprites[sprite.style][sprite.name]
            if sprite.mirrored:
                drawn = drawn.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
            wide = max(8, round(sprite.size * side))
            drawn = drawn.resize((wide, wide), pillow.Resampling.BICUBIC)
            drawn = drawn.rotate(sprite.angle, pillow.Resampling.BICUBIC)
            corner = (round(sprite.x * side - wide / 2), round(sprite.y * side - wide / 2))
            picture.paste(drawn, corner, drawn)
        return picture


def _read_sprites(folder: Path) -> dict[str, Any]:
    try:
        rows = json.loads((folder / "emoji.json").read_text("utf-8"))
        files = {row["short_name"]: row["image"] for row in rows}
        found = {}
        for name, short in NAMES.items():
            with _pillow().open(next(folder.glob(f"img/*/64/{files[short]}"))) as opened:
                found[name] = opened.convert("RGBA")
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise DataError(f"`{folder}` is no set of sprites: {error!r}") from error
    return found


def _ground(scene: Scene, side: int) -> Any:
    """A colour of that name, with a gradient, perhaps stripes, and grain."""
    rng = np.random.default_rng(scene.seed)
    centre, stray = COLOURS[scene.colour]
    hue, saturation, value = (
        middle + rng.uniform(-1, 1) * far for middle, far in zip(centre, stray, strict=True)
    )
    colour = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    y, x = np.mgrid[:side, :side] / side
    turn = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(turn) + y * np.sin(turn)
    shade = rng.uniform(0, 0.12) * across
    if rng.random() < 0.5:
        shade += rng.uniform(0, 0.06) * np.sign(np.sin(across * rng.uniform(10, 40)))
    grain = rng.normal(0, rng.uniform(0, 0.03), (side, side, 3))
    pixels = np.asarray(colour) * (1 - shade[..., None]) + grain
    return _pillow().fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def _pillow() -> Any:
    return require("PIL.Image", "image", "pictures need Pillow")
