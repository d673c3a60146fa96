"""The video encoder, on tiny random backbones of four kinds."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import quietly
from safe_framework_plugins.encoders.video import VideoEncoder

SIDE, WIDTH = 8, 12
_VIT = {
    "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": SIDE, "patch_size": 4,
}  # fmt: skip


def clip() -> transformers.PreTrainedModel:
    """A CLIP, of which only the half that sees is wanted."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 9}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=_VIT, projection_dim=4)
    return transformers.CLIPModel(config)


def resnet() -> transformers.PreTrainedModel:
    """A ResNet, whose features are a map and which normalises by statistics of its training."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetModel(config)


KINDS = {
    "vit": lambda: transformers.ViTModel(
        transformers.ViTConfig(**_VIT, hidden_dropout_prob=0.5), add_pooling_layer=False
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_VIT)),
    "clip": clip,
    "resnet": resnet,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each kind."""
    root = tmp_path_factory.mktemp("vision")
    for name, make in KINDS.items():
        torch.manual_seed(0)
        with quietly():
            make().save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(
            f'{{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],'
            f' "size": {{"shortest_edge": {SIDE}}}}}',
            "utf-8",
        )
    return {name: str(root / name) for name in KINDS}


def film(pictures: int = 3, seed: int = 0, side: int = 11) -> np.ndarray:
    """Random pictures of bytes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (pictures, side, side + 2, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_picture", [1, 3])
def test_frames_shape(folders: dict[str, str], kind: str, per_picture: int) -> None:
    """Law: each picture gives its frames, whatever the backbone, and padding is masked."""
    per_picture = 1 if kind == "resnet" else per_picture  # its map is a single position
    made = VideoEncoder(model=folders[kind], per_picture=per_picture)
    frames = made(**made.prepare([film(2), film(5)]))
    assert frames.values.shape == (2, 5 * per_picture, WIDTH) == (2, 5 * per_picture, made.dim)
    assert frames.mask.sum(dim=1).tolist() == [2 * per_picture, 5 * per_picture]
    assert frames.mask[0, : 2 * per_picture].all()


@pytest.mark.parametrize("kind", KINDS)
def test_row_independent(folders: dict[str, str], kind: str) -> None:
    """Law: beside a longer film, a film's valid frames are the same but for rounding."""
    made = VideoEncoder(model=folders[kind])
    alone = made(**made.prepare([film(2)]))
    together = made(**made.prepare([film(4, 1), film(2)]))
    torch.testing.assert_close(together.values[1, :2], alone.values[0])


def test_deterministic(folders: dict[str, str]) -> None:
    """Law: the same film gives the same frames, even after modules were set to training."""
    made = VideoEncoder(model=folders["vit"])
    first = made(**made.prepare([film()])).values
    assert torch.equal(made.train()(**made.prepare([film()])).values, first)


def test_prepare_on_cpu(folders: dict[str, str]) -> None:
    """Law: prepared tensors are on the CPU, pickle, and have a row for each film."""
    made = pickle.loads(pickle.dumps(VideoEncoder(model=folders["vit"])))
    inputs = pickle.loads(pickle.dumps(made.prepare([film(), film(1)])))
    assert inputs["pixels"].shape == (2, 3, 3, SIDE, SIDE)
    assert all(len(tensor) == 2 and tensor.device.type == "cpu" for tensor in inputs.values())


def test_frames_are_the_backbones(folders: dict[str, str]) -> None:
    """Law: without positions a frame is the mean of what the whole model gives for a picture."""
    made = VideoEncoder(model=folders["vit"], positions=False)
    inputs = made.prepare([film(2)])
    with quietly():
        whole = transformers.AutoModel.from_pretrained(folders["vit"]).eval()
    states = whole(pixel_values=inputs["pixels"][0]).last_hidden_state
    torch.testing.assert_close(made(**inputs).values[0], states.mean(1))


