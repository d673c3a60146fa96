"""The encoder ``torchaudio`` keeps its interface's laws."""

import numpy as np
import pytest

from safe_framework.data.audio import Waveform
from safe_framework.testing import EncoderContract
from safe_framework_plugins.encoders.torchaudio import TorchaudioEncoder

pytestmark = pytest.mark.torchaudio


class TestTorchaudioEncoder(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, weights):
        self.folder = weights("WAVLM_LARGE")

    def make(self):
        return TorchaudioEncoder(bundle="WAVLM_LARGE", folder=self.folder)

    def sample(self, seed):
        generator = np.random.default_rng(seed)
        return Waveform(generator.normal(0, 0.1, generator.integers(400, 6000)), 16_000)
