"""Scenes are parted for good, drawn from their seed alone, and asked about truly."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from safe_framework.errors import DataError
from safe_framework.experimental.vision_language.scene_alignment import (
    columns,
    shown_by_patches,
)
from safe_framework.experimental.vision_language.scenes import (
    COLOURS,
    KINDS,
    NAMES,
    SIDES,
    WORDINGS,
    Scene,
    Sprite,
    SpriteSets,
    ask,
    scenes,
    split_of,
    with_article,
)
from safe_framework.interfaces.types import IGNORED

SPLITS = ("train", "validation", "test")


def combined(scene):
    """What a scene combines, so far as splits part it."""
    on_colour = {(name, scene.colour) for name in scene.names}
    return on_colour, {frozenset(scene.names)} if len(scene.names) == 2 else set()


def test_held_out_combinations_are_never_trained_on():
    """No scene of training shows a held-out name on its colour, or a held-out pair, in any seed."""
    trained = [combined(scene) for seed in range(3) for scene in scenes(400, seed, "train")]
    on_colours, pairs = (set().union(*sets) for sets in zip(*trained, strict=True))
    for split in ("validation", "test"):
        for scene in scenes(300, 7, split):
            on_colour, pair = combined(scene)
            held_out = pair or on_colour
            assert not held_out & (pairs if pair else on_colours), scene


def test_every_combination_is_in_one_split():
    """One thing on a colour is in one split; so are two things, which training may leave out."""
    singles = Counter(split_of([name], colour) for name, colour in product(NAMES, COLOURS))
    assert set(singles) == set(SPLITS)
    assert singles["test"] > 40
    pairs = Counter(split_of(pair, "red") for pair in combinations(NAMES, 2))
    assert set(pairs) == {*SPLITS, None}
    for one, other in list(combinations(NAMES, 2))[:100]:
        assert split_of([one, other], "red") == split_of([other, one], "red")


def test_validation_and_test_share_nothing():
    """What settings are chosen by is not what is scored."""
    of = {split: [combined(scene) for scene in scenes(300, 0, split)] for split in SPLITS}
    chosen, scored = (
        {frozenset(pair or on_colour) for on_colour, pair in of[split]}
        for split in ("validation", "test")
    )
    assert chosen
    assert not chosen & scored


def test_scenes_follow_the_seed(sprites):
    """The same seed gives the same scenes, questions and pixels; another gives others."""
    first, again, other = (list(scenes(20, seed, "train", styles=1)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert ask(first[0], "5") == ask(again[0], "5")
    assert ask(first[0], "5") != ask(first[0], "6")
    sets = SpriteSets([sprites])
    drawn = [np.asarray(sets.draw(scene, 28)) for scene in (first[0], again[0], first[2])]
    assert drawn[0].shape == (28, 28, 3)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_longer_lists_begin_alike():
    """A scene does not depend on how many follow it."""
    assert list(scenes(6, 0, "test")) == list(scenes(9, 0, "test"))[:6]


def truth(scene, question):
    """The answer, worked out from the question's own words."""
    words = question.text.lower().replace("?", "").replace(".", "").replace(",", "")
    named = [name for name in NAMES if f" {name} " in f" {words} "]
    sides = [side for side in SIDES if f" {side} " in f" {words} "]
    if question.kind in {"there", "told", "which"}:
        (sought,) = named
        there = sought in scene.names
        return (sought if there else "none") if question.kind == "which" else ("no", "yes")[there]
    if question.kind == "where":
        (sought,) = named
        return SIDES[scene.names.index(sought)]
    if question.kind == "side":
        (side,) = sides
        return scene.names[SIDES.index(side)]
    if question.kind == "count":
        return {1: "one", 2: "two"}[len(scene.sprites)]
    return scene.colour if question.kind == "colour" else " and ".join(scene.names)


@pytest.mark.parametrize("unseen", [False, True])
def test_every_answer_is_right(unseen):
    """The answer is what the question's words ask of the scene, in every kind and wording."""
    asked = Counter()
    for number, scene in enumerate(scenes(600, 3, "train")):
        for question in ask(scene, f"{number}", unseen=unseen):
            assert question.answer == truth(scene, question), (scene, question)
            asked[question.kind] += 1
        xs = [sprite.x for sprite in scene.sprites]
        assert xs == sorted(xs)
    assert set(asked) == set(KINDS)


def test_yes_is_no_better_a_guess_than_no():
    """Half of the answers to a yes-or-no question are yes."""
    answers = {"there": [], "told": []}
    for number, scene in enumerate(scenes(600, 3, "test")):
        for question in ask(scene, f"{number}"):
            if question.kind in answers:
                answers[question.kind].append(question.answer == "yes")
    for kind, found in answers.items():
        assert len(found) > 500
        assert abs(sum(found) / len(found) - 0.5) < 0.06, kind


def test_wordings_for_tests_are_not_trained_on():
    """Each kind has eight wordings or more to train on, and others that are kept."""
    assert len(WORDINGS) == 9
    for kind, wordings in WORDINGS.items():
        assert len(set(wordings.seen)) >= 8, kind
        assert len(set(wordings.unseen)) >= 3, kind
        assert not set(wordings.seen) & set(wordings.unseen), kind


def test_articles():
    """A name is spoken of as English does."""
    assert [with_article(name) for name in ("owl", "cat", "grapes")] == [
        "an owl",
        "a cat",
        "grapes",
    ]


def test_patches_are_of_what_they_lie_on():
    """A patch in the middle of a thing shows the thing, one far off the ground, between neither."""
    thing = Sprite("cat", 0, x=0.25, y=0.5, size=0.45, angle=0.0, mirrored=False)
    shown = shown_by_patches(Scene((thing,), "red", 0), 8)
    names, ground = list(NAMES), len(NAMES) + list(COLOURS).index("red")
    at = {(y, x): shown[8 * y + x] for y, x in product(range(8), range(8))}
    assert at[3, 1] == at[4, 2] == names.index("cat")
    assert at[0, 7] == at[4, 7] == ground
    assert IGNORED in shown
    assert columns(4).tolist() == [-0.75, -0.25, 0.25, 0.75] * 4


def test_a_folder_without_sprites_is_refused(tmp_path):
    """The message names the folder."""
    with pytest.raises(DataError, match="is no set of sprites"):
        SpriteSets([tmp_path])
