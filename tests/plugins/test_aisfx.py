"""aiSFX: its weights out of the package's file, its frames, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from safe_framework.data.audio import Waveform
from safe_framework.errors import CheckpointError, SampleError
from safe_framework.pretrained import read_card
from safe_framework.pretrained.converters.torch_aisfx import write_aisfx
from safe_framework.utils import catalogue
from safe_framework_plugins.encoders.aisfx import AisfxEncoder
from safe_framework_plugins.encoders.aisfx_network import AisfxConfig, AisfxModel
from tests.plugins.checkpoints import write_aisfx_folder

RATE, CHANNELS = 44_100, (4, 6, 8, 10)


class Stored(nn.Module):
    """The network as the package stores it: convolutions without biases, before batch norms."""

    def __init__(self) -> None:
        super().__init__()
        for block, (before, width) in enumerate(
            zip((1, *CHANNELS[:-1]), CHANNELS, strict=True), start=1
        ):
            part = nn.Module()
            for number, inner in ((1, before), (2, width)):
                part.add_module(f"conv{number}", nn.Conv2d(inner, width, 3, padding=1, bias=False))
                norm = nn.BatchNorm2d(width)
                for tensor in (norm.weight, norm.bias, norm.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                part.add_module(f"bn{number}", norm)
            self.add_module(f"conv_block{block}", part)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Maps, halved behind all blocks but the last."""
        maps = spectrogram.unsqueeze(1)
        for block in range(1, len(CHANNELS) + 1):
            part = getattr(self, f"conv_block{block}")
            for number in (1, 2):
                convolution, norm = getattr(part, f"conv{number}"), getattr(part, f"bn{number}")
                maps = norm(convolution(maps)).relu()
            maps = functional.max_pool2d(maps, 2) if block < len(CHANNELS) else maps
        return maps


@pytest.fixture(scope="module")
def stored() -> Stored:
    """A random network of the package's form."""
    torch.manual_seed(0)
    return Stored().eval()


