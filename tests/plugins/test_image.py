"""The image encoder and the backbone below it, on tiny random backbones of many kinds."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.vision_backbone import fitted
from safe_framework_plugins.encoders.image import ImageEncoder
from tests.plugins.backbones import KINDS, LAYERS, SIZE, STAGED, write_backbone
from tests.support.lanes import combinations

Write = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """The checkpoint of a kind, written when it is first asked for."""
    made: dict[str, str] = {}

    def write(kind: str) -> str:
        if kind not in made:
            made[kind] = write_backbone(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return write


@pytest.fixture(scope="module")
def encoder(folder: Write) -> ImageEncoder:
    """DINOv2 at its own size."""
    return ImageEncoder(model=folder("dinov2"))


def picture(height: int = SIZE, width: int = SIZE, seed: int = 0) -> np.ndarray:
    """A picture that is like no other seed's."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "layer"), combinations(KINDS, [0, 1, LAYERS, -1, None]))
def test_a_layer_is_that_of_the_whole_model(folder: Write, kind: str, layer: int | None) -> None:
    """Law: `layer` counts as transformers' `hidden_states` does, patches alone, the same bits."""
    from transformers import AutoModel

    encoder = ImageEncoder(model=folder(kind), layer=layer)
    inputs = encoder.prepare([picture()])
    frames = encoder(**inputs)
    with quietly():
        whole = AutoModel.from_pretrained(folder(kind)).eval()
    whole = getattr(whole, "vision_model", whole)
    with torch.no_grad():
        out = whole(pixel_values=inputs["pixels"], output_hidden_states=True)
    states = out.last_hidden_state if layer is None else out.hidden_states[layer]
    if states.ndim == 4:
        states = states.flatten(2).mT
    assert torch.equal(frames.values, states[:, -frames.values.shape[1] :])
    assert states.shape[1] - frames.values.shape[1] in (0, 1, 2, 5)
    rows, columns = encoder.backbone.grid
    assert frames.values.shape == (1, rows * columns, encoder.dim)
    assert rows == columns > 0
    assert frames.mask.all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STAGED])
def test_layers_above_are_dropped(folder: Write, kind: str) -> None:
    """Law: at most one layer above the chosen one is kept, where all layers are of one width."""
    cut = ImageEncoder(model=folder(kind), layer=1)
    lists = [m for m in cut.modules() if isinstance(m, torch.nn.ModuleList)]
    assert 1 <= len(lists[0]) <= 2


def test_another_size_is_read(folder: Write) -> None:
    """Law: a backbone whose positions can be interpolated reads another size, with more patches."""
    encoder = ImageEncoder(model=folder("vit"), size=2 * SIZE)
    frames = encoder(**encoder.prepare([picture()]))
    assert encoder.backbone.grid == (8, 8)
    assert frames.values.shape[:2] == (1, 64)


