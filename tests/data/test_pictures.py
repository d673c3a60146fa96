"""Pictures of rows, whatever holds them."""

import io
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safe_framework.config.read import read_recipe
from safe_framework.data.examples import Example, TextRow, read_examples, read_text_rows
from safe_framework.data.pictures import Picture, PictureFacts, RowPictures, look
from safe_framework.data.preview import preview
from safe_framework.data.readers import Row
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
    assert [colours(row) for row in read_text_rows(source)] == expected


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
    texts = read_text_rows(one(folder), pictures=RowPictures(encoders))
    assert [row.images for row in texts] == [(), ()]


def test_a_text_may_have_an_answer_that_is_not_in_it(folder: Path) -> None:
    """Law: the answer of a text's question is kept apart from what the base is given."""
    path = jsonl(folder / "rows.jsonl", {**TASK, "image": "pictures/red.png"}, {"text": "a dog"})
    asked, plain = read_text_rows(path, "Q: {question}")
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
        ({"images": "[1"}, r"`images` begins as a list and is none: .*\nhint: write `\[\"a\""),
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
    for read in (lambda: read_examples(path, {}), lambda: read_text_rows(path)):
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
    words = r"^rows\.jsonl:2: `image`: it has a picture, but the base `.*base` takes none\nhint: "
    for read in (lambda: data.examples("train", {}), lambda: data.texts("retention")):
        with pytest.raises(DataError, match=words):
            read()
    text = text.replace("[data]", '[data]\nignore = ["image"]')
    (folder / "blind.toml").write_text(text, "utf-8")
    data = RecipeData(read_recipe(folder / "blind.toml"))
    assert [row.images for row in data.examples("train", {})] == [(), ()]


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def gradient(mode: str) -> Any:
    """A picture whose pixels all differ."""
    values = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    return Image.fromarray(values).convert(mode)


