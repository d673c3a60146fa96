"""A Whisper model stored by CTranslate2, as a checkpoint folder of transformers.

CTranslate2's library is not needed. A file holds named arrays, little-endian: version, name of the
specification, its revision; then the number of variables, each with its name, shape, type and
bytes; then the number of aliases, each with its name and that of its variable. A name is preceded
by its length, which counts the zero byte at its end.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from safe_framework.errors import CheckpointError
from safe_framework.utils.quiet import quietly

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration


_VERSION = 6
_TYPES = tuple(np.dtype(name) for name in ("<f4", "i1", "<i2", "<i4", "<f2"))


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data, self._offset = data, 0

    def array(self, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """Read numbers of one kind."""
        values = np.frombuffer(self._data, kind, count, self._offset)
        self._offset += values.nbytes
        return values

    def number(self, code: str) -> int:
        """Read one little-endian number, as ``struct`` codes it."""
        (value,) = struct.unpack_from("<" + code, self._data, self._offset)
        self._offset += struct.calcsize("<" + code)
        return int(value)

    def text(self) -> str:
        """Read a text, which its length precedes and a zero ends."""
        length = self.number("H")
        start, self._offset = self._offset, self._offset + length
        return self._data[start : self._offset - 1].decode()

    def at_end(self) -> bool:
        """Whether all has been read."""
        return self._offset == len(self._data)


def read_variables(path: Path, specification: str) -> Mapping[str, npt.NDArray[Any]]:
    """Read every array of a model; an alias is the same array under another name.

    Args:
        path: a ``model.bin``.
        specification: what kind of model it must be, such as ``"WhisperSpec"``.

    Raises:
        CheckpointError: the file is truncated, of another format, or of another kind of model.
    """
    data = _Bytes(path.read_bytes())
    try:
        version, kind, _ = data.number("I"), data.text(), data.number("I")
        if (version, kind) != (_VERSION, specification):
            raise ValueError(f"version {version} of {kind}, not {_VERSION} of {specification}")
        variables = dict(_variable(data) for _ in range(data.number("I")))
        for _ in range(data.number("I")):
            alias = data.text()
            variables[alias] = variables[data.text()]
        if not data.at_end():
            raise ValueError("bytes are left over at the end")
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"`{path}` is not a whole CTranslate2 {specification}: {error}",
            hint="download it again",
        ) from error
    return variables


def _variable(data: _Bytes) -> tuple[str, npt.NDArray[Any]]:
    name = data.text()
    shape = [data.number("I") for _ in range(data.number("B"))]
    kind, size = _TYPES[data.number("B")], data.number("I")
    return name, data.array(kind, size // kind.itemsize).reshape(shape)


Variables = Mapping[str, npt.NDArray[Any]]
Arrays = Iterator[tuple[str, npt.NDArray[np.float32]]]

_END_OF_TEXT = {51864: 50256, 51865: 50257}  # by size of vocabulary: English only, multilingual
_ENGLISH_VOCABULARY = 51864
_NO_TIMESTAMPS = 106  # after the end of text

# CTranslate2's modules of a layer, and the modules among which their outputs are split here.
_LAYER = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
_CROSS_ATTENTION = {
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def write_whisper(source: Path, target: Path) -> None:
    """Write encoder, decoder and feature extractor into the existing folder ``target``.

    The tokenizer and the suppressed tokens are written too where they lie beside ``source``.

    Raises:
        CheckpointError: the file is not a whole, unquantised Whisper.
    """
    variables = read_variables(source, "WhisperSpec")
    try:
        model = _model(variables)
    except (KeyError, ValueError, RuntimeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"`{source}` is not a Whisper that can be read: {why}") from error
    model.generation_config = _generation(model.config, source.with_name("config.json"))
    with quietly():
        model.save_pretrained(target)
    _write_extractor(model.config.num_mel_bins, target)
    _write_tokenizer(source.with_name("tokenizer.json"), target)


def _model(variables: Variables) -> WhisperForConditionalGeneration:
    import torch
    from transformers import WhisperForConditionalGeneration

    if any(name.endswith("weight_scale") for name in variables):
        raise ValueError("its weights are quantised")
    arrays = dict(_arrays(variables))
    with torch.random.fork_rng(devices=[]):  # its random start is not the caller's to pay for
        model = WhisperForConditionalGeneration(_config(variables))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


def _config(variables: Variables) -> WhisperConfig:
    from transformers import WhisperConfig

    vocabulary, width = variables["decoder/embeddings/weight"].shape
    if vocabulary not in _END_OF_TEXT:
        raise ValueError(f"its vocabulary has {vocabulary} tokens")
    end = _END_OF_TEXT[vocabulary]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=len(variables["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_ffn_dim=len(variables["decoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
    )


def _layers(variables: Variables, side: str) -> int:
    found = (re.match(rf"{side}/layer_(\d+)/", name) for name in variables)
    return len({match[1] for match in found if match})


def _arrays(variables: Variables) -> Arrays:
    """Every parameter under the name that transformers gives it."""
    yield from _split(variables, "encoder/conv1", ("model.encoder.conv1",))
    yield from _split(variables, "encoder/conv2", ("model.encoder.conv2",))
    for side, parts in (("encoder", _LAYER), ("decoder", _LAYER | _CROSS_ATTENTION)):
        positions = variables[f"{side}/position_encodings/encodings"]
        yield f"model.{side}.embed_positions.weight", positions.astype(np.float32)
        yield from _split(variables, f"{side}/layer_norm", (f"model.{side}.layer_norm",))
        for layer in range(_layers(variables, side)):
            for source, targets in parts.items():
                named = [f"model.{side}.layers.{layer}.{target}" for target in targets]
                yield from _split(variables, f"{side}/layer_{layer}/{source}", named)
    for name in ("model.decoder.embed_tokens.weight", "proj_out.weight"):
        yield name, variables["decoder/embeddings/weight"].astype(np.float32)


def _split(variables: Variables, source: str, targets: Sequence[str]) -> Arrays:
    """One module's arrays, their outputs divided evenly among the targets."""
    for kind, name in _KINDS.items():
        whole = variables.get(f"{source}/{kind}")
        if whole is None:
            continue
        for target, part in zip(targets, np.split(whole, len(targets)), strict=True):
            if not (name == "bias" and target.endswith("k_proj")):  # Whisper's keys have no bias
                yield f"{target}.{name}", part.astype(np.float32)
            elif part.any():
                raise ValueError(f"`{source}` has a bias on its keys")


def _generation(config: Any, facts: Path) -> GenerationConfig:
    """What Whisper's ``generate`` needs to know beyond the weights."""
    from transformers import GenerationConfig

    known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
    return GenerationConfig(  # type: ignore[no-untyped-call]  # it declares no types
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        is_multilingual=config.vocab_size != _ENGLISH_VOCABULARY,
        no_timestamps_token_id=config.eos_token_id + _NO_TIMESTAMPS,
        suppress_tokens=known.get("suppress_ids"),
        begin_suppress_tokens=known.get("suppress_ids_begin"),
        alignment_heads=known.get("alignment_heads"),
    )


def _write_extractor(bands: int, target: Path) -> None:
    from transformers import WhisperFeatureExtractor

    extractor: Any = WhisperFeatureExtractor
    extractor(feature_size=bands).save_pretrained(target)


def _write_tokenizer(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target / source.name)
        settings = json.dumps({"tokenizer_class": "WhisperTokenizer"}, indent=2)
        (target / "tokenizer_config.json").write_text(settings, encoding="utf-8")
