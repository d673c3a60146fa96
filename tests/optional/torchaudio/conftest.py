"""Pretrained bundles of torchaudio with their real architecture and a tiny random size."""

import dataclasses
from pathlib import Path

import pytest
import torch

from safe_framework.utils.optional_imports import load_torchaudio

WIDTH, LAYERS = 16, 3
SMALL = {
    "encoder_embed_dim": WIDTH,
    "encoder_num_layers": LAYERS,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
}


def shrink(bundle):
    """The bundle with narrower and fewer layers; all else is its own."""
    layers = [
        (8, width, stride) for _, width, stride in bundle._params["extractor_conv_layer_config"]
    ]
    params = bundle._params | SMALL | {"extractor_conv_layer_config": layers}
    return dataclasses.replace(bundle, _params=params)


@pytest.fixture
def pipelines():
    """``torchaudio.pipelines``; only those who run these tests need torchaudio."""
    return load_torchaudio().pipelines


@pytest.fixture
def weights(pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shrink a bundle by name, and give the folder with its random weights."""

    def make(name: str) -> str:
        bundle = shrink(getattr(pipelines, name))
        monkeypatch.setattr(pipelines, name, bundle)
        model = pipelines._wav2vec2.utils._get_model(bundle._model_type, bundle._params)
        state = model.state_dict()
        for key in ("aux.weight", "aux.bias"):  # the files hold rows that the bundle leaves out
            if key in state:
                rows = len(getattr(bundle, "_remove_aux_axis", ()))
                state[key] = torch.cat([state[key], state[key][:rows]])
        torch.save(state, tmp_path / Path(bundle._path).name)
        return str(tmp_path)

    return make
