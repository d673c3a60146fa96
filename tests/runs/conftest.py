"""A whole tiny run on disk: a random base, a random Whisper, tones, texts and a recipe."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from safe_framework.pretrained import quietly

WORDS = "pad end unknown what is this high low the cat sat on a mat dog ran".split()  # noqa: SIM905  # reads better
RATE = 16000

torch.set_num_threads(1)  # the tensors are so small that threads would only wait for each other

RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
encoder = {{ use = "whisper", model = "{folder}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8, dropout = 0.2, noise = 0.1 }}
fusion = {{ use = "lora", rank = 2, layers = [0, 1], dropout = 0.1 }}
gate = {{ warmup_steps = 4 }}

[[retention]]
use = "distillation"
weight = 0.5

[data]
train = "train.jsonl"
test = "test.jsonl"
retention = "texts.jsonl"
retention_test = "texts_test.jsonl"

[training]
max_steps = 9
batch_size = 3
retention_batch_size = 2
projector_learning_rate = 1e-2
fusion_learning_rate = 1e-2
warmup_steps = 2
align_steps = 4
align_weight = 0.5
balance = true
save_steps = 2

[evaluation]
max_new_tokens = 2
bootstrap = 20
"""


EVERY_METHOD = """
[[retention]]
use = "nullspace"

[[retention]]
use = "fisher"
examples = 3

[[retention]]
use = "distillation"
counterfactual = ["foreign", "shuffled"]
"""


def write_base(folder: Path) -> None:
    """A Llama of two layers whose tokens are ``WORDS``."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="pad", eos_token="end", unk_token="unknown"
    )
    with quietly():
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_whisper(folder: Path) -> None:
    """A Whisper of one layer and one second."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_source_positions=50, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    with quietly():
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)


def write_tones(folder: Path, name: str, count: int, lowest: float) -> None:
    """A JSONL file of tones, of which every second is high."""
    rows = []
    for number in range(count):
        hertz = lowest * (8 if number % 2 else 1) * (1 + number / 20)
        tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 5) / RATE)
        soundfile.write(folder / f"{name}{number}.wav", tone, RATE)
        answer = "high" if number % 2 else "low"
        rows.append({"question": "what is this", "answer": answer, "audio": f"{name}{number}.wav"})
    write_rows(folder / f"{name}.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``recipe.toml``, ``every_method.toml`` and everything that they name."""
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base")
    write_whisper(folder / "whisper")
    write_tones(folder, "train", 8, 200)
    write_tones(folder, "test", 4, 230)
    texts = ["the cat sat on a mat", "the dog ran", "a dog sat on the cat", "on the mat"]
    write_rows(folder / "texts.jsonl", [{"text": text} for text in texts])
    write_rows(folder / "texts_test.jsonl", [{"text": text} for text in texts[:3]])
    write_tones(folder, "foreign", 2, 3000)
    write_tones(folder, "foreign_test", 2, 2500)
    recipe = RECIPE.format(folder=folder)
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    one, data = recipe.index("[[retention]]"), recipe.index("[data]")
    files = '[data]\nforeign = "foreign.jsonl"\nforeign_test = "foreign_test.jsonl"'
    whole = recipe[:one] + EVERY_METHOD + files + recipe[data + len("[data]") :]
    (folder / "every_method.toml").write_text(whole, "utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    previous = os.environ.get("SAFE_CACHE")
    os.environ["SAFE_CACHE"] = str(folder)
    yield folder
    if previous is None:
        del os.environ["SAFE_CACHE"]
    else:
        os.environ["SAFE_CACHE"] = previous
