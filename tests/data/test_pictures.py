"""Pictures of rows, whatever holds them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from safe_framework.config.read import read_recipe
from safe_framework.data.examples import Example, TextRow, read_examples, read_texts
from safe_framework.data.pictures import Picture
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.testing.toys import ToyEncoder
from tests.support import seeing

COLOURS = ("red", "blue")
TASK = {"question": "what is this", "answer": "dog"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` writes out of the user's cache, which other processes use."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture of each colour."""
    (tmp_path / "pictures").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (3, 2), colour).save(tmp_path / "pictures" / f"{colour}.png")
    return tmp_path


def content(colour: str) -> bytes:
    """A PNG file of one colour."""
    held = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(held, "PNG")
    return held.getvalue()


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    """A file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def colours(row: Example | TextRow) -> list[str]:
    """What a row's pictures show."""
    names = {(255, 0, 0): "red", (0, 0, 255): "blue"}
    return [names[picture.open().getpixel((0, 0))] for picture in row.images]


def one(folder: Path) -> Path:
    """JSON lines that name one picture a row."""
    rows = [{**TASK, "image": f"pictures/{colour}.png"} for colour in COLOURS]
    return jsonl(folder / "rows.jsonl", *rows)


def table(folder: Path) -> Path:
    """A table; a cell of it may hold a list."""
    path = folder / "rows.csv"
    cells = '"[""pictures/red.png"", ""pictures/blue.png""]"'
    path.write_text(f"question,answer,images\nq,a,{cells}\nq,a,pictures/blue.png\nq,a,\n")
    return path


def parquet(folder: Path) -> Path:
    """Parquet with the bytes of the pictures, as `datasets` writes them."""
    path = folder / "rows.parquet"
    rows = [{**TASK, "image": {"bytes": content(colour), "path": None}} for colour in COLOURS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def saved(folder: Path) -> Path:
    """A dataset with a column of Pillow images."""
    rows = [{**TASK, "image": Image.new("RGB", (3, 2), colour)} for colour in COLOURS]
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def saved_lists(folder: Path) -> Path:
    """A dataset with a column of lists of Pillow images."""
    rows = [{**TASK, "images": [Image.new("RGB", (3, 2), colour) for colour in COLOURS]}]
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
        }
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / "lists"))
    return folder / "lists"


def listed(folder: Path) -> Path:
    """A folder with a list of its files."""
    jsonl(folder / "pictures" / "metadata.jsonl", {**TASK, "image": "red.png"})
    return folder / "pictures"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (one, [["red"], ["blue"]]),
        (table, [["red", "blue"], ["blue"], []]),
        (parquet, [["red"], ["blue"]]),
        (saved, [["red"], ["blue"]]),
        (saved_lists, [["red", "blue"]]),
        (listed, [["red"]]),
    ],
)
def test_every_kind_of_data_may_hold_pictures(
    folder: Path, write: Callable[[Path], Path], expected: list[list[str]]
) -> None:
    """Law: a row's pictures are the same, in order, whatever file holds them and how."""
    source = write(folder)
    assert [colours(row) for row in read_examples(source, {})] == expected
    assert [colours(row) for row in read_texts(source)] == expected


def test_a_field_of_pictures_may_have_another_name(folder: Path) -> None:
    """Law: `fields` finds pictures under the name that the data have."""
    path = jsonl(folder / "rows.jsonl", {**TASK, "photo": "pictures/red.png"})
    (row,) = read_examples(path, {}, fields={"image": "photo"})
    assert colours(row) == ["red"]


def test_a_modality_called_image_keeps_its_field(folder: Path) -> None:
    """Law: where a new sense is called `image`, the field is its own and no picture of the base."""
    encoders = {"image": ToyEncoder()}
    (row, _) = read_examples(one(folder), encoders)
    assert (row.images, list(row.samples)) == ((), ["image"])
    assert [row.images for row in read_texts(one(folder), modalities=encoders)] == [(), ()]


