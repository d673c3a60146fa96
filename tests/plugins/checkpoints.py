"""Tiny random checkpoints on disk, of the kinds that shipped encoders load."""

from pathlib import Path

import torch

from safe_framework.pretrained import quietly


def write_whisper(folder: Path, *, frames: int = 50, layers: int = 1, width: int = 8) -> str:
    """A Whisper with a window of ``frames`` / 50 seconds; its dropout must never act."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

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


def write_clap(folder: Path, *, fused: bool, width: int = 64) -> str:
    """A CLAP as narrow and shallow as it can be, its batch norm as after training."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    text = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "intermediate_size": 8}  # fmt: skip
    audio = {
        "patch_embeds_hidden_size": width // 8,
        "hidden_size": width,
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "enable_fusion": fused,
        "hidden_dropout_prob": 0.5,
        "drop_path_rate": 0.5,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(-20.0)
        if name.endswith("running_var"):
            buffer.fill_(400.0)
    with quietly():
        model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc").save_pretrained(folder)
    return str(folder)


def write_aisfx_folder(folder: Path, channels: tuple[int, ...] = (2, 3, 4, 5)) -> str:
    """An aiSFX with few channels."""
    from safe_framework_plugins.encoders.aisfx_network import AisfxConfig, AisfxModel

    torch.manual_seed(0)
    with quietly():
        AisfxModel(AisfxConfig(channels=channels)).save_pretrained(folder)
    return str(folder)