@pytest.fixture(scope="module")
def file(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's file: the tensors, among them a classifier's, and numbers of NumPy."""
    path = tmp_path_factory.mktemp("package") / "checkpoint.pth"
    tensors = {f"embedding_net.{name}": one for name, one in stored.state_dict().items()}
    tensors["fc.0.0.weight"] = torch.zeros(2, 2)
    torch.save((tensors, {"library": (np.int64(0), 3)}), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with random weights."""
    return write_aisfx_folder(tmp_path_factory.mktemp("aisfx"), CHANNELS)


def noise(seconds: float, seed: int = 0) -> Waveform:
    """White noise."""
    values = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    return Waveform(values, RATE)


def frames(encoder: AisfxEncoder, *samples: Waveform) -> torch.Tensor:
    """The frames of samples."""
    with torch.no_grad():
        return encoder(**encoder.prepare(samples)).values


def test_the_packages_network_is_kept(stored: Stored, file: Path, tmp_path: Path) -> None:
    """Law: with its batch norms merged, the network computes what it did, but for rounding."""
    write_aisfx(file, tmp_path)
    model = AisfxModel.from_pretrained(tmp_path).double()
    spectrogram = torch.rand(2, 40, 96, dtype=torch.float64, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected, found = stored.double()(spectrogram), model(spectrogram)
    assert found.shape == (2, CHANNELS[-1], 5, 12)
    # The merged weights were rounded to float32 once, eight layers deep.
    assert torch.allclose(found, expected, rtol=0, atol=64 * 2**-24 * float(expected.abs().max()))


def test_another_file_is_refused(tmp_path: Path) -> None:
    """Law: what is no pickle of tensors, or of another network, is an error that names the file."""
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth` is not aiSFX"):
        write_aisfx(path, tmp_path)
    torch.save(({"other": torch.zeros(1)}, {}), path)
    with pytest.raises(CheckpointError, match="holds no network of aiSFX"):
        write_aisfx(path, tmp_path)


def test_what_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    """Law: a file that names a function is refused, and the function is not called."""
    path, ran = tmp_path / "checkpoint.pth", tmp_path / "ran"

    class Trap:
        """Makes a file when it is unpickled."""

        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(ran),)

    torch.save(({}, Trap()), path)
    with pytest.raises(CheckpointError, match="is not aiSFX"):
        write_aisfx(path, tmp_path)
    assert not ran.exists()


def test_a_louder_recording_sounds_the_same(folder: str) -> None:
    """Law: recordings are brought to one peak, so that loudness says nothing."""
    encoder, quiet = AisfxEncoder(model=folder), noise(0.7)
    loud = Waveform(quiet.values * 4, RATE)
    assert frames(encoder, loud).equal(frames(encoder, quiet))


@pytest.mark.parametrize(("block", "halvings"), [(1, 1), (3, 3), (4, 3), (-1, 3), (-3, 2)])
def test_a_block_gives_its_channels_at_its_rate(folder: str, block: int, halvings: int) -> None:
    """Law: frames are as many as the steps halved so often, as wide as channels times bands."""
    encoder = AisfxEncoder(model=folder, block=block, bands=3)
    found, steps = frames(encoder, noise(1.0)), 1 + RATE // 1024
    channels = CHANNELS[block - (block > 0)]
    assert found.shape == (1, steps >> halvings, 3 * channels)
    assert encoder.dim == found.shape[2]


def test_bands_are_parts_of_the_spectrum(folder: str) -> None:
    """Law: the mean of several bands is the one of a single band, but for rounding."""
    one = frames(AisfxEncoder(model=folder), noise(1.0)).double()
    three = frames(AisfxEncoder(model=folder, bands=3), noise(1.0)).double()
    mean = three.unflatten(2, (CHANNELS[-1], 3)).mean(dim=3)
    assert torch.allclose(mean, one, rtol=0, atol=12 * 2**-23 * float(one.abs().max()))


def test_a_click_has_a_frame(folder: str) -> None:
    """Law: what is too short for the network goes on in silence, and silence is 0."""
    encoder = AisfxEncoder(model=folder)
    assert frames(encoder, noise(0.01)).shape[1] == 1
    assert encoder.prepare([Waveform(np.zeros(RATE), RATE)])["spectrograms"].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 5}, "`block` must be between 1 and 4"),
        ({"block": 0}, "`block` must be between 1 and 4"),
        ({"bands": 13}, "`bands` must be between 1 and 12"),
        ({"bands": 0}, "`bands` must be between 1 and 12"),
        ({"seconds": 0.0}, "`seconds` must be above 0"),
    ],
)
def test_an_option_out_of_range_is_named(folder: str, options: dict, words: str) -> None:
    """Law: the error names the option and its range."""
    with pytest.raises(ValueError, match=words):
        AisfxEncoder(model=folder, **options)


def test_too_long_a_recording_is_refused(folder: str) -> None:
    """Law: the error says how long it may be, and how to allow more."""
    with pytest.raises(SampleError, match=r"lasts 1\.50 s, longer than 1\.0 s") as caught:
        AisfxEncoder(model=folder, seconds=1.0).prepare([noise(1.5)])
    assert caught.value.hint == "`seconds = 2`, or cut the recording"


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """Law: the error says what the folder holds instead."""
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="is a whisper, not a network of aiSFX"):
        AisfxEncoder(model=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded as a network of aiSFX"):
        AisfxEncoder(model=str(tmp_path))


def test_the_card_says_its_sizes() -> None:
    """Law: the card's facts are those of the network that its config makes."""
    card = read_card(catalogue.card_path("aisfx"))
    given = {name: value for name, value in card.config.items() if name != "architectures"}
    with torch.device("meta"):
        model = AisfxModel(AisfxConfig(**given))
    assert card.facts["parameters"] == sum(one.numel() for one in model.parameters())
    assert card.facts["layers"] == 2 * len(model.blocks)
    assert card.facts["hidden_size"] == model.config.channels[-1]
    assert card.facts["sampling_rate"] == model.config.sampling_rate
