"""A tiny base and a tiny Whisper on disk, and the recipe that joins them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safe_framework.pretrained import quietly
from tests.support.toys import llama, tokenizer

RECIPE = """\
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{folder}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = {rank}, layers = [-1] }}
gate = {{ value = 0.5 }}

[[retention]]
use = "distillation"
weight = 2.0
temperature = 3.0

[training]
seed = {seed}
"""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and ``whisper``."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20, num_mel_bins=8, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=50, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    with quietly():
        WhisperModel(config).save_pretrained(folder / "whisper")
        llama().save_pretrained(folder / "base")
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder / "whisper")
    tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: Path) -> Callable[..., Path]:
    """What writes the recipe's file, with another rank or seed if wanted."""

    def write(rank: int = 2, seed: int = 0) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(folder=checkpoints, rank=rank, seed=seed), "utf-8")
        return path

    return write
