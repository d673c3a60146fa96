"""Every shipped encoder keeps its interface's laws: one small class for each.

An encoder's class here is called ``Test`` and the encoder's own class name. What needs torchaudio
has its class in ``tests/optional/torchaudio/``. ``test_contracts.py`` sees that none is left out.
"""

import numpy as np
import pytest

from safe_framework.data.audio import Waveform
from safe_framework.testing import EncoderContract
from safe_framework_plugins.encoders.aisfx import AisfxEncoder
from safe_framework_plugins.encoders.clap import ClapEncoder
from safe_framework_plugins.encoders.depth import DepthEncoder
from safe_framework_plugins.encoders.image import ImageEncoder
from safe_framework_plugins.encoders.multimodal import MultimodalEncoder
from safe_framework_plugins.encoders.sensor import SensorEncoder
from safe_framework_plugins.encoders.video import VideoEncoder
from safe_framework_plugins.encoders.whisper import WhisperEncoder
from tests.plugins.backbones import write_backbone
from tests.plugins.checkpoints import write_aisfx_folder, write_clap, write_whisper


def sound(seed: int, rate: int, longest: float) -> Waveform:
    """Noise of any length up to ``longest`` seconds, like no other seed's."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 0.1, generator.integers(rate // 50, int(longest * rate)))
    return Waveform(values, rate)


class TestWhisperEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_whisper(tmp_path_factory.mktemp("whisper"))

    def make(self):
        return WhisperEncoder(model=self.folder)

    def sample(self, seed):
        return sound(seed, 16_000, longest=1.0)


class TestAisfxEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_aisfx_folder(tmp_path_factory.mktemp("aisfx"))

    def make(self):
        return AisfxEncoder(model=self.folder, bands=2, seconds=1.0)

    def sample(self, seed):
        return sound(seed, 44_100, longest=1.0)


class TestClapEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_clap(tmp_path_factory.mktemp("clap"), fused=True)

    def make(self):
        return ClapEncoder(model=self.folder, frames="sequence")

    def sample(self, seed):
        return sound(seed, 48_000, longest=14.0)  # shorter and longer than its window


class TestImageEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_backbone(tmp_path_factory.mktemp("vit"), "vit")

    def make(self):
        return ImageEncoder(model=self.folder, layer=2)

    def sample(self, seed):
        generator = np.random.default_rng(seed)
        height, width = generator.integers(8, 60, 2)
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestVideoEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_backbone(tmp_path_factory.mktemp("vit"), "vit")

    def make(self):
        return VideoEncoder(model=self.folder, pictures=4, per_picture=2)

    def sample(self, seed):
        generator = np.random.default_rng(seed)
        pictures, height, width = generator.integers((1, 8, 8), (5, 40, 40))
        return generator.integers(0, 256, (pictures, height, width, 3), dtype=np.uint8)


class TestDepthEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_backbone(tmp_path_factory.mktemp("dinov2"), "dinov2")

    def make(self):
        return DepthEncoder(model=self.folder, layer=2)

    def sample(self, seed):
        generator = np.random.default_rng(seed)
        depth = generator.uniform(0.1, 12, generator.integers(8, 60, 2))
        depth[generator.random(depth.shape) < 0.2] = np.nan  # not measured
        return depth


class TestSensorEncoder(EncoderContract):
    def make(self):
        return SensorEncoder(channels=3, rate=50.0, patch=8, dim=6, gaps="mask", embedding="conv")

    def sample(self, seed):
        generator = np.random.default_rng(seed)
        readings = generator.normal(size=(generator.integers(1, 60), 3))
        readings[1:][generator.random(len(readings) - 1) < 0.3] = np.nan  # a gap
        return readings


class TestMultimodalEncoder(EncoderContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory):
        cls.folder = write_whisper(tmp_path_factory.mktemp("whisper"))
        cls.wider = write_whisper(tmp_path_factory.mktemp("wider"), width=12)

    def make(self):
        parts = [WhisperEncoder(model=self.folder), WhisperEncoder(model=self.wider, layer=0)]
        return MultimodalEncoder(encoders=parts)

    def sample(self, seed):
        return sound(seed, 22_050, longest=0.9)
