"""The flagship's rows need both senses, and its recipes are what they say."""

import json
import random
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import attrs
import pytest
import torch

from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import BaseSpec
from safe_framework.runs.finished import read_metrics
from safe_framework.utils.catalogue import FOLDER, recipe_path
from tests.examples.test_examples import call
from tests.experimental.vision_language.conftest import dinov2, write_sprites
from tests.experimental.vision_language.test_scene_base import speller
from tests.plugins.checkpoints import write_aisfx_folder
from tests.runs.conftest import write_whisper
from tests.support.toys import llama

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def flagship():
    """The example, as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return import_module("see_and_hear")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def made(flagship):
    """The module that makes the rows, which the example has imported."""
    return sys.modules["scenes_and_notes"]


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    """The folder of a set of sprites."""
    folder = tmp_path_factory.mktemp("sprites")
    write_sprites(folder)
    return folder


PARTS = ("train", "validation", "test")


def rows_of_both(made, part):
    """The rows of both senses of a part, at the size that is used."""
    amounts = made.TRAIN if part == "train" else made.TEST
    notes, rng = made.read_notes(part), random.Random(0)
    return [
        *made.match_rows(part, amounts.match, notes, rng, 2),
        *made.which_rows(part, amounts.which, notes, rng, 2),
    ]


@pytest.mark.parametrize("part", PARTS)
def test_one_sense_alone_is_right_in_half(made, part):
    """Law: whoever knows all answers of a picture, a note or an instrument is right in half."""
    assert made.priors(rows_of_both(made, part)) == {"picture": 0.5, "note": 0.5, "instrument": 0.5}


@pytest.mark.parametrize("part", PARTS)
def test_answers_are_true(made, part):
    """Law: a picture shows what is answered, and not what is denied."""
    rows = rows_of_both(made, part)
    assert len(rows) >= 120
    for row in rows:
        shown = row.note.instrument in row.scene.names
        right = ("yes", "no") if row.kind == "match" else (row.note.instrument, made.NEITHER)
        assert row.answer == right[not shown]


def test_what_is_held_out_is_new(made):
    """Law: no note, no pair and no colour behind an instrument is in two parts."""
    rows = {part: rows_of_both(made, part) for part in PARTS}
    seen = {}
    for part in PARTS:
        scenes = {row.scene for row in rows[part]}
        seen[part] = {(scene.names, scene.colour) for scene in scenes if len(scene.names) == 1}
        seen[part] |= {scene.names for scene in scenes if len(scene.names) == 2}
    notes = {
        part: {
            n.file for some in made.read_notes(part, with_validation=False).values() for n in some
        }
        for part in PARTS
    }
    for held in (seen, notes):
        assert all(held.values())
        assert not held["train"] & held["validation"]
        assert not held["train"] & held["test"]
        assert not held["validation"] & held["test"]


def test_every_instrument_is_sought_as_often(made):
    """Law: none of the six is the answer, or what is denied, more often than another."""
    for part in PARTS:
        rows = rows_of_both(made, part)
        counts = Counter((row.kind, row.answer, row.note.instrument) for row in rows)
        assert len(counts) == 4 * 6
        for kind in ("match", "which"):
            own = {n for (of, _, _), n in counts.items() if of == kind}
            assert len(own) == 1


CHAT = ("<|im_start|>", "<|im_end|>")


def chatting_speller():
    """The tokenizer of scenes with the marks of a chat, so that a composed base has a template."""
    tokenizer = speller()
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT)})
    return tokenizer


def tiny_recipe(folder, sprites):
    """The catalogue's recipe on tiny parts and for a few steps, in a folder."""
    torch.manual_seed(0)
    dinov2(folder / "vision")
    tokenizer = chatting_speller()
    llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(
        folder / "language"
    )
    tokenizer.save_pretrained(folder / "language")
    write_whisper(folder / "whisper")
    write_aisfx_folder(folder / "aisfx")
    text = recipe_path("see-and-hear").read_text("utf-8")
    for old, new in {
        '"smollm2-135m-sees"': f'"{folder}/sees"',
        '"dinov2-small"': f'"{folder}/vision"',
        '"smollm2-135m-instruct-q4"': f'"{folder}/language"',
        '"whisper-tiny.en", layer = 1,': f'"{folder}/whisper",',
        'model = "aisfx"': f'model = "{folder}/aisfx"',
        "image_size = 112\nlayer = 8\n": "image_size = 16\nlayer = 2\n",
        "[base.compose.scenes]\n": f'[base.compose.scenes]\nsprites = ["{sprites}"]\n',
        '"../data/': f'"{FOLDER}/data/',
        "layers = [16, 20, 24]": "layers = [0, 1]",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    for key, value in {
        "align_steps": 3, "max_steps": 3, "train": 12, "test": 6, "validation": 4, "rank": 2,
        "questions": 3, "warmup_steps": 1, "save_steps": 2,
    }.items():  # fmt: skip
        text = re.sub(rf"(?m)^{key} = [\d.e-]+$", f"{key} = {value}", text)
    path = folder / "see-and-hear.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.slow
def test_from_parts_to_table(tmp_path, sprites, capsys):
    """Law: one command makes the base, the rows and both runs, and shows what was measured."""
    recipe, output = tiny_recipe(tmp_path, sprites), tmp_path / "runs"
    call(
        "see_and_hear.py", "--quick", "--recipe", str(recipe), "--output", str(output),
        "--on", "validation", "--seeds", "1",
    )  # fmt: skip
    shown = (output / "validation.md").read_text("utf-8")
    assert "| ... sound absent | **bit for bit the base** |" in shown
    assert shown in capsys.readouterr().out
    folder = output / "validation-1"
    sees = read_metrics(folder / "sees")
    assert sees.both_senses is not None
    assert set(sees.both_senses.kinds) == {"match", "which"}
    assert sees.seeing.scores.relevant is not None
    assert (folder / "sees" / "report.html").is_file()
    eyeless = read_metrics(folder / "without-eyes")
    assert eyeless.both_senses is eyeless.seeing is None
    assert len(eyeless.answers) == 2 * 14


def test_the_table_has_every_seed(flagship):
    """Law: each number is the mean over the seeds, beside the least and the largest."""
    both = {"match": (0.9, 0.5, 0.4), "which": (0.8, 0.3, 0.2)}
    one = flagship.Found(0.75, 0.8, 0.9, True, 0.9, 1.0, 0.85, both, (1.0, 0.9, 0.01))
    other = flagship.Found(0.85, 0.8, 0.9, False, 0.8, 0.98, None, both)
    assert flagship.table([one]) == (
        "| held-out notes and scenes, seed | right |\n"
        "|---|---|\n"
        "| names unseen notes, of 14 instruments | 75.0 % |\n"
        "| ... the same recipe without eyes | 80.0 % |\n"
        "| answers questions about pictures, before | 90.0 % |\n"
        "| ... sound absent | **bit for bit the base** |\n"
        "| ... beside a sound that does not matter | 90.0 % |\n"
        "| ... ... with the base's very words | 100.0 % |\n"
        "| ... beside the sound of what is shown | 85.0 % |\n"
        '| "Is this what you hear?" | **90.0 %** |\n'
        "| ... from the picture alone; from the sound alone | 50.0 %; 40.0 % |\n"
        '| "Which of the things ... do you hear?" | **80.0 %** |\n'
        "| ... from the picture alone; from the sound alone | 30.0 %; 20.0 % |\n"
        '| `gate = "auto"` opens in trained wordings; in others | 100.0 %; 90.0 % |\n'
        "| ... on texts and picture questions that no sound answers | 1.0 % |\n"
    )
    both_seeds = flagship.table([one, other])
    assert "2 seeds: mean (least to largest)" in both_seeds
    assert "| names unseen notes, of 14 instruments | 80.0 % (75.0 to 85.0) |" in both_seeds
    assert "| ... sound absent | NOT the base |" in both_seeds


@pytest.mark.parametrize("eyes", [True, False])
def test_a_run_differs_in_its_rows_and_its_base_alone(flagship, tmp_path, eyes):
    """Law: with eyes or without, the sense, its retention and the steps are the recipe's own."""
    text = recipe_path("see-and-hear").read_text("utf-8")
    own, made = (
        parse_recipe(one) for one in (text, flagship.recipe_on(text, tmp_path, 5, eyes=eyes))
    )
    audio = own.modalities["audio"]
    assert made.modalities == {"audio": audio if eyes else attrs.evolve(audio, relevance=False)}
    assert made.retention == own.retention
    assert made.training == attrs.evolve(own.training, seed=5)
    assert made.base == (own.base if eyes else BaseSpec(model=own.base.compose.language))
    names = ["hearing", "match", "which"] if eyes else ["hearing"]
    assert list(made.data.datasets()) == names
    heard = "<audio>{question}"
    assert made.data.prompt == (
        heard if eyes else f"<|im_start|>user\n{heard}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert {one.prompt for one in made.data.datasets().values()} == {made.data.prompt}
    assert made.data.chat is eyes


def test_the_same_seed_gives_the_same_rows(made, sprites, tmp_path):
    """Law: rows follow from the seed; what is measured on is the same for every seed."""
    few = made.Amounts(hearing=1, match=1, which=1, seeing=4, shown=2)
    contents = []
    for at, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(at)
        made.write_data(folder, made.SpriteSets([sprites]), seed=seed, train=few, test=few)
        files = sorted(folder.glob("*.jsonl"))
        assert len(files) == 2 * 5 + 1
        contents.append({file.name: file.read_text("utf-8") for file in files})
        contents[-1]["pictures"] = [
            file.read_bytes() for file in sorted((folder / "pictures").iterdir())
        ]
        pictures = {row["image"] for file in files for row in rows_of(file) if "image" in row}
        assert pictures == {f"pictures/{one.name}" for one in (folder / "pictures").iterdir()}
    first, again, other = contents
    assert first == again
    differing = {name for name in first if first[name] != other[name]}
    assert differing == {"pictures", "which.jsonl", "kept.jsonl"}


def rows_of(file):
    """The rows of a file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_catalogue_recipe_is_read_in_the_folder_of_a_run(flagship, made, tmp_path):
    """Every file that it names is found from there."""
    recipe = recipe_path("see-and-hear")
    text = flagship.with_whole_paths(recipe.read_text("utf-8"), recipe.parent)
    for name in ("hearing", *made.BOTH, "kept"):
        for ending in ("", "_test"):
            made.Writer(tmp_path / "rows", None).write(name + ending, [{"text": "a"}])
    (tmp_path / "rows" / made.NAMING).write_text('{"question": "What is it?"}\n', "utf-8")
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "recipe.toml"
    file.write_text(flagship.recipe_on(text, tmp_path / "rows", 0), "utf-8")
    scenes = read_recipe(file).base.compose.scenes
    assert Path(scenes.texts).is_file()
    assert Path(scenes.texts_test).is_file()
