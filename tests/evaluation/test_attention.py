"""What is attended to, over the timeline of a sample."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.data.examples import Example
from safe_framework.errors import DataError
from safe_framework.evaluation.attention import (
    dependence,
    read_attention,
    summarize_attention,
    write_attention,
)
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, Tokens, all_real
from tests.evaluation.conftest import HIDDEN, PairEncoder, tiny_tokenizer
from tests.support.fusions import fresh, learned
from tests.support.tolerance import rounding

FRAMES = 8


class Samples(Encoder):
    """One frame of two numbers for each hundred samples of a sound."""

    dim = 2

    def prepare(self, samples: Sequence[Waveform]) -> dict[str, torch.Tensor]:
        return {
            "values": torch.stack(
                [torch.as_tensor(s.values).reshape(FRAMES, -1)[:, :2] for s in samples]
            )
        }

    def forward(self, **inputs: torch.Tensor) -> Frames:
        return Frames(inputs["values"], all_real(inputs["values"]))


class Halves(Projector):
    """Two tokens: the mean of the first half of the frames, and of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, HIDDEN)

    def forward(self, frames: Frames) -> Tokens:
        mask = frames.mask.unsqueeze(-1)
        parts = zip((frames.values * mask).split(4, 1), mask.split(4, 1), strict=True)
        means = [part.sum(1) / real.sum(1).clamp_min(1) for part, real in parts]
        values = self.linear(torch.stack(means, 1))
        return Tokens(values, all_real(values))


@pytest.fixture
def model(model) -> SafeModel:
    """A base that is given two tokens, by a trained attention."""
    wrapped = SafeModel(model.detach(), tiny_tokenizer())
    torch.manual_seed(0)
    fusion = learned(fresh("cross_attention, nothing", wrapped.facts()))
    wrapped.add_modality("audio", encoder=Samples(), projector=Halves(), fusion=fusion)
    return wrapped


@pytest.fixture
def clips() -> list[Example]:
    """Two sounds of 0.1 s."""
    random = np.random.default_rng(0)
    return [
        Example(
            "what is this", "red",
            {"audio": Waveform(random.normal(size=800).astype(np.float32), 8000)},
            f"test.jsonl:{number}",
        )
        for number in (1, 2)
    ]  # fmt: skip


def test_a_token_depends_on_the_stretches_that_it_is_made_of(model, clips):
    """Law: leaving out what a token never saw moves it by rounding, and its parts add up to 1."""
    found = dependence(model, "audio", clips[0].samples["audio"], stretches=4)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    still = rounding(FRAMES * Samples.dim)  # of moves about as long as the token itself
    assert found[0, 2:].max() <= still
    assert found[1, :2].max() <= still
    assert found[0, :2].min() > 1000 * still


def test_one_frame_is_one_stretch(model, examples):
    """Law: a sample that cannot be cut depends wholly on itself."""
    model.add_modality(
        "touch", encoder=PairEncoder(), projector=Halves(), fusion=fresh("lora", model.facts())
    )
    found = dependence(model, "touch", examples[0].samples["touch"])
    assert found.tolist() == [[1.0]]


def test_every_sample_has_its_layers_heads_and_seconds(model, clips):
    """Law: a row for each example, with the clip's length and a stretch for each frame."""
    first, second = summarize_attention(model, "audio", clips, max_new_tokens=3)
    assert (first.place, second.place) == ("test.jsonl:1", "test.jsonl:2")
    assert first.layers == (0, 1)
    assert first.seconds == pytest.approx(0.1)
    timeline = np.array(first.timeline)
    assert timeline.shape == (2, 2, FRAMES)
    np.testing.assert_array_less(timeline.sum(-1), np.ones((2, 2)))
    assert first.timeline != second.timeline


def test_the_probe_is_left_as_it_was(model, clips):
    """Law: neither the setting nor the records of the model's own probe change."""
    model.configure_attention_probe(enabled=True, limit=4)
    model(**model.processor(text=["what"], audio=[clips[0].samples["audio"]], return_tensors="pt"))
    before = model.attention_probe.records
    summarize_attention(model, "audio", clips, max_new_tokens=1)
    probe = model.attention_probe
    assert (probe.enabled, probe.limit, probe.records) == (True, 4, before)


def test_what_is_read_is_what_was_written(model, clips, tmp_path):
    """Law: the file gives back every number; without one there is None."""
    assert read_attention(tmp_path) is None
    found = summarize_attention(model, "audio", clips, max_new_tokens=1)
    write_attention(tmp_path, found)
    assert read_attention(tmp_path) == found
    (tmp_path / "attention.json").write_text("[3]")
    with pytest.raises(DataError, match="cannot be read\nhint: delete it"):
        read_attention(tmp_path)