def test_a_text_may_have_an_answer_that_is_not_in_it(folder: Path) -> None:
    """Law: the answer of a text's question is kept apart from what the base is given."""
    path = jsonl(folder / "rows.jsonl", {**TASK, "image": "pictures/red.png"}, {"text": "a dog"})
    asked, plain = read_texts(path, "Q: {question}")
    assert (asked.text, asked.answer, plain.answer) == ("Q: what is this", "dog", None)
    assert (asked.place, asked.fields["question"]) == ("rows.jsonl:1", "what is this")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"image": "gone.png"},
            r"`image`: the picture `.*gone\.png` does not exist\nhint: correct",
        ),
        ({"images": ["pictures/red.png", "gone.png"]}, r"`images`: the picture `.*gone\.png` does"),
        ({"image": 3}, r"`image` must be the name of a picture, not 3\nhint: give a file's name"),
        ({"image": ""}, r"`image` must be the name of a picture, not ''"),
        ({"images": [None]}, r"`images` must be the name of a picture, not None"),
        ({"image": {"path": None}}, r"`image` must be the name of a picture, not None"),
        ({"images": "[1"}, r"`images` begins as a list and is none: .*\nhint: write `\[\"a\.png"),
        (
            {"image": "pictures/red.png", "images": ["pictures/red.png"]},
            r"it has both `image` and `images`\nhint: put all",
        ),
    ],
)
def test_a_picture_that_cannot_be_had_is_named(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    """Law: the error says file, row, field and fix, of examples and of texts."""
    path = jsonl(folder / "rows.jsonl", {**TASK, "text": "w"}, {**TASK, "text": "w", **values})
    for read in (lambda: read_examples(path, {}), lambda: read_texts(path)):
        with pytest.raises(DataError, match=rf"^rows\.jsonl:2: {words}"):
            read()


def test_rows_without_pictures_have_none(folder: Path) -> None:
    """Law: a null and an empty list are no pictures."""
    rows = [TASK, {**TASK, "image": None}, {**TASK, "images": []}]
    path = jsonl(folder / "rows.jsonl", *rows)
    assert [row.images for row in read_examples(path, {})] == [(), (), ()]


def test_pictures_are_equal_when_their_content_is(folder: Path) -> None:
    """Law: a picture in a file is the one in memory with the same bytes, and no other."""
    red, blue = (Picture(folder / "pictures" / f"{colour}.png") for colour in COLOURS)
    assert red == Picture(red.source.read_bytes()) != blue
    assert len({red, Picture(red.source.read_bytes()), blue}) == 2
    image = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    assert Picture(image) == Picture(image.copy()) != Picture(image.resize((2, 3)))


@pytest.fixture
def seeing_base(tmp_path: Path) -> Path:
    """The folder of a base that takes pictures."""
    return seeing.save(tmp_path / "seeing", *seeing.seeing_bases()["llava"]())


def test_a_recipe_reads_pictures_for_a_base_that_sees(
    folder: Path, seeing_base: Path, checkpoints: Path, recipe: Callable[..., Path]
) -> None:
    """Law: every kind of rows of [data] has its pictures, without loading the base's weights."""
    text = recipe().read_text("utf-8").replace(f"{checkpoints}/base", str(seeing_base))
    one(folder)
    names = ("train", "test", "retention", "retention_test")
    text += "[data]\n" + "".join(f'{name} = "rows.jsonl"\n' for name in names)
    (folder / "seen.toml").write_text(text, "utf-8")
    data = RecipeData(read_recipe(folder / "seen.toml"))
    for key in names:
        rows = data.examples(key, {}) if key in ("train", "test") else data.texts(key)
        assert [colours(row) for row in rows] == [["red"], ["blue"]]


def test_a_base_that_takes_no_pictures_refuses_rows_with_some(
    folder: Path, checkpoints: Path, recipe: Callable[..., Path]
) -> None:
    """Law: pictures that nobody would see are an error that names the row and the base."""
    jsonl(folder / "rows.jsonl", TASK, {**TASK, "image": "pictures/red.png"})
    text = recipe().read_text("utf-8") + '[data]\ntrain = "rows.jsonl"\nretention = "rows.jsonl"\n'
    (folder / "blind.toml").write_text(text, "utf-8")
    data = RecipeData(read_recipe(folder / "blind.toml"))
    words = r"^rows\.jsonl:2: it has a picture, but the base `.*base` takes none\nhint: choose"
    for read in (lambda: data.examples("train", {}), lambda: data.texts("retention")):
        with pytest.raises(DataError, match=words):
            read()
