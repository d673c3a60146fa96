"""A GGUF language model, as a checkpoint folder."""

from collections.abc import Callable
from importlib import util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.converters.gguf import write_gguf

WIDTH, HEADS, INNER, BLOCK = 64, 2, 96, 32
LETTERS = ["<s>", "</s>", "a", "b", "c", "ab", "abc", "\u0120"]
_KINDS = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """A llama's arrays under the names that GGUF gives them."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(LETTERS), WIDTH)}
    shapes |= {f"blk.0.{name}": shape for name, shape in _KINDS.items()}
    found = {f"{k}.weight": random.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        found[f"{name}.weight"] = random.normal(size=WIDTH).astype(np.float32)
    return found


@pytest.fixture
def source(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    """A llama of one layer; its feed-forward is quantised to 8 bits."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, array in weights.items():
        if "ffn_down" in name or "ffn_up" in name:
            packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def target(source: Path, tmp_path: Path) -> Path:
    """The folder that is made of it."""
    (tmp_path / "made").mkdir()
    write_gguf(source, tmp_path / "made")
    return tmp_path / "made"


def test_weights_are_expanded(target: Path, weights: dict[str, np.ndarray]) -> None:
    """Law: plain weights survive bit for bit, quantised ones as the floats that they stand for."""
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(target)
    layer, kind = model.model.layers[0], gguf.GGMLQuantizationType.Q8_0
    values, up = weights["blk.0.attn_v.weight"], weights["blk.0.ffn_up.weight"]
    assert model.dtype == torch.float32
    assert np.array_equal(layer.self_attn.v_proj.weight.detach(), values)
    expected = gguf.dequantize(gguf.quantize(up, kind), kind)
    assert np.array_equal(layer.mlp.up_proj.weight.detach(), expected)


def test_the_folder_is_an_ordinary_checkpoint(target: Path) -> None:
    """Law: nothing in the folder remembers GGUF: it loads whole, and can be saved again."""
    with quietly():
        model, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
        model.save_pretrained(target.with_name("again"))
    assert not any(report.values())
    assert "gguf" not in (target / "config.json").read_text().lower()
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, WIDTH)


def test_the_tokenizer_is_written(target: Path) -> None:
    """Law: the folder's tokenizer splits text as the file says."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [LETTERS.index("abc")]


def test_converting_is_silent(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Law: no progress bar, note or warning is printed, and no random number is drawn."""
    before = torch.get_rng_state()
    write_gguf(source, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_is_parsed_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: config, weights and tokenizer come of one reading, and the reader is left as it was."""
    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path: Path) -> None:
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    write_gguf(source, tmp_path / "again")
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counted


@pytest.mark.parametrize("spoil", [lambda data: data[:200], lambda data: b"text" * 99])
def test_what_is_no_gguf_is_named(
    source: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    """Law: a truncated or foreign file is an error that names it."""
    source.write_bytes(spoil(source.read_bytes()))
    with pytest.raises(CheckpointError, match=r"tiny\.gguf` cannot be read as GGUF"):
        write_gguf(source, tmp_path)


def test_a_missing_extra_says_how_to_install_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: without the reader of GGUF the error is the command that installs it."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'safe-framework\[gguf\]'"):
        write_gguf(source, tmp_path)
