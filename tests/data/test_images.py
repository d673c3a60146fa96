"""Arrays and images from files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safe_framework.data.images import read_image
from safe_framework.data.pictures import SUFFIXES
from safe_framework.data.samples import read_array
from safe_framework.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".TIF", ".webp"])
def test_colours_survive(tmp_path: Path, suffix: str) -> None:
    """Law: a file without loss gives the pixels that it was made of, (height, width, 3)."""
    assert suffix.lower() in SUFFIXES
    Image.fromarray(COLOURS).save(tmp_path / f"a{suffix}", lossless=True)
    assert np.array_equal(read_array(tmp_path / f"a{suffix}"), COLOURS)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_one_channel_keeps_its_numbers(tmp_path: Path, kind: type) -> None:
    """Law: greys, of 16 bits or floats too, stay what they are, (height, width)."""
    values = (200 * np.random.default_rng(0).random((5, 7))).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    found = read_image(tmp_path / "a.tiff")
    assert found.dtype == kind
    assert np.array_equal(found, values)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA"])
def test_other_colours_become_red_green_blue(mode: str) -> None:
    """Law: whatever the file stores, colours come as (height, width, 3) of 8 bits."""
    found = read_image(Image.fromarray(COLOURS).convert(mode))
    assert (found.shape, found.dtype) == ((5, 7, 3), np.uint8)


def test_black_and_white_is_grey() -> None:
    """Law: an image of one bit is one of 0 and 255."""
    image = Image.fromarray(np.array([[True, False]]))
    assert read_image(image).tolist() == [[255, 0]]


def test_the_one_array_of_an_archive_is_read(tmp_path: Path) -> None:
    """Law: `.npz` with one array gives that array, whatever its name."""
    np.savez_compressed(tmp_path / "a.npz", depth=np.arange(6).reshape(2, 3))
    assert read_array(tmp_path / "a.npz").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: without Pillow the error says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    Path(tmp_path, "a.png").touch()
    with pytest.raises(DataError, match=r"\nhint: pip install 'safe-framework\[image\]'"):
        read_image(tmp_path / "a.png")
