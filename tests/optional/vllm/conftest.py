"""Tiny bases on disk, adapters that are heard on them, and vLLM in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import (
    RelevanceHead,
    Strength,
    relevance_samples,
    relevance_states,
)
from safe_framework.data.audio import Waveform
from safe_framework.pretrained import quietly
from tests.core.conftest import checkpoints as checkpoints
from tests.core.test_chat import PROMPT
from tests.support.toys import llama, tokenizer

RATE, TOKENS = 16_000, 8
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 256}
"""Of a tiny base; vLLM has kernels for heads of 32 numbers and more."""

RECIPE = """
[base]
model = "{folder}/base"

[modalities.audio]
attend = "{attend}"
encoder = {{ use = "whisper", model = "{whisper}/whisper" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "{fusion}", layers = [0, 2] }}
"""

TOUCH = """
[modalities.touch]
attend = "answer"
encoder = {{ use = "sensor", channels = 2, rate = 10.0, window = 2.0, patch = 4, dim = 6 }}
projector = {{ use = "standard", tokens = 3, hidden_dim = 8 }}
fusion = {{ use = "gated", layers = [1, 2] }}
"""
"""Of a second sense, which takes no sound."""


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """VLLM in this process, on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        yield


FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma": {},
    "Gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "Gemma3": {
        "sliding_window": 16, "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Phi3": {"head_dim": None},
    "Granite": {"head_dim": None, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "GPT2": {},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}  # fmt: skip
"""Further architectures, by transformers' names, and what their configs say besides."""


def base(kind: str = "Llama", **changes: Any) -> Any:
    """A tiny base of an architecture."""
    import transformers

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": None}
    if kind == "Llama":
        return llama(**SIZES, **heads, **changes)
    plain = llama(**SIZES, **heads).config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
             "pad_token_id", "eos_token_id", "bos_token_id")  # fmt: skip
    own = {**{name: plain[name] for name in names}, "head_dim": 32, **FAMILIES.get(kind, {})}
    own = {name: value for name, value in own.items() if value is not None or "_id" in name}
    config: Any = getattr(transformers, f"{kind}{'Text' * (kind == 'Gemma3')}Config")(**own)
    model: Any = getattr(transformers, f"{kind}{_HEAD.get(kind, 'ForCausalLM')}")(config)
    if kind in FAMILIES:
        _randomise(model)
    return model


_HEAD = {"GPT2": "LMHeadModel"}


