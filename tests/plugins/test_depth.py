"""The depth encoder on a tiny random DINOv2 of 4 x 4 patches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_framework.errors import SampleError
from safe_framework_plugins.encoders.depth import DepthEncoder
from tests.plugins.backbones import SIZE, write_backbone

PATCH = SIZE // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint."""
    return write_backbone(tmp_path_factory.mktemp("dinov2"), "dinov2")


@pytest.fixture(scope="module")
def encoder(folder: str) -> DepthEncoder:
    """From half a metre to ten."""
    return DepthEncoder(model=folder)


def plain(metres: float = 2.0) -> np.ndarray:
    """A wall."""
    return np.full((SIZE, SIZE), metres, np.float32)


def brightness(encoder: DepthEncoder, depth: np.ndarray) -> torch.Tensor:
    """What the backbone is shown where something was measured, without its normalisation."""
    backbone, inputs = encoder.backbone, encoder.prepare([depth])
    pixels = (inputs["pixels"][0] * backbone.deviation + backbone.mean)[:, inputs["valid"][0]]
    torch.testing.assert_close(pixels[0], pixels[1])
    torch.testing.assert_close(pixels[0], pixels[2])
    return pixels[0]


@pytest.mark.parametrize(
    ("metres", "expected"),
    [(0.5, 1.0), (10.0, 0.0), (1.0, 0.9 / 1.9), (2.0, 0.4 / 1.9), (0.1, 1.0), (99.0, 0.0)],
)
def test_brightness_is_normalised_inverse_depth(
    encoder: DepthEncoder, metres: float, expected: float
) -> None:
    """Law: (1/depth - 1/far) / (1/near - 1/far), the same for a distance in whatever map."""
    shown = brightness(encoder, plain(metres))
    torch.testing.assert_close(shown, torch.full_like(shown, expected))


@pytest.mark.parametrize("nothing", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_a_patch_without_a_valid_pixel_is_masked(encoder: DepthEncoder, nothing: float) -> None:
    """Law: what was not measured is no frame, and one valid pixel makes its patch a frame."""
    depth = plain()
    depth[: 2 * PATCH] = nothing
    depth[3, PATCH + 3] = 1.0
    frames = encoder(**encoder.prepare([depth]))
    assert frames.mask.view(4, 4).tolist() == [
        [False, True, False, False], [False] * 4, [True] * 4, [True] * 4,
    ]  # fmt: skip
    assert torch.isfinite(frames.values).all()


def test_invalid_pixels_say_nothing(encoder: DepthEncoder) -> None:
    """Law: whichever way a pixel says that it was not measured, the inputs are the same bits."""
    maps = []
    for nothing in (0.0, -1.0, np.nan, np.inf):
        depth = plain()
        depth[5:9, 5:9] = nothing
        maps.append(depth)
    pixels = encoder.prepare(maps)["pixels"]
    assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_a_map_without_any_measure_is_absent(encoder: DepthEncoder) -> None:
    """Law: every frame of an empty map is masked, so that its row stays the base's."""
    assert not encoder(**encoder.prepare([plain(0.0)])).mask.any()


def test_a_coarse_map_keeps_its_edges_clean(encoder: DepthEncoder) -> None:
    """Law: enlarging mixes no invalid pixel into a valid one."""
    depth = np.full((4, 4), 2.0)
    depth[:, 2:] = np.nan
    shown = brightness(encoder, depth)
    torch.testing.assert_close(shown, torch.full_like(shown, 0.4 / 1.9))
    assert SIZE**2 / 2 <= len(shown) < SIZE**2


def test_units_are_converted(folder: str) -> None:
    """Law: `unit = 0.001` reads whole millimetres as metres."""
    metres, millimetres = DepthEncoder(model=folder), DepthEncoder(model=folder, unit=0.001)
    whole = (1000 * plain(1.5)).astype(np.uint16)
    torch.testing.assert_close(
        millimetres.prepare([whole])["pixels"], metres.prepare([plain(1.5)])["pixels"]
    )


def test_files_are_read(encoder: DepthEncoder, tmp_path: Path) -> None:
    """Law: `.npy`, `.npz` and a 16-bit image give what their array gives."""
    depth = np.random.default_rng(0).integers(1, 9, (SIZE, SIZE)).astype(np.uint16)
    np.save(tmp_path / "a.npy", depth)
    np.savez_compressed(tmp_path / "a.npz", depth)
    Image.fromarray(depth).save(tmp_path / "a.png")
    files = [tmp_path / f"a.{kind}" for kind in ("npy", "npz", "png")]
    pixels = encoder.prepare([depth, *files])["pixels"]
    assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_it_is_frozen_unless_trainable(folder: str, encoder: DepthEncoder) -> None:
    """Law: parameters train only where the recipe says so."""
    assert not any(p.requires_grad for p in encoder.train().parameters())
    assert not encoder.training
    made = DepthEncoder(model=folder, trainable=True)
    frozen = [name for name, p in made.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.network.embeddings.mask_token"]  # no frame depends on it


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros((4, 4, 1)), r"has the shape \(4, 4, 1\), a depth map \(height, width\)\nhint"),
        (np.zeros((4, 0)), r"has the shape \(4, 0\)"),
        (np.zeros((4, 4), bool), "is bool, a depth map an array of numbers"),
        (torch.zeros(4, 4), r"is torch\.float32, .*\nhint: numpy\.asarray"),
        ("gone.npy", r"the file `gone\.npy` does not exist"),
    ],
)
def test_what_is_no_depth_map_is_named(encoder: DepthEncoder, sample: object, words: str) -> None:
    """Law: the error names the sample's position and the fix."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]`.*" + words):
        encoder.prepare([plain(), sample])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"near": 0.0}, r"^`near` must be between 0 and `far` = 10\.0, not 0\.0$"),
        ({"near": 10.0}, "^`near` must be between 0 and"),
        ({"far": float("nan")}, "^`near` must be between 0 and `far` = nan"),
        ({"unit": 0.0}, r"^`unit` must be above 0, not 0\.0$"),
        ({"unit": float("inf")}, "^`unit` must be above 0, not inf$"),
    ],
)
def test_an_option_out_of_range_is_named(
    folder: str, options: dict[str, float], words: str
) -> None:
    """Law: the message starts with the option's name and says its range."""
    with pytest.raises(ValueError, match=words):
        DepthEncoder(model=folder, **options)  # type: ignore[arg-type]  # joined types
