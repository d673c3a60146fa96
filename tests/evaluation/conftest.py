"""A tiny base with a new modality of two-number samples, and a finished evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.data.examples import Example
from safe_framework.evaluation.gain import gain
from safe_framework.evaluation.metrics import Estimate
from safe_framework.evaluation.results import (
    Absent,
    Agreement,
    Answered,
    Evaluation,
    GateZero,
    Retention,
)
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import Frames, Memory, Tokens, all_real

WORDS = [
    "pad",
    "end",
    "unknown",
    "what",
    "is",
    "this",
    "red",
    "blue",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
]
HIDDEN = 16


class PairEncoder(Encoder):
    """One frame of two numbers."""

    dim = 2

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return {"pairs": torch.stack([torch.as_tensor(s, dtype=torch.float32) for s in samples])}

    def forward(self, **inputs: Tensor) -> Frames:
        values = inputs["pairs"].unsqueeze(1)  # (batch, frames, dim)
        return Frames(values, all_real(values))


class LinearProjector(Projector):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, HIDDEN)

    def forward(self, frames: Frames) -> Tokens:
        return Tokens(self.linear(frames.values), frames.mask)


class AddTokens(FusionAdapter):
    """Adds the mean token to every position, so strongly that answers change."""

    layers = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def remember(self, tokens: Tokens) -> Memory:
        return Memory({"mean": tokens.values.mean(dim=1)}, tokens.mask)

    def forward(self, hidden: Tensor, memory: Memory, layer: int) -> Tensor:
        return (self.scale * memory.tensors["mean"][:, None]).expand_as(hidden)


def tiny_tokenizer() -> Any:
    """One token for each of ``WORDS``."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="pad", eos_token="end", unk_token="unknown"
    )


@pytest.fixture
def model() -> SafeModel:
    """A tiny base that can touch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    model = SafeModel(LlamaForCausalLM(config), tiny_tokenizer())
    model.add_modality(
        "touch", encoder=PairEncoder(), projector=LinearProjector(), fusion=AddTokens()
    )
    return model


@pytest.fixture
def examples() -> list[Example]:
    """Two answers that the first of the two numbers decides between."""
    random = np.random.default_rng(0)
    answers = ["red", "blue"] * 6
    return [
        Example(
            prompt="what is this" if number % 3 else "what is this cat",
            answer=answer,
            samples={"touch": random.normal([4 if answer == "red" else -4, 0]).astype(np.float32)},
            place=f"test.jsonl:{number + 1}",
        )
        for number, answer in enumerate(answers)
    ]


@pytest.fixture
def texts() -> list[str]:
    """What the base might have been trained on."""
    return ["the cat sat on a mat", "the mat", "a cat sat on the cat", "what sat on a mat"]


def answered(number: int, expected: str, answer: str) -> Answered:
    """One test row whose clip is a tone of 0.1 s."""
    seconds = np.arange(800) / 8000
    tone = np.sin(2 * np.pi * (200 + 50 * number) * seconds).astype(np.float32)
    return Answered(
        place=f"test.jsonl:{number + 1}",
        question="Which instrument plays?",
        expected=expected,
        answer=answer,
        shuffled="piano",
        base="The answer",
        probe=expected,
        sample=Waveform(tone, 8000),
    )


def agreement(share: float, kl: float) -> Agreement:
    """An agreement over 40 texts."""
    return Agreement(
        Estimate(share, share - 0.01, share, 40), Estimate(kl, kl / 2, kl * 2, 40), 900
    )


@pytest.fixture
def evaluation() -> Evaluation:
    """Eleven examples of four instruments, one answer of which is hostile."""
    names = ["piano", "flute", "Cello", "</script><b>"]
    rows = [answered(n, names[n % 4], names[n % 4] if n % 3 else "flute") for n in range(11)]
    kinds = {"silent": agreement(0.99, 0.001), "noise": agreement(0.97, 0.004)}
    kept = Retention(Absent(True, 1.0, 40), kinds, agreement(0.98, 0.002), agreement(0.4, 2.0))
    return Evaluation(
        modality="audio",
        gain=gain(rows, [row.expected for row in rows], resamples=50, seed=0),
        retention=kept,
        gate_zero=GateZero(True, True, 11),
        trainable_parameters=12_345,
        base_parameters=1_000_000,
        train_examples=40,
        max_new_tokens=8,
        resamples=50,
        seed=0,
        answers=tuple(rows),
        costs={"adapter_bytes": 51_200.0, "train_seconds": 130.0},
    )


@pytest.fixture
def curves() -> list[dict[str, float]]:
    """Thirty logged steps of three quantities."""
    return [
        {"step": step, "loss": 3 / step, "task_loss": 2 / step, "gate": min(1, step / 10)}
        for step in range(1, 31)
    ]