def test_a_picture_is_kept_whole(encoder: ImageEncoder) -> None:
    """Law: what an oblong picture does not fill is masked, and nothing is cut off."""
    frames = encoder(**encoder.prepare([picture(SIZE // 2, SIZE)]))
    assert frames.mask.view(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_pixels_are_normalised_as_the_checkpoint_says(encoder: ImageEncoder) -> None:
    """Law: a pixel of 8 bits becomes (value / 255 - mean) / deviation, channel by channel."""
    grey = np.full((SIZE, SIZE, 3), 51, np.uint8)
    pixels = encoder.prepare([grey])["pixels"][0, :, 3, 3]
    expected = (0.2 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.25, 0.5])
    torch.testing.assert_close(pixels, expected)


def test_every_form_of_a_picture_is_the_same(encoder: ImageEncoder, tmp_path: Path) -> None:
    """Law: an array, a Pillow image and a file of the same pixels are prepared to the same bits."""
    values = picture()
    Image.fromarray(values).save(tmp_path / "a.png")
    samples = [values, Image.fromarray(values), tmp_path / "a.png", str(tmp_path / "a.png")]
    pixels = encoder.prepare(samples)["pixels"]
    assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_greys_are_three_equal_colours(encoder: ImageEncoder) -> None:
    """Law: a picture without colours is one with three equal ones."""
    grey = picture()[..., 0]
    pixels = encoder.prepare([grey, np.stack([grey] * 3, axis=-1)])["pixels"]
    assert torch.equal(pixels[0], pixels[1])


def test_rows_do_not_depend_on_each_other(encoder: ImageEncoder) -> None:
    """Law: in any batch a sample's inputs are the same bits, and its frames but for rounding."""
    alone = encoder.prepare([picture()])
    together = encoder.prepare([picture(9, 30, 1), picture()])
    assert torch.equal(together["pixels"][1:], alone["pixels"])
    torch.testing.assert_close(encoder(**together).values[1:], encoder(**alone).values)


def test_it_is_frozen(encoder: ImageEncoder) -> None:
    """Law: no parameter trains, and dropout never acts."""
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    first = encoder.train()(**encoder.prepare([picture()]))
    assert torch.equal(first.values, encoder(**encoder.prepare([picture()])).values)


def test_a_trainable_one_trains(folder: Write) -> None:
    """Law: with `trainable`, the frames carry gradients to the layers that they pass."""
    encoder = ImageEncoder(model=folder("dinov2"), layer=1, trainable=True)
    encoder(**encoder.prepare([picture()])).values.square().sum().backward()
    trained = [name for name, p in encoder.named_parameters() if p.grad is not None]
    assert any("layer.0" in name for name in trained)
    assert encoder.train().training


def test_a_worker_process_can_prepare(encoder: ImageEncoder) -> None:
    """Law: the encoder and what it prepares survive pickling."""
    copy = pickle.loads(pickle.dumps(encoder))
    inputs = pickle.loads(pickle.dumps(copy.prepare([picture()])))
    assert torch.equal(inputs["pixels"], encoder.prepare([picture()])["pixels"])


def test_loading_prints_nothing(folder: Write, capfd: pytest.CaptureFixture[str]) -> None:
    """Law: no progress bar and no note is printed."""
    ImageEncoder(model=folder("dinov2"), layer=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros((4, 4, 3)), r"holds float64, .*\nhint: .*255"),
        (np.zeros((4, 4, 4), np.uint8), r"has the shape \(4, 4, 4\), .*\nhint: drop the transp"),
        (np.zeros((0, 4, 3), np.uint8), r"has the shape \(0, 4, 3\)"),
        (3, r"a int is no image\nhint: give an array"),
        ("gone.png", r"the image `gone\.png` does not exist"),
    ],
)
def test_what_is_no_picture_is_named(encoder: ImageEncoder, sample: object, words: str) -> None:
    """Law: the error names the sample's position and the fix."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]`.*" + words):
        encoder.prepare([picture(), sample])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 9}, f"^`layer` must be between -{LAYERS + 1} and {LAYERS}, not 9$"),
        ({"layer": -9}, "^`layer` must be between"),
        ({"size": 0}, "^`size` must be at least 1, not 0$"),
        ({"size": 2}, "^`size` = 2 is nothing that it can read: "),
    ],
)
def test_an_option_out_of_range_is_named(
    folder: Write, options: dict[str, int], words: str
) -> None:
    """Law: the message starts with the option's name and says its range."""
    with pytest.raises(ValueError, match=words):
        ImageEncoder(model=folder("dinov2"), **options)  # type: ignore[arg-type]  # joined types


def test_a_model_without_eyes_is_refused(tmp_path: Path) -> None:
    """Law: a checkpoint of another kind is an error, never a backbone with random weights."""
    from transformers import AutoModel, LlamaConfig, PreTrainedConfig

    config: PreTrainedConfig = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=9, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with quietly():
        AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama, which reads no pictures"):
        ImageEncoder(model=str(tmp_path))


def test_a_checkpoint_must_say_how_it_normalises(tmp_path: Path) -> None:
    """Law: mean and deviation are never guessed."""
    folder = Path(write_backbone(tmp_path, "vit"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"how its pictures are normalised.*(\n.*)*\nhint: put"
    ):
        ImageEncoder(model=str(folder))


def test_weights_are_never_random(tmp_path: Path) -> None:
    """Law: a checkpoint that lacks a weight of a layer is refused by the weight's name."""
    from safetensors.torch import load_file, save_file

    folder = Path(write_backbone(tmp_path, "dinov2"))
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "mlp.fc1.weight" in name)
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as `.*mlp"):
        ImageEncoder(model=str(folder))


def test_fitting_keeps_the_mean_of_valid_pixels() -> None:
    """Law: a pixel of a smaller picture is the mean of valid pixels, whatever the others hold."""
    values = torch.tensor([[[1.0, 1.0, 9.0, 9.0]] * 4])
    valid = torch.tensor([[True, True, False, False]] * 4)
    fit, real = fitted(values, valid, 2)
    assert real.tolist() == [[True, True], [True, True]]  # the edge still sees a valid pixel
    assert fit.unique().tolist() == [1.0]
