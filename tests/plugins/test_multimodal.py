"""Several encoders on one recording: toy ones of known frames, and recipes of them."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import EncoderSpec
from safe_framework.data.audio import Waveform
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames
from safe_framework.interfaces.windows import Window
from safe_framework_plugins.encoders.aisfx import AisfxEncoder
from safe_framework_plugins.encoders.multimodal import MultimodalEncoder
from safe_framework_plugins.encoders.sensor import SensorEncoder
from safe_framework_plugins.encoders.whisper import WhisperEncoder
from tests.plugins.checkpoints import write_aisfx_folder, write_whisper

RATE = 1000
joins = pytest.mark.parametrize("join", ["concatenate", "separate"])


class Blocks(Encoder):
    """One frame for each ``block`` samples: their mean, and the frame's number; no gradient."""

    def __init__(self, rate: int, block: int) -> None:
        super().__init__()
        self.dim, self.sampling_rate, self.block = 2, rate, block
        self.dropout = nn.Dropout(0.9)

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        assert all(sample.sampling_rate == self.sampling_rate for sample in samples)
        counts = [len(sample.values) // self.block for sample in samples]
        values = torch.full((len(samples), max(counts), self.block), torch.nan)
        for row, (sample, count) in enumerate(zip(samples, counts, strict=True)):
            used = torch.from_numpy(sample.values[: count * self.block])
            values[row, :count] = used.view(count, self.block)
        return {"values": values, "counts": torch.tensor(counts)}

    def forward(self, **inputs: Tensor) -> Frames:
        positions = torch.arange(inputs["values"].shape[1])
        mean = self.dropout(inputs["values"].mean(-1))
        values = torch.stack([mean, positions.expand_as(mean).float()], dim=-1)
        return Frames(values, positions < inputs["counts"][:, None])


def sound(seconds: float = 0.4, rate: int = RATE) -> Waveform:
    """A slow ramp, whose value is its time."""
    count = round(seconds * rate)
    return Waveform(np.arange(count, dtype=np.float32) / rate, rate)


def pair(join: str = "concatenate") -> MultimodalEncoder:
    """Ten frames a second of every sample, and four of every second one."""
    encoders = [Blocks(RATE, 100), Blocks(RATE // 2, 125)]
    return MultimodalEncoder(encoders=encoders, join=join).eval()  # type: ignore[arg-type]  # a str


def test_frames_shape_side_by_side() -> None:
    """Law: concatenated, there are the finest encoder's frames, as wide as all together."""
    made = pair()
    frames = made(**made.prepare([sound(1.0), sound(0.5)]))
    assert frames.values.shape == (2, 10, 4) == (2, 10, made.dim)
    assert frames.mask.sum(1).tolist() == [10, 5]
    assert torch.isfinite(frames.values).all()


def test_frames_shape_in_a_row() -> None:
    """Law: kept apart, there are all frames, each in its encoder's channels, the others 0."""
    made = pair("separate")
    frames = made(**made.prepare([sound(1.0), sound(0.5)]))
    assert frames.values.shape == (2, 14, 4) == (2, 14, made.dim)
    assert frames.mask.sum(1).tolist() == [14, 7]
    assert not frames.values[:, :10, 2:].any()
    assert not frames.values[:, 10:, :2].any()
    assert frames.values[:, 10:, 2:][frames.mask[:, 10:]].any()
    assert torch.isfinite(frames.values).all()


def test_frames_are_aligned_in_time() -> None:
    """Law: side by side, two encoders' frames are of the same moment but for half a coarse one."""
    made = pair()
    values = made(**made.prepare([sound(1.0)])).values[0]
    assert values[:, 1].tolist() == list(range(10))
    assert values[:, 3].tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert (values[:, 0] - values[:, 2]).abs().max() <= 0.5 * 0.25 + 0.01


@joins
def test_row_independent(join: str) -> None:
    """Law: beside a longer sample, a sample's valid frames are the same bits."""
    made = pair(join)
    alone = made(**made.prepare([sound(0.5)]))
    together = made(**made.prepare([sound(1.7), sound(0.5)]))
    assert torch.equal(together.values[1][together.mask[1]], alone.values[0][alone.mask[0]])


@joins
def test_deterministic(join: str) -> None:
    """Law: the same sample gives the same frames, even after modules were set to training."""
    made = pair(join)
    first = made(**made.prepare([sound()]))
    assert torch.equal(made.train()(**made.prepare([sound()])).values, first.values)


def test_prepare_on_cpu() -> None:
    """Law: prepared tensors are on the CPU, pickle, and have a row for each sample."""
    inputs = pickle.loads(pickle.dumps(pair().prepare([sound(), sound(0.9)])))
    assert set(inputs) == {"0_values", "0_counts", "1_values", "1_counts"}
    assert all(len(tensor) == 2 and tensor.device.type == "cpu" for tensor in inputs.values())


def test_each_takes_the_recording_at_its_own_rate() -> None:
    """Law: the recording's rate is the highest, and a recording of any rate is resampled."""
    made = pair()
    assert made.sampling_rate == RATE
    expected = made(**made.prepare([sound(1.0)])).values
    faster = made(**made.prepare([sound(1.0, 4 * RATE)])).values
    torch.testing.assert_close(faster[:, 1:-1], expected[:, 1:-1], atol=0.02, rtol=0)


def test_encoders_of_any_sample_share_it() -> None:
    """Law: encoders that take no sampled signal are given the sample, and train if they may."""
    kinds = [{"patch": 4, "dim": 6}, {"patch": 2, "dim": 2, "trainable": False}]
    made = MultimodalEncoder(encoders=[SensorEncoder(channels=1, rate=9, **k) for k in kinds])  # type: ignore[arg-type]  # joined types
    frames = made(**made.prepare([np.random.default_rng(0).normal(size=(10, 1))]))
    assert frames.values.shape == (1, 5, 8)
    frames.values.square().sum().backward()
    trained = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"encoders.0.embed.weight", "encoders.0.embed.bias"}
    made.train()
    assert [one.training for one in made.encoders] == [True, False]


def test_what_cannot_be_encoded_is_named() -> None:
    """Law: a sample that does not say its rate is an error that names its position."""
    with pytest.raises(SampleError, match=r"^`samples\[1\]` is a ndarray, .*\nhint: wrap it"):
        pair().prepare([sound(), np.zeros(9)])


def test_encoders_that_do_not_fit_are_refused() -> None:
    """Law: no encoder at all is an error, and so is sound beside what is not sampled."""
    with pytest.raises(ValueError, match=r"^`encoders` must name at least one"):
        MultimodalEncoder(encoders=[])
    mixed = [Blocks(RATE, 100), SensorEncoder(channels=1, rate=9.0)]
    with pytest.raises(ValueError, match=r"^`encoders` must all take sampled signals"):
        MultimodalEncoder(encoders=mixed)


RECIPE = """\
[base]
model = "some/model"
[modalities.touch]
encoder = { use = "multimodal", encoders = [
  { use = "sensor", channels = 1, rate = 9 },
  %s,
] }
projector = { use = "standard" }
fusion = { use = "lora", layers = [0] }
"""


def test_a_recipe_names_encoders_inside() -> None:
    """A table in `encoders` is an encoder of its own, its options checked, never an import."""
    recipe = parse_recipe(
        RECIPE % '{ use = "multimodal", encoders = [{ use = "video", model = "a/b" }] }'
    )
    outer = recipe.modalities["touch"].encoder.options["encoders"]
    assert outer[0] == EncoderSpec("sensor", {"channels": 1, "rate": 9.0})
    assert outer[1].options["encoders"] == (EncoderSpec("video", {"model": "a/b"}),)


@pytest.mark.parametrize(
    ("inside", "line", "column", "words"),
    [
        (
            '{ use = "sensr", rate = 9 }', 6, 11,
            r"unknown encoder `sensr`\n.*\n.*\nhint: did you mean `sensor`",
        ),
        ('{ use = "torch.nn:Linear" }', 6, 11, "unknown encoder `torch.nn:Linear`"),
        ('{ use = "standard" }', 6, 11, "unknown encoder `standard`"),
        (
            '{ use = "sensor", channels = "1", rate = 9 }', 6, 32,
            '`channels` of encoder `sensor` must be a whole number, not the string "1"',
        ),
        (
            '{ use = "sensor", channels = 1, rate = 9, ptch = 1 }', 6, 45,
            r"unknown option `ptch` of encoder `sensor`\n.*\n.*\nhint: did you mean `patch`",
        ),
        ('{ use = "sensor", rate = 9 }', 6, 3, "`channels` of encoder `sensor` is missing"),
        ("{ channels = 1 }", 6, 3, r"`encoders\[1\]\.use` of encoder `multimodal` is missing"),
        (
            '"sensor"', 6, 3,
            r'`encoders\[1\]` of encoder `multimodal` must be a table, not the string "sensor"'
            r'\n.*\n.*\nhint: write `{ use = "sensor" }`',
        ),
    ],
)  # fmt: skip
def test_a_mistake_inside_is_shown_where_it_is(
    inside: str, line: int, column: int, words: str
) -> None:
    """Each mistake in a nested table is at its own line and column, and names its owner."""
    with pytest.raises(RecipeError, match=words) as caught:
        parse_recipe(RECIPE % inside)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (line, column)


@joins
def test_a_recording_is_cut_where_all_encoders_last_alike(tmp_path: Path, join: Any) -> None:
    """Law: the window is the encoders' own, at the highest rate, with all the frames they give."""
    whisper = WhisperEncoder(model=write_whisper(tmp_path / "whisper"))
    timbre = AisfxEncoder(model=write_aisfx_folder(tmp_path / "aisfx"), seconds=1.0)
    encoder = MultimodalEncoder(encoders=[whisper, timbre], join=join)
    window = encoder.whole_window()
    assert window == Window(44_100, 50 if join == "concatenate" else 50 + 5, 44_100, 3)
    silence = Waveform(np.zeros(window.steps, np.float32), 44_100)
    assert encoder(**encoder.prepare([silence])).mask.shape[1] == window.frames
    assert encoder.cut_into_windows(longest=5.0).windows is not None


def test_encoders_that_last_unlike_have_no_window(tmp_path: Path) -> None:
    """Law: where one takes less than another, or does not say, nothing is cut."""
    whisper = WhisperEncoder(model=write_whisper(tmp_path / "whisper"))
    longer = AisfxEncoder(model=write_aisfx_folder(tmp_path / "aisfx"), seconds=2.0)
    assert MultimodalEncoder(encoders=[whisper, longer]).whole_window() is None
    assert MultimodalEncoder(encoders=[Blocks(RATE, 100), whisper]).whole_window() is None
