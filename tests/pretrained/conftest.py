"""Tiny models in the formats that packages hold, and cards that describe them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ENGLISH = {"vocab_size": 51864, "pad_token_id": 50256, "eos_token_id": 50256}
_TYPES = ("float32", "int8", "int16", "int32", "float16")


def _text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def ctranslate2_bytes(
    variables: dict[str, np.ndarray], aliases: dict[str, str], kind: str = "WhisperSpec"
) -> bytes:
    """The arrays in CTranslate2's binary format."""
    parts = [struct.pack("<I", 6), _text(kind), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        parts += [_text(name), struct.pack("<B", array.ndim)]
        parts += [struct.pack("<I", size) for size in array.shape]
        parts += [struct.pack("<BI", _TYPES.index(array.dtype.name), array.nbytes)]
        parts += [array.tobytes()]
    parts += [struct.pack("<I", len(aliases))]
    parts += [_text(alias) + _text(name) for alias, name in aliases.items()]
    return b"".join(parts)


def whisper_variables(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A model's weights under the names that CTranslate2 gives them, projections joined."""
    state, found = model.state_dict(), {}

    def put(name: str, *modules: str) -> None:
        norm = "norm" in modules[0]
        weights = [state[f"model.{module}.weight"] for module in modules]
        zero = torch.zeros(len(weights[0]))
        biases = [state.get(f"model.{module}.bias", zero) for module in modules]
        found[f"{name}/{'gamma' if norm else 'weight'}"] = torch.cat(weights).numpy()
        found[f"{name}/{'beta' if norm else 'bias'}"] = torch.cat(biases).numpy()

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    for side in ("encoder", "decoder"):
        positions = state[f"model.{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions.numpy()
        found[f"{side}/num_heads"] = np.array(2, np.int16)
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(2):
            there, here = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            joined = [f"{here}.self_attn.{x}_proj" for x in "qkv"]
            put(f"{there}/self_attention/linear_0", *joined)
            put(f"{there}/self_attention/linear_1", f"{here}.self_attn.out_proj")
            put(f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            put(f"{there}/ffn/linear_0", f"{here}.fc1")
            put(f"{there}/ffn/linear_1", f"{here}.fc2")
            put(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            if side == "decoder":
                cross = f"{here}.encoder_attn"
                put(f"{there}/attention/linear_0", f"{cross}.q_proj")
                put(f"{there}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                put(f"{there}/attention/linear_2", f"{cross}.out_proj")
                put(f"{there}/attention/layer_norm", f"{cross}_layer_norm")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"].numpy()
    return found


@pytest.fixture(scope="session")
def whisper() -> torch.nn.Module:
    """A random English-only Whisper whose every weight differs from the next."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        **ENGLISH,
        bos_token_id=50256,
        decoder_start_token_id=50257,
        d_model=8,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=20,
        max_source_positions=50,
        max_target_positions=30,
    )
    model = WhisperForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="session")
def variables(whisper: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tiny Whisper's arrays under CTranslate2's names."""
    return whisper_variables(whisper)


@pytest.fixture(scope="session")
def whisper_bytes(variables: dict[str, np.ndarray]) -> bytes:
    """The tiny Whisper as CTranslate2 stores it."""
    return ctranslate2_bytes(variables, {"decoder/projection/weight": "decoder/embeddings/weight"})


@pytest.fixture
def card_text() -> Callable[..., str]:
    """A card's text, by its weights and with keys of its package changed."""

    def write(weights: bytes, **changes: Any) -> str:
        package = {
            "distribution": "tiny-audio",
            "version": "1.2",
            "module": "tiny_audio",
            "file": "model/model.bin",
            "sha256": hashlib.sha256(weights).hexdigest(),
            "format": "ctranslate2",
        } | changes
        keys = ("name", "kind", "summary", "licence", "paper")
        lines = [f'{key} = "tiny"' for key in keys] + ['hub = "acme/tiny"', "[facts]", "layers = 2"]
        lines += ["[package]"] + [f'{key} = "{value}"' for key, value in package.items()]
        return "\n".join(lines)

    return write


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of cards in place of the framework's, and an empty cache beside it."""
    folder = tmp_path / "registry"
    (folder / "cards").mkdir(parents=True)
    monkeypatch.setattr("safe_framework.utils.catalogue.FOLDER", folder)
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    return folder / "cards"


@pytest.fixture(scope="session")
def store() -> Callable[..., bytes]:
    """What stores arrays in CTranslate2's binary format."""
    return ctranslate2_bytes