def _randomise(model: Any) -> None:
    """Numbers by which every part of a layer matters, its norms and biases too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            scale = 0.15 if one.ndim > 1 else 0.1
            one.add_(torch.randn(one.shape, generator=generator) * scale)


Making = Callable[..., Path]


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Making:
    """What makes an adapter that is heard, and gives its folder; its base lies beside it."""
    made = dict[tuple[str, ...], Path]()

    def make(fusion: str = "lora", attend: str = "answer", kind: str = "Llama", *more: str) -> Path:
        key = (fusion, attend, kind, *more)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            torch.manual_seed(0)
            words = tokenizer()
            words.chat_template = PROMPT
            with quietly():
                base(kind).save_pretrained(folder / "base")
            words.save_pretrained(folder / "base")
            recipe = RECIPE + (TOUCH if "touch" in more else "")
            if kind in FAMILIES:  # of which layers before the first fused one are left out at times
                recipe = recipe.replace("[0, 2]", "[1, 2]")
            if kind == "Gemma2":  # whose cap on scores transformers' usual attention leaves out
                eager = 'attn_implementation = "eager"'
                recipe = recipe.replace("[modalities.audio]", f"{eager}\n\n[modalities.audio]", 1)
            text = recipe.format(folder=folder, whisper=checkpoints, fusion=fusion, attend=attend)
            (folder / "recipe.toml").write_text(text, "utf-8")
            model = safe_framework.build(folder / "recipe.toml")
            for parameter in model.trainable_parameters().values():
                parameter.data.normal_(std=0.5)
            model.set_relevance("audio", head(model, kind))
            if "touch" in more:
                model.set_relevance("touch", head(model, kind, layer=1, sign=-1.0))
            model.save_pretrained(folder / "adapter")
            made[key] = folder / "adapter"
        return made[key]

    return make


COLUMNS = 36
"""Tokens that a head reads: more than a piece of a prompt, or a block of the prefix cache."""

OPENING, CLOSING = (5, 61, 70), (9, 60, 62)
"""Lengths of prompts, in tokens, to which a relevance head opens the gate or keeps it closed."""

OPENING_WORDS, CLOSING_WORDS = ("w3 w4 w5", "w7"), ("w6 " * 40,)
"""The same of what is said in a chat."""


def head(model: SafeModel, kind: str, layer: int | None = None, sign: float = 1.0) -> RelevanceHead:
    """A head that decides so; on Qwen 2 it hears the sound, on Qwen 3 it reads an earlier layer.

    It reads tokens of up to three pieces of a prompt, all of them alike.

    Args:
        model: that it is for.
        kind: of its base.
        layer: that it reads.
        sign: -1 for one that decides the other way round.
    """
    layer, pooled = layer or (1 if kind == "Qwen3" else 2), kind == "Qwen2"
    heard = model.processor.modality("audio", [sound(0)])
    batches: list[Any] = [{"input_ids": torch.tensor([Case(n).ids])} for n in (*OPENING, *CLOSING)]
    chats = (OPENING_WORDS, CLOSING_WORDS) if kind == "Llama" else ((), ())  # others know no word
    for words in (*chats[0], *chats[1]):
        said = [[{"role": "user", "content": words}]]
        batches.append(model.processor.chat_batch(said, None, {"add_generation_prompt": True}))
    read = [relevance_states(model, batch, layer, COLUMNS) for batch in batches]
    rows = [one.states[one.mask].mean(0) for one in read]
    if pooled:
        (sample,) = relevance_samples(model, "audio", heard)
        rows = [torch.cat([row, sample]) for row in rows]
    signs = [1.0] * len(OPENING) + [-1.0] * len(CLOSING)
    signs += [1.0] * len(chats[0]) + [-1.0] * len(chats[1])
    states = torch.stack(rows)
    wanted = sign * torch.tensor(signs)[:, None]
    (weight,) = torch.linalg.lstsq(states, wanted, driver="gelsd").solution.T
    flat, hidden = torch.zeros(len(weight)), model.stack.hidden_size
    return RelevanceHead(
        flat, flat + 1, flat[None, :hidden], weight[None, :hidden], 0.0,
        sample_weight=weight[hidden:], layer=layer, columns=COLUMNS,
    )  # fmt: skip


def sound(number: int) -> Waveform:
    """A sound, another for each number."""
    random = np.random.default_rng(number)
    return Waveform(random.uniform(-0.5, 0.5, RATE // 2).astype(np.float32), RATE)


def touch(number: int) -> Any:
    """A sample of the second sense, another for each number."""
    return np.random.default_rng(number).uniform(-1, 1, (16, 2)).astype(np.float32)


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """VLLM on an adapter or a base, in this process.

    Prompts are read 32 tokens at a time, and blocks of the prefix cache are as long.
    """
    from vllm import LLM

    given = {
        "enforce_eager": True, "max_num_seqs": 8, "distributed_executor_backend": "uni",
        "dtype": "float32", "max_num_batched_tokens": 32, "block_size": 32,
        "disable_log_stats": False, **options,
    }  # fmt: skip
    threads = torch.set_num_threads
    llm = LLM(model=str(folder), **given)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        torch.set_num_threads = threads  # type: ignore[assignment]  # vLLM replaces it
        del llm


Gate = Strength | dict[str, Strength]


class Case:
    """What a request asks.

    Args:
        length: of its prompt, in tokens.
        heard: number of its sound; None for none.
        gate: of the request, for all or by sense; None for the adapter's own.
        felt: number of its sample of touch; None for none.
    """

    def __init__(
        self,
        length: int,
        heard: int | None = None,
        gate: Gate | None = None,
        felt: int | None = None,
    ) -> None:
        self.heard, self.gate, self.felt = heard, gate, felt
        self.ids = [3 + number % 30 for number in range(length)]

    def prompt(self, *, hearing: bool = True) -> dict[str, Any]:
        """As vLLM takes it."""
        found: dict[str, Any] = {"prompt_token_ids": self.ids}
        samples = dict[str, Any]()
        if self.heard is not None:
            wave = sound(self.heard)
            samples["audio"] = (wave.values, wave.sampling_rate)
        if self.felt is not None:
            samples["touch"] = touch(self.felt)
        if hearing and samples:
            alone = samples.keys() == {"audio"}
            found["multi_modal_data"] = {"audio": samples["audio"] if alone else samples}
            if self.gate is not None:
                found["mm_processor_kwargs"] = {"gate": self.gate}
        return found

    def sensed(self, model: SafeModel) -> dict[str, torch.Tensor]:
        """Its samples as the adapter takes them."""
        found = dict[str, torch.Tensor]()
        if self.heard is not None:
            found |= model.processor.modality("audio", [sound(self.heard)])
        if self.felt is not None:
            found |= model.processor.modality("touch", [touch(self.felt)])
        return found

    @property
    def acts(self) -> bool:
        """Whether anything is sensed."""
        return any(self.strength(name) for name in self._given())

    def _given(self) -> list[str]:
        given = {"audio": self.heard, "touch": self.felt}
        return [name for name, sample in given.items() if sample is not None]

    def strength(self, name: str) -> float:
        """At which strength a sense acts that has a sample, once heads have decided."""
        gate = self.gate.get(name, 1.0) if isinstance(self.gate, dict) else self.gate
        if gate == "auto":
            return float((len(self.ids) in OPENING) is (name == "audio"))
        return 1.0 if gate is None else float(gate)


Bits = list[tuple[int, float]]


def asked(llm: Any, cases: list[Case], *, hearing: bool = True) -> list[Bits]:
    """Tokens and log-probabilities of the answers to requests that come at once."""
    return [bits(one) for one in outputs(llm, cases, hearing=hearing)]


def outputs(llm: Any, cases: list[Case], *, hearing: bool = True) -> list[Any]:
    """What vLLM tells of them."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0, ignore_eos=True)
    prompts = [case.prompt(hearing=hearing) for case in cases]
    found: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    return found


def bits(output: Any) -> Bits:
    """Tokens and log-probabilities of one answer."""
    (answer,) = output.outputs
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    return [(token, known[token].logprob) for token, known in pairs]


def by_transformers(folder: Path, cases: list[Case]) -> list[Bits]:
    """The same requests, each answered by itself by the adapter in transformers."""
    model, found = safe_framework.load(folder), list[Bits]()
    for case in cases:
        ids = torch.tensor([case.ids])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **case.sensed(model),
            gate=case.gate, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        found.append(likeliest(out.logits))
    return found


def likeliest(logits: Any) -> Bits:
    """Tokens and log-probabilities of one answer's steps, each (1, vocabulary)."""
    logs = [step[0].log_softmax(-1) for step in logits]
    return [(int(one.argmax()), float(one.max())) for one in logs]


ROUNDING = 1e-4
"""In nats: of sums of at most 64 numbers of float32 in another order, through three layers."""


def same(one: Bits, other: Bits, rounding: float = ROUNDING) -> bool:
    """Whether tokens are the same, and log-probabilities but for rounding."""
    pairs = zip(one, other, strict=True)
    return all(a == b and abs(x - y) < rounding for (a, x), (b, y) in pairs)
