"""What an encoder is given that names a rate, as docs/plugins.md says, and one that does not."""

import json

import numpy as np
import pytest
import soundfile

from safe_framework.data.audio import Waveform
from safe_framework.data.examples import read_examples
from safe_framework.testing.toys import ToyEncoder


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_an_encoder_with_a_rate_is_given_waveforms(rate, tmp_path):
    """Mono float32 at the encoder's rate, whatever the file or the row holds."""
    encoder = ToyEncoder()
    encoder.sampling_rate = rate
    tone = np.sin(np.arange(1600) / 5)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, tone], axis=1) / 2, 16_000)
    inline = {"array": (tone / 2).tolist(), "sampling_rate": 16_000}
    rows = [{"audio": one, "question": "q", "answer": "a"} for one in ("a.flac", inline)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for example in read_examples(path, {"audio": encoder}):
        sample = example.samples["audio"]
        held = sample if isinstance(sample, Waveform) else sample[0]
        assert isinstance(held, Waveform)
        assert held.sampling_rate == rate
        assert held.values.dtype == np.float32
        assert held.values.shape == (round(1600 * rate / 16_000),)
        assert 0.4 < np.abs(held.values).max() < 0.6


def test_an_encoder_without_a_rate_is_given_arrays(tmp_path):
    """The array of the file, as it is."""
    encoder = ToyEncoder()
    assert encoder.sampling_rate is None
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    np.save(tmp_path / "a.npy", values)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"touch": "a.npy", "question": "q", "answer": "a"}) + "\n")
    (example,) = read_examples(path, {"touch": encoder})
    sample = example.samples["touch"]
    held = sample if isinstance(sample, np.ndarray) else sample[0]
    assert (held == values).all()
    assert held.dtype == values.dtype
