"""What is broken is refused by name: a share of what ``make fuzz`` runs, and what it has found."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.core.build import attach, load
from safe_framework.data.audio_files import _by_pyav
from safe_framework.data.images import read_image
from safe_framework.data.pictures import Picture
from safe_framework.data.samples import read_array, read_sample
from safe_framework.errors import AdapterError, DataError
from safe_framework.pretrained.base_model import load_base
from tests.fuzz.campaign import Tally, outcomes
from tests.fuzz.guard import ended
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_text
from tests.fuzz.page import line, with_figures
from tests.fuzz.subjects import SUBJECTS, World

CASES = {
    "recipes": 25,
    "manifests": 15,
    "audio files": 100,
    "picture files": 100,
    "array files": 100,
    "adapters": 15,
}
"""So many of each that all together take a few seconds."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What all cases share."""
    return World.made(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_mutations_are_read_or_refused(name, world, tmp_path, monkeypatch):
    """Each mutation is read or refused by name, soon, in little memory and in its own folder."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tally = Tally()
    for number, outcome in outcomes(name, range(CASES[name]), tmp_path, world):
        if outcome is not None:
            tally.add(number, outcome)
    assert tally.faults == []
    assert tally.kinds["refused"] > 0
    assert tally.kinds.total() == CASES[name]


def wrong(case, *folders):
    """The kind of fault that the guard sees in a case."""
    return ended(case, *folders).kind


def test_the_guard_sees_every_kind_of_fault(tmp_path):
    """Raw errors, files written elsewhere, processes, hangs, memory and endless messages count."""

    def raise_error(error):
        raise error

    own = tmp_path / "own"
    own.mkdir()
    assert wrong(lambda: None, own) == "read"
    assert wrong(lambda: raise_error(DataError("no")), own) == "refused"
    assert wrong(lambda: raise_error(KeyError("no")), own) == "raw error"
    assert wrong(lambda: raise_error(SystemExit(1)), own) == "raw error"
    assert wrong(lambda: raise_error(DataError("no " * 9_000)), own) == "message"
    assert wrong(lambda: raise_error(DataError("")), own) == "message"
    assert wrong(lambda: (own / "a").write_text("a"), own) == "read"
    assert wrong(lambda: (tmp_path / "a").write_text("a"), own) == "outside"
    assert wrong(lambda: os.rename(own / "a", tmp_path / "b"), own) == "outside"
    assert wrong(lambda: os.remove(tmp_path / "b"), own) == "outside"
    assert wrong(lambda: os.system("true"), own) == "outside"


def test_the_guard_sees_time_and_memory(tmp_path, monkeypatch):
    """A case that takes longer than it may, or more memory, counts as a fault."""
    monkeypatch.setattr("tests.fuzz.guard.MOST_SECONDS", -1.0)
    assert wrong(lambda: None, tmp_path) == "hang"
    monkeypatch.setattr("tests.fuzz.guard.MOST_SECONDS", 5.0)
    monkeypatch.setattr("tests.fuzz.guard.MOST_BYTES", -1)
    assert wrong(lambda: None, tmp_path) == "memory"


def test_mutations_follow_their_seed():
    """The same seed gives the same mutation, and another one mostly another."""
    made = [
        (
            mutated_bytes(bytes(300), [b"other"], Random(seed)),
            mutated_text('a = "b"\nc = 1\n', ["d = 2\n"], ["3"], Random(seed)),
            json.dumps(mutated_json({"a": [1, {"b": "c"}]}, Random(seed))),
        )
        for seed in [*range(40), *range(40)]
    ]
    assert made[:40] == made[40:]
    assert [len(set(column)) > 20 for column in zip(*made[:40], strict=True)] == [True] * 3


def test_the_page_has_the_figures():
    """The figures go where the page has a place for them, and name every kind of input."""
    page = Path("docs/reliability.md").read_text("utf-8")
    tally = Tally()
    tally.kinds.update(read=3, refused=7)
    made = with_figures(page, dict.fromkeys(SUBJECTS, tally))
    assert made.count("| 10 | 3 | 7 | 0 |") == len(SUBJECTS)
    assert all(f"| {name} | " in page.partition("<!-- figures -->")[2] for name in SUBJECTS)
    assert "10 cases: 3 read, 7 refused" in line("recipes", tally)
    with pytest.raises(ValueError, match="no place"):
        with_figures("", {})


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 17])
def test_sound_of_many_channels(channels):
    """PyAV's frames are read in whole, where those of 8 channels and more once ended Python."""
    file = io.BytesIO()
    values = np.linspace(-0.5, 0.5, 160 * channels, dtype="f4").reshape(160, channels)
    soundfile.write(file, values, 16_000, format="WAV", subtype="FLOAT")
    found, rate = _by_pyav(file.getvalue(), "the sound", None, ValueError())
    assert (rate, found.shape) == (16_000, values.shape)
    assert (found == values).all()


def png(width, height):
    """A PNG whose header says a size, and that holds nothing."""
    header = b"IHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize(
    "content", [png(60_000, 60_000), png(2**31 - 1, 1), png(0, 0), b"P6 9 9 255"]
)
def test_pictures_that_cannot_be_are_refused(content, tmp_path):
    """A picture of more pixels than there can be, or none, is refused as an array and as itself."""
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for read in (read_image, lambda source: Picture(source).open()):
        for source in (path, content):
            with pytest.raises(DataError, match=r"too large|cannot be read"):
                read(source)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
        b"[" * 5_000,
    ],
)
def test_arrays_with_broken_headers_are_refused(header, tmp_path):
    """A header that is no header, promises what no memory holds, or holds objects is refused."""
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an array"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("array", ["x", ["a", "b"], [[1.0], [1.0, 2.0]], [{}], [None], []])
def test_arrays_in_rows_are_numbers(array):
    """What stands in a row as an array, and is none of numbers, is refused by its place."""
    held = {"array": array, "sampling_rate": 16_000}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        read_sample(held, 16_000, "rows.jsonl:1")


