"""The laws of an encoder, what this one measures, and its use from a recipe."""

import numpy as np
import pytest
import torch
from mel_bands.encoder import MelBandsEncoder

import safe_framework
from safe_framework.data.audio import Waveform
from safe_framework.errors import SampleError
from safe_framework.testing import EncoderContract, bases
from safe_framework.utils.tensors import bitwise_equal

RATE = 16_000
RECIPE = """\
[base]
model = "of/the-caller"

[modalities.audio]
encoder = { use = "mel-bands", bands = 12 }
projector = { use = "standard", tokens = 2, hidden_dim = 8 }
fusion = { use = "lora", rank = 2, layers = [-1] }
"""


def tone(frequency, seconds=0.5):
    """A sine, in hertz and seconds."""
    times = np.arange(int(seconds * RATE)) / RATE
    return Waveform(0.5 * np.sin(2 * np.pi * frequency * times), RATE)


class TestMelBandsEncoder(EncoderContract):
    """One test for each law; ``pytest -v`` names them."""

    def make(self):
        """An encoder as it is by default."""
        return MelBandsEncoder()

    def sample(self, seed):
        """Noise of any length up to half a second."""
        generator = np.random.default_rng(seed)
        return Waveform(generator.normal(size=generator.integers(1, RATE // 2)), RATE)


@pytest.mark.parametrize("bands", [8, 40])
def test_higher_tones_are_louder_in_higher_bands(bands):
    """Law: the loudest band rises with the pitch, through all of them."""
    encoder = MelBandsEncoder(bands=bands)
    pitches = [tone(frequency) for frequency in np.geomspace(60, 7800, 12)]
    frames = encoder(**encoder.prepare(pitches)).values
    loudest = frames[:, 5].argmax(-1).tolist()
    assert loudest == sorted(loudest)
    assert (loudest[0], loudest[-1]) == (0, bands - 1)


def test_there_is_a_frame_for_each_hop():
    """Law: half a second at 50 frames a second is 25 frames."""
    encoder = MelBandsEncoder()
    frames = encoder(**encoder.prepare([tone(440), tone(440, seconds=0.1)]))
    assert frames.mask.sum(1).tolist() == [25, 5]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.zeros(9), "is a ndarray"),
        (Waveform(np.zeros(9), 8000), "is sampled at 8000 Hz, not 16000 Hz"),
        (Waveform(np.array([np.nan]), RATE), "holds NaN or Inf"),
    ],
)
def test_what_cannot_be_used_is_refused(sample, words):
    """Law: the error names the sample's position and what is wrong with it."""
    with pytest.raises(SampleError, match=rf"^`samples\[1\]` {words}"):
        MelBandsEncoder().prepare([tone(440), sample])


@pytest.mark.parametrize(
    ("option", "value"),
    [("bands", 0), ("bands", 500), ("window", 0.0), ("hop", 1.0), ("sampling_rate", 0)],
)
def test_an_option_out_of_range_is_named(option, value):
    """Law: the message starts with the option's name."""
    with pytest.raises(ValueError, match=rf"^`{option}` must be "):
        MelBandsEncoder(**{option: value})


def test_a_recipe_uses_it_by_name(tmp_path):
    """Law: installed, it gives a model a modality that is silent at first and off bit for bit."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    base = bases.llama()
    model = safe_framework.attach(base, bases.tokenizer(), recipe=path)
    assert isinstance(model.modality("audio").encoder, MelBandsEncoder)
    batch = model.processor(text=["w3 w4", "w5 w6"], audio=[tone(440), None])
    with torch.no_grad():
        for parameter in model.modality("audio").fusion.parameters():
            parameter.add_(0.1)
        active = model(**batch).logits
        with model.off():
            off = model(**batch).logits
        ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
        expected = base(**ids).logits
    assert bitwise_equal(off, expected)
    assert bitwise_equal(active[1], expected[1])
    assert not torch.equal(active[0], expected[0])