def test_order_is_seen_if_positions_are_on(folders: dict[str, str]) -> None:
    """Law: a film backwards is the same frames backwards without positions, and not with them."""
    for positions, same in [(False, True), (True, False)]:
        made = VideoEncoder(model=folders["vit"], positions=positions)
        forth = made(**made.prepare([film()])).values
        back = made(**made.prepare([film()[::-1].copy()])).values.flip(1)
        assert torch.allclose(forth, back, atol=1e-5) is same


def test_colours_are_the_checkpoints(folders: dict[str, str]) -> None:
    """Law: colours from 0 to 1 are normalised as the checkpoint's preprocessor says."""
    made = VideoEncoder(model=folders["vit"])
    grey = np.full((1, 5, 5, 3), 0.8, np.float32)
    shown = made.prepare([grey])["pixels"][0, 0, :, 0, 0]
    torch.testing.assert_close(shown, torch.tensor([2.0, 1.0, 0.5]))
    whole = made.prepare([np.full((1, 5, 5, 3), 204, np.uint8)])["pixels"]
    torch.testing.assert_close(whole[0, 0, :, 0, 0], shown)


def test_a_small_picture_fits_whole(folders: dict[str, str]) -> None:
    """Law: pictures of any size come out in the backbone's; one of that size is not changed."""
    made = VideoEncoder(model=folders["vit"])
    same = film(1, side=SIDE)[:, :, :SIDE]
    pixels = made.prepare([same])["pixels"][0, 0]
    expected = (same[0] / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    torch.testing.assert_close(pixels, torch.from_numpy(expected).float().permute(2, 0, 1))
    assert made.prepare([film(1, side=1), film(1, side=40)])["pixels"].shape[-2:] == (SIDE, SIDE)


def test_frozen_by_default(folders: dict[str, str]) -> None:
    """Law: no parameter trains by default; with `trainable` all that reach the frames do."""
    assert not any(p.requires_grad for p in VideoEncoder(model=folders["vit"]).parameters())
    made = VideoEncoder(model=folders["vit"], trainable=True).train()
    assert made.backbone.training
    weights = torch.randn(1, 3, WIDTH)
    (made(**made.prepare([film()])).values * weights).sum().backward()
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ([film()], "is a list, not an array of pictures"),
        (film()[0], r"has shape \(11, 13, 3\), .*\nhint: one picture is `film\[None\]`"),
        (film()[..., :1], r"has shape \(3, 11, 13, 1\)"),
        (film(0), r"has shape \(0, 11, 13, 3\)"),
        (film(5), r"has 5 pictures, more than `pictures` = 4\nhint: `pictures = 5`"),
        (film().astype(np.int64), "holds int64, not bytes or floats"),
        (np.full((1, 4, 4, 3), np.nan), "holds NaN or Inf"),
        (np.full((1, 4, 4, 3), 200.0), r"holds colours from 200 to 200, not 0 to 1\nhint: "),
    ],
)
def test_what_cannot_be_encoded_is_named(
    folders: dict[str, str], sample: object, words: str
) -> None:
    """Law: the error names the sample's position and the fix; no picture is dropped."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` " + words):
        VideoEncoder(model=folders["vit"], pictures=4).prepare([film(), sample])


@pytest.mark.parametrize(
    ("option", "wrong"), [("pictures", 0), ("per_picture", 0), ("per_picture", 6)]
)
def test_an_option_out_of_range_is_named(folders: dict[str, str], option: str, wrong: int) -> None:
    """Law: the message starts with the option's name; five features cannot be six frames."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be at (least 1|most 5), not {wrong}$"):
        VideoEncoder(model=folders["vit"], **{option: wrong})  # type: ignore[arg-type]  # joined


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Law: a checkpoint that sees nothing is an error, and so is an empty folder."""
    with pytest.raises(CheckpointError, match="cannot be loaded as a vision model"):
        VideoEncoder(model=str(tmp_path))
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    with quietly():
        transformers.LlamaModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not say the size of its pictures"):
        VideoEncoder(model=str(tmp_path))