BROKEN = {
    "empty": (b"", "it is empty"),
    "text": (b"no picture", "it is text, which begins with 'no picture'"),
    "torn png": (encoded(gradient("RGB"))[:-30], "truncated|broken|unrecognized|chunk|not enough"),
    "torn jpeg": (encoded(gradient("RGB"), "JPEG")[:-300], "truncated"),
    "floats": (encoded(gradient("F"), "TIFF"), "of 32 bits .mode F., do not say what is white"),
    "whole numbers": (encoded(gradient("I"), "TIFF"), "of 32 bits .mode I., do not say what is"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_is_not_whole_is_named(
    folder: Path, kind: str, checkpoints: Path, recipe: Callable[..., Path], seeing_base: Path
) -> None:
    """Law: file, row, field and fix are said of a picture with any fault, or its row is skipped."""
    content, words = BROKEN[kind]
    (folder / "bad.png").write_bytes(content)
    good = {**TASK, "text": "w", "image": "pictures/red.png"}
    rows = [good, {**good, "image": "bad.png"}]
    words = (
        rf"^rows\.jsonl:2: `image`: the picture `.*bad\.png` cannot be read: .*({words}).*\nhint"
    )
    path = jsonl(folder / "rows.jsonl", *rows)
    with pytest.raises(DataError, match=words):
        read_examples(path, {})
    with pytest.raises(DataError, match=words):
        read_text_rows(path)
    skipped: list[DataError] = []
    assert [row.place for row in read_examples(path, {}, skipped=skipped)] == ["rows.jsonl:1"]
    assert len(read_text_rows(path, skipped=skipped)) == 1
    assert len(skipped) == 2
    assert all(str(error).startswith("rows.jsonl:2: `image`") for error in skipped)
    text = recipe().read_text("utf-8").replace(f"{checkpoints}/base", str(seeing_base))
    (folder / "recipe.toml").write_text(f'{text}[data]\ntrain = "rows.jsonl"\nignore = ["text"]\n')
    (error,) = preview(read_recipe(folder / "recipe.toml")).errors
    with pytest.raises(DataError, match=words):
        raise error


def test_a_picture_of_too_many_pixels_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a small file that unfolds into a huge picture is an error and is not unfolded."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    path = jsonl(folder / "rows.jsonl", {**TASK, "image": "pictures/red.png"})
    with pytest.raises(
        DataError, match=r"red\.png` is too large: .* pixels.*\nhint: make it small"
    ):
        read_examples(path, {})


def test_a_picture_in_memory_without_a_pixel_is_refused() -> None:
    """Law: a picture of no width is an error."""
    with pytest.raises(DataError, match="it has no pixel: it is 0 x 3"):
        Picture(Image.new("RGB", (0, 3))).open()


def rotated() -> bytes:
    """A picture of 3 by 2 that says it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (3, 2), "red"), "JPEG", exif=exif)


def frames(kind: str) -> bytes:
    """A red picture followed by a blue one."""
    blue = Image.new("RGB", (3, 2), "blue")
    return encoded(Image.new("RGB", (3, 2), "red"), kind, save_all=True, append_images=[blue])


def sixteen_bits() -> Any:
    """A grey of a fifth of white, in 16 bits."""
    return Image.fromarray(np.full((2, 3), 65_535 // 5, np.uint16))


SPECIAL: dict[str, tuple[bytes, tuple[int, int], tuple[int, ...], int]] = {
    "CMYK": (encoded(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), (3, 2), (255, 0, 0), 1),
    "16 bits": (encoded(sixteen_bits()), (3, 2), (51, 51, 51), 1),
    "transparent": (encoded(Image.new("RGBA", (3, 2), (0, 0, 0, 0))), (3, 2), (255, 255, 255), 1),
    "half": (encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 51))), (3, 2), (255, 204, 204), 1),
    "grey": (encoded(Image.new("LA", (3, 2), (9, 255))), (3, 2), (9, 9, 9), 1),
    "key": (
        encoded(Image.new("RGB", (3, 2), "red"), transparency=(255, 0, 0)),
        (3, 2), (255, 255, 255), 1,
    ),
    "palette": (encoded(Image.new("RGB", (3, 2), "red").quantize(4)), (3, 2), (255, 0, 0), 1),
    "black and white": (encoded(Image.new("1", (3, 2), 1)), (3, 2), (255, 255, 255), 1),
    "rotated": (rotated(), (2, 3), (254, 0, 0), 1),
    "GIF": (frames("GIF"), (3, 2), (255, 0, 0), 2),
    "pages": (frames("TIFF"), (3, 2), (255, 0, 0), 2),
    "of a camera": (frames("MPO"), (3, 2), (254, 0, 0), 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_picture_is_read_as_it_is_shown(kind: str) -> None:
    """Law: colours, depth, transparency, side and frames of a file are those that viewers show."""
    content, size, colour, count = SPECIAL[kind]
    shown = Picture(content).open()
    assert (shown.mode, shown.size, shown.getpixel((1, 1))) == ("RGB", size, colour)
    assert look(Picture(content)) == PictureFacts(*size, count)


def test_a_broken_note_about_the_camera_does_not_spoil_a_picture() -> None:
    """Law: what only says how a picture was taken may be broken; the picture is read."""
    content = encoded(Image.new("RGB", (3, 2), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff")
    assert Picture(content).open().size == (3, 2)


@given(st.data())
def test_broken_bytes_raise_nothing_but_a_data_error(data: st.DataObject) -> None:
    """Law: bytes of any kind make a picture or a DataError, whatever the decoder raises."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
    content = bytearray(encoded(gradient("RGB"), kind))
    for _ in range(data.draw(st.integers(0, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    picture = Picture(bytes(content[:cut]))
    found = look(picture)
    if isinstance(found, DataError):
        assert "the picture in the row" in found.message
        assert found.hint
    else:
        assert picture.open().size == (found.width, found.height)


_CELLS: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    | st.fixed_dictionaries({}, optional={"path": inner, "bytes": inner}),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["image", "images", "file_name"]), _CELLS))
def test_any_cell_is_pictures_or_a_data_error(values: dict[str, Any]) -> None:
    """Law: whatever a row holds as its pictures, reading it ends in pictures or a DataError."""
    pictures = RowPictures()
    row = Row("rows.jsonl:1", Path("nowhere"), values)
    found: tuple[Picture, ...] = ()
    with suppress(DataError):
        found = pictures.of(row, by_file_name=True)
    assert all(isinstance(picture, Picture) for picture in found)
    assert len(pictures.faults()) == (1 if found else 0)  # none of them is there, or whole


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What Pillow opens."""
    found: list[Any] = []
    real = Image.open

    def counted(file: Any, *rest: Any) -> Any:
        """Pillow's own, noted."""
        found.append(file)
        return real(file, *rest)

    monkeypatch.setattr(Image, "open", counted)
    return found


def test_a_picture_of_several_rows_is_opened_once(folder: Path, opened: list[Any]) -> None:
    """Law: rows that name the same file share a picture, which is looked at once."""
    rows = [
        {**TASK, "image": f"pictures/{random.Random(n).choice(COLOURS)}.png"} for n in range(20)
    ]
    examples = read_examples(jsonl(folder / "rows.jsonl", *rows), {})
    assert len(examples) == 20
    assert len({id(row.images[0]) for row in examples}) == len(opened) == 2


def test_a_picture_may_be_named_by_its_address(folder: Path) -> None:
    """Law: `file://` is read as the path that it is; an address of the network is refused."""
    named = (folder / "pictures" / "red.png").as_uri()
    path = jsonl(folder / "rows.jsonl", {**TASK, "image": named})
    assert [colours(row) for row in read_examples(path, {})] == [["red"]]
    jsonl(folder / "rows.jsonl", {**TASK, "image": "https://example.org/a.png"})
    with pytest.raises(
        DataError, match=r"`image` is at `https://.*not read from there\nhint: down"
    ):
        read_examples(path, {})


def test_the_file_of_a_text_may_be_its_picture(folder: Path) -> None:
    """Law: in a list of a folder's pictures, `file_name` names the picture of a text."""
    rows = [{"file_name": "red.png", "text": "a"}, {"file_name": "a.wav", "text": "b"}]
    jsonl(folder / "pictures" / "metadata.jsonl", *rows)
    assert [colours(row) for row in read_text_rows(folder / "pictures")] == [["red"], []]


def test_pictures_are_reported_while_they_are_opened(folder: Path) -> None:
    """Law: opening pictures says how far it is, each file counted once."""
    said: list[tuple[str, int, int]] = []
    pictures = RowPictures(label="opening", progress=lambda *words: said.append(words))
    read_text_rows(one(folder), pictures=pictures)
    assert said == [("opening", 1, 2), ("opening", 2, 2)]


@pytest.mark.parametrize("what", ["image", "audio"])
def test_the_digest_of_data_is_that_of_what_they_name(
    folder: Path, checkpoints: Path, recipe: Callable[..., Path], what: str
) -> None:
    """Law: another picture or sample under the same name, and nothing else, is other data."""
    np.save(folder / "a.npy", np.zeros(3))
    row = {**TASK, "image": "pictures/red.png", "audio": "a.npy"}
    jsonl(folder / "rows.jsonl", row)
    text = f'{recipe().read_text("utf-8")}[data]\ntrain = "rows.jsonl"\n'
    (folder / "recipe.toml").write_text(text, "utf-8")
    read = read_recipe(folder / "recipe.toml")
    before = RecipeData(read).digest("train")
    os.utime(folder / "pictures" / "red.png")
    (folder / "pictures" / "blue.png").unlink()
    assert RecipeData(read).digest("train") == before
    if what == "audio":
        np.save(folder / "a.npy", np.ones(3))
    else:
        Image.new("RGB", (3, 2), "green").save(folder / "pictures" / "red.png")
    assert RecipeData(read).digest("train") != before
