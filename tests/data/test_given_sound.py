"""What an encoder is given that names a rate, as docs/plugins.md says, and one that does not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from safe_framework.core.processor import SafeProcessor
from safe_framework.data.addresses import named_file, sources_of
from safe_framework.data.audio import Waveform
from safe_framework.data.examples import read_examples
from safe_framework.data.readers import MemoryRows
from safe_framework.data.samples import read_sample
from safe_framework.errors import DataError, SampleError
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


class Decoder:
    """As torchcodec's, and what datasets 4 gives for a column of sounds."""

    def get_all_samples(self):
        """Two channels and their rate."""
        return SimpleNamespace(data=torch.tensor([[0.2] * 800, [0.4] * 800]), sample_rate=8_000)


class Listening(ToyEncoder):
    """Keeps what it is given."""

    sampling_rate = 8_000

    def prepare(self, samples):
        """Nothing of it."""
        self.heard = list(samples)
        return {"values": torch.zeros(len(samples), 1)}


def test_a_decoder_is_a_sound():
    """A caller's and a row's: its channels are averaged, at the encoder's rate."""
    encoder = Listening()
    SafeProcessor(None, {"audio": encoder}).modality("audio", [Decoder()])
    (given,) = encoder.heard
    (row,) = MemoryRows([{"audio": Decoder(), "question": "q", "answer": "a"}], "train")
    (held,) = sources_of(row, ["audio"])["audio"]
    for found in (given, read_sample(held, 8_000, "train[0]")):
        assert found.sampling_rate == 8_000
        assert found.values == pytest.approx(np.full(800, 0.3), abs=1e-6)


def test_every_form_of_a_sound_is_heard_alike(tmp_path):
    """What an encoder hears of a clip is the same bits, whatever a caller has it as."""
    encoder, path = Listening(), tmp_path / "a.wav"
    soundfile.write(path, np.sin(np.arange(800) / 5) / 2, 8_000, subtype="PCM_16")
    floats, rate = soundfile.read(path, dtype="float32")
    integers = soundfile.read(path, dtype="int16")[0]
    plain = {
        "float32": floats,
        "float64": floats.astype(np.float64),
        "int16": integers,
        "int32": integers.astype(np.int32) << 16,
        "tensor": torch.from_numpy(floats),
    }
    named = {
        "of datasets": {"array": floats, "sampling_rate": rate, "path": None},
        "of datasets, int16": {"array": integers, "sampling_rate": np.int64(rate), "path": "a.wav"},
        "not decoded": {"bytes": path.read_bytes(), "path": None},
        "path": path,
        "its text": str(path),
        "waveform": Waveform(floats, rate),
        "decoder": SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(
                data=torch.from_numpy(floats)[None], sample_rate=rate
            )
        ),
    }
    processor = SafeProcessor(None, {"audio": encoder})
    assert 0.4 < np.abs(floats).max() < 0.6
    for forms, options in ((plain, {"sampling_rate": rate}), (named, {})):
        for form, sound in forms.items():
            encoder.heard = []
            processor.modality("audio", [sound], **options)
            (heard,) = encoder.heard
            assert heard.sampling_rate == rate, form
            assert heard.values.dtype == np.float32, form
            np.testing.assert_array_equal(heard.values, floats, err_msg=form)


def test_a_caller_may_name_a_file(tmp_path):
    """A path or its text is read, at the encoder's rate; what is at no such place is named."""
    encoder, path = Listening(), tmp_path / "a.wav"
    soundfile.write(path, np.full(1600, 0.5), 16_000)
    processor = SafeProcessor(None, {"audio": encoder})
    processor.modality("audio", [str(path), path, path.as_uri()])
    assert [len(one.values) for one in encoder.heard] == [800] * 3
    with pytest.raises(SampleError, match="is not read from the network"):
        processor.modality("audio", ["https://x.org/a.wav"])
    with pytest.raises(DataError, match=r"nowhere\.wav` does not exist"):
        processor.modality("audio", ["nowhere.wav"])


@pytest.mark.parametrize("held", ["UklGRg==", 7, [300], ["a"]])
def test_bytes_that_are_none_are_refused(held, tmp_path):
    """What JSON made of a file's bytes is read where it is a list of them, else refused by name."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(1600, 0.5), 16_000)
    found = named_file({"bytes": list(path.read_bytes())}, "audio", tmp_path, "rows.jsonl:1")
    assert len(read_sample(found, 16_000, "rows.jsonl:1").values) == 1600
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: `bytes` of `audio` must be the content"):
        named_file({"bytes": held}, "audio", tmp_path, "rows.jsonl:1")
