"""Tiny random checkpoints on disk, of the kinds that shipped encoders load."""

from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from safe_framework.checkpoints import quietly


def write_whisper(folder: Path, *, frames: int = 50, layers: int = 1, width: int = 8) -> str:
    """A Whisper with a window of ``frames`` / 50 seconds; its dropout must never act."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=frames,
        dropout=0.5,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    with quietly():
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=frames // 50).save_pretrained(folder)
    return str(folder)