@pytest.fixture(scope="module")
def adapter(world):
    """A whole adapter, and its base."""
    recipe = read_recipe(world.folder / "recipe.toml")
    base, tokenizer = load_base(recipe.base)
    model = attach(base, tokenizer, recipe=recipe)
    model.save_pretrained(world.folder / "whole")
    model.detach()
    return world.folder / "whole", base, tokenizer


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("base",), 3),
        (("base",), {}),
        (("base", "weights"), None),
        (("modalities",), []),
        (("modalities",), {}),
        (("modalities", "audio"), "x"),
        (("modalities", "audio", "gate"), "0"),
        (("modalities", "audio", "gate"), 7),
        (("modalities", "audio", "encoder"), None),
        (("base_change",), 3),
        (("base_change",), {}),
        (("base_change",), {"method": "lora", "weights": "x", "drift": 3}),
        (("base_change",), {"method": "layers", "weights": "x", "drift": {}}),
        (("format",), [[]]),
    ],
)
def test_adapters_of_another_form_are_refused(path, value, adapter, tmp_path):
    """An adapter's config with a value that none has is refused, and leaves the base alone."""
    whole, base, tokenizer = adapter
    copy = shutil.copytree(whole, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    holder = config
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError):
        load(copy, base=base, tokenizer=tokenizer)
    load(whole, base=base, tokenizer=tokenizer).detach()


def test_a_recipe_of_an_adapter_that_is_no_text_is_refused(adapter, tmp_path):
    """It is named, as any recipe would be."""
    whole, base, tokenizer = adapter
    copy = shutil.copytree(whole, tmp_path / "adapter")
    (copy / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8"):
        load(copy, base=base, tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["{line} = 1", 'a = "{line}" "', "a = 1\n[{line}", "a = {line}"])
def test_what_nobody_wrote_is_not_shown_whole(text):
    """A line of a whole file is shown around the mistake, with the caret under it."""
    line = "x" * 20_000
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.replace("{line}", line))
    shown = str(caught.value)
    assert max(map(len, shown.splitlines())) < 700
    assert "^" in shown
    assert "recipe.toml:" in shown


def test_a_word_of_an_error_is_cut_in_its_middle():
    """Both of its ends are left, and what people write is left alone."""
    error = DataError(f"`{'a' * 1000}z` is wrong", hint="b" * 1000)
    assert len(error.message) < 300
    assert error.message.endswith("z` is wrong")
    assert len(error.hint) < 300
    assert DataError("a" * 399).message == "a" * 399
