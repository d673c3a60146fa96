"""An adapter in vLLM: who has no sample gets plain vLLM's bits, who has one is heard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import safe_framework
from safe_framework.core.injection import ActiveModality
from safe_framework.errors import InjectionError, SafeError
from tests.optional.vllm.conftest import (
    CLOSING,
    OPENING,
    TOKENS,
    Case,
    Making,
    asked,
    bits,
    by_transformers,
    engine,
    outputs,
    sound,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROUNDING = 1e-4
"""In nats: of sums of at most 64 numbers of float32 in another order, through three layers."""

MIXED = [
    Case(5), Case(5, 0), Case(70, 1), Case(70), Case(9, 1, 0.0), Case(70, 0, 0.5), Case(11),
]  # fmt: skip


DECIDED = [
    Case(length, 0, "auto") for pair in zip(OPENING, CLOSING, strict=True) for length in pair
]


def same(one: Any, other: Any) -> bool:
    """Whether tokens are the same, and log-probabilities but for rounding."""
    pairs = zip(one, other, strict=True)
    return all(a == b and abs(x - y) < ROUNDING for (a, x), (b, y) in pairs)


KINDS = [
    ("lora", "answer", "Llama"), ("gated", "all", "Llama"), ("multilayer", "answer", "Llama"),
    ("tanh_gated", "answer", "Llama"), ("cross_attention", "all", "Llama"),
    ("lora", "answer", "Qwen2"), ("lora", "answer", "Qwen3"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_heard_as_in_transformers_beside_rows_of_plain_bits(
    adapter: Making, kind: tuple[str, str, str]
) -> None:
    """Law: rows with a sample are answered as in transformers, all others to plain vLLM's bits.

    The batch is mixed, and its prompts are read in pieces; plain vLLM has one of the same shape.
    Where a relevance head decides, what it keeps closed is among the others.
    """
    folder = adapter(*kind)
    cases = MIXED + (DECIDED if kind[1] == "answer" else [])
    with engine(folder) as listening:
        found = asked(listening, cases)
    with engine(folder.parent / "base") as plain:
        expected = asked(plain, cases, hearing=False)
    moved = list[bool]()
    for case, one, other in zip(cases, found, expected, strict=True):
        assert same(one, by_transformers(folder, case))
        if is_the_base(case):
            assert one == other
        else:
            moved.append(one != other)
    assert moved == [True] * (len(cases) - sum(map(is_the_base, cases)))
    assert len(moved) in (3, 6)


def is_the_base(case: Case) -> bool:
    """Whether nothing is heard in a case."""
    closed = case.gate == "auto" and len(case.ids) in CLOSING
    return case.heard is None or case.gate == 0 or closed


@pytest.mark.parametrize("attend", ["answer", "all"])
def test_prefix_cache_leaks_nothing(adapter: Making, attend: str) -> None:
    """Law: one prompt without a sound, with two and with another gate is answered as ever.

    Asked in every order behind each other with the prefix cache on. Prompts of who hears in the
    answer alone share the base's blocks, and others none of them.
    """
    cases = [Case(70), Case(70, 0), Case(70, 1), Case(70, 0, 0.5)]
    with engine(adapter("lora", attend)) as llm:
        first = [asked(llm, [case])[0] for case in cases]
        assert len({tuple(one) for one in first}) == len(cases)
        for order in itertools.permutations(range(len(cases))):
            assert [asked(llm, [cases[n]])[0] for n in order] == [first[n] for n in order]
        (again,) = outputs(llm, [cases[1]])
        assert again.num_cached_tokens == 64
        (fresh,) = outputs(llm, [Case(70, 2)])
        assert fresh.num_cached_tokens == (64 if attend == "answer" else 0)


def test_what_was_decided_is_kept_for_its_request(adapter: Making) -> None:
    """Law: prompts that a head decides of share blocks that the base reads, and no decision.

    In every order behind each other, beside the same prompt without a sound and heard, what is
    closed has the base's bits, and what is open is answered as at gate 1.
    """
    opening, closing = (Case(n, 0, "auto") for n in (70, 62))
    others = [Case(70), Case(70, 0), Case(62), Case(62, 0)]
    with engine(adapter()) as llm:
        bare, heard, bare_too, heard_too = (asked(llm, [case])[0] for case in others)
        assert bare != heard
        assert bare_too != heard_too
        for order in itertools.permutations([opening, closing, *others[:2]]):
            told = dict(zip(order, (asked(llm, [case])[0] for case in order), strict=True))
            assert told[closing] == bare_too
            assert same(told[opening], heard)
            assert (told[others[0]], told[others[1]]) == (bare, heard)
        (again,) = outputs(llm, [opening])
        assert again.num_cached_tokens == 64


def test_answers_to_one_request_share_what_was_decided(adapter: Making, monkeypatch: Any) -> None:
    """Law: a head is asked once for all answers to a request, also for those that begin later."""
    from vllm import SamplingParams

    from safe_framework.serving.vllm.worker import _Hearer

    asks, own = list[int](), _Hearer.asks

    def counted(self: Any, state: Any) -> bool:
        """As its own."""
        asks.append(self.number)
        return own(self, state)

    monkeypatch.setattr(_Hearer, "asks", counted)
    likeliest = SamplingParams(n=3, max_tokens=TOKENS, temperature=0.01, seed=0, ignore_eos=True)
    with engine(adapter(), max_num_seqs=2) as llm:
        for case, hears in ((Case(70, 0, "auto"), True), (Case(62, 0, "auto"), False)):
            (one,) = asked(llm, [Case(len(case.ids), 0 if hears else None)])
            (found,) = llm.generate([case.prompt()], likeliest, use_tqdm=False)
            tokens = [list(answer.token_ids) for answer in found.outputs]
            assert tokens == [[token for token, _ in one]] * 3
    assert len(asks) == 2


def test_a_seed_and_a_prompt_in_pieces(deaf: Any) -> None:
    """Law: a seed ends no engine that reads a prompt in pieces, and draws what it would at once."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, temperature=2.0, seed=7, ignore_eos=True)
    prompts = [Case(95).prompt()] * 2  # in three pieces; then its blocks are known
    found = [deaf.generate([one], params, use_tqdm=False)[0] for one in prompts]
    assert [one.num_cached_tokens for one in found] == [0, 64]
    first, second = (list(one.outputs[0].token_ids) for one in found)
    assert first == second


def test_preempted_rows_go_on_as_they_were(adapter: Making) -> None:
    """Law: rows that are thrown out for want of memory, and read again, are answered as ever.

    Those that hear nothing have plain vLLM's bits, and those that hear are answered as alone.
    """
    folder = adapter()
    few = {"num_gpu_blocks_override": 8, "max_num_batched_tokens": 256, "max_model_len": 128}
    cases = [Case(60), Case(61, 0), Case(62, 1), Case(60, 0, 0.5), Case(59), *DECIDED[2:]]
    with engine(folder, **few) as llm:
        found = asked(llm, cases)
        assert preemptions(llm) > 0
    with engine(folder.parent / "base", **few) as plain:
        expected = asked(plain, cases, hearing=False)
    for case, one, other in zip(cases, found, expected, strict=True):
        assert same(one, by_transformers(folder, case))
        assert not is_the_base(case) or one == other


def preemptions(llm: Any) -> float:
    """How often rows were thrown out."""
    named = "vllm:num_preemptions"
    return sum(float(one.value) for one in llm.get_metrics() if one.name == named)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"gate": "open"}, 'between 0 and 1, or "auto"'),
        ({"gate": 2}, "a gate must be between 0 and 1"),
        ({"gain": 1}, "`mm_processor_kwargs` has `gain`"),
        ({"rate": None}, "without its sampling rate"),
        ({"broken": True}, "holds NaN or Inf"),
    ],
)
def test_what_cannot_be_heard_is_refused(deaf: Any, more: dict[str, Any], told: str) -> None:
    """Law: a gate or a sound that cannot be used is refused by name, and the engine goes on."""
    from vllm.exceptions import VLLMValidationError

    wave = sound(0)
    values, own = wave.values.copy(), dict(more)
    rate = own.pop("rate", wave.sampling_rate)
    if own.pop("broken", False):
        values[7] = float("nan")
    prompt = {
        "prompt_token_ids": [3, 4, 5],
        "multi_modal_data": {"audio": values if rate is None else (values, rate)},
        "mm_processor_kwargs": own,
    }
    with pytest.raises(VLLMValidationError, match=told):
        deaf.generate([prompt], use_tqdm=False)
    assert len(bits(outputs(deaf, [Case(5, 0)])[0])) == 8


@pytest.fixture(scope="module")
def deaf(adapter: Making) -> Any:
    """An engine that stays."""
    with engine(adapter()) as llm:
        yield llm


def test_nothing_is_done_where_nobody_hears(deaf: Any, monkeypatch: Any) -> None:
    """Law: in a pass without a row that hears, vLLM does what it does for a base of text alone."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from safe_framework.serving.vllm.listening import ListeningLayers

    given, own = list[Any](), GPUModelRunner._model_forward

    def forward(self: Any, **kwargs: Any) -> Any:
        """As vLLM's own."""
        given.append((kwargs["input_ids"], kwargs["inputs_embeds"]))
        return own(self, **kwargs)

    monkeypatch.setattr(GPUModelRunner, "_model_forward", forward)
    monkeypatch.setattr(ListeningLayers, "_enter", None)
    outputs(deaf, [Case(5), Case(9, 1, 0.0)])
    assert len(given) >= TOKENS
    assert all(ids is not None and embedded is None for ids, embedded in given)


def test_rows_that_hear_are_changed_together(deaf: Any, monkeypatch: Any) -> None:
    """Law: at each fused layer of a pass, all rows whose samples are alike cost one call."""
    seen, own = list[Any](), ActiveModality.apply_everywhere

    def apply(self: Any, hidden: Any, layer: int) -> Any:
        """As its own."""
        seen.append((layer, tuple(hidden.shape[:2])))
        return own(self, hidden, layer)

    monkeypatch.setattr(ActiveModality, "apply_everywhere", apply)
    outputs(deaf, [Case(5, 0), Case(5), Case(7, 1, 0.5)])
    assert seen == [(0, (2, 1)), (2, (2, 1))] * TOKENS


def test_a_layer_that_does_not_listen_is_an_error(deaf: Any, monkeypatch: Any) -> None:
    """Law: a pass in which a fused layer was not reached ends in an error, and not in an answer."""
    runner = deaf.llm_engine.model_executor.driver_worker.worker.model_runner
    layer = runner.model.model.layers[2]
    monkeypatch.setattr(layer, "__class__", type(layer).__mro__[1])
    with pytest.raises(InjectionError, match=r"not heard at layers \[2\]"):
        outputs(deaf, [Case(5, 0)])


def test_a_gate_that_cannot_be_decided_is_refused(adapter: Making) -> None:
    """Law: where an adapter acts before the end of a prompt, "auto" is refused, and says why."""
    from safe_framework.serving.vllm.samples import check_can_decide

    acting = {attend: safe_framework.load(adapter("gated", attend)) for attend in ("all", "answer")}
    with pytest.raises(SafeError, match="it acts `all` of the text: in vLLM a prompt is read once"):
        check_can_decide(acting["all"].modality("audio"))
    check_can_decide(acting["answer"].modality("audio"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"revision": "main"}, "--revision cannot be given"),
    ],
)
def test_what_was_never_heard_is_refused_at_the_start(
    adapter: Making, options: dict[str, Any], named: str
) -> None:
    """Law: an option of vLLM's under which nobody has seen an adapter work is refused by name."""
    from vllm.engine.arg_utils import EngineArgs

    from safe_framework.errors import AdapterError

    with pytest.raises(AdapterError, match=named):
        EngineArgs(model=str(adapter()), **options).create_engine_config()


def test_other_models_are_vllm_s_own(adapter: Making) -> None:
    """Law: a model that is no adapter is configured as without the plugin."""
    from vllm.engine.arg_utils import EngineArgs

    base: Path = adapter().parent / "base"
    config = EngineArgs(model=str(base)).create_engine_config()
    assert config.model_config.architectures == ["LlamaForCausalLM"]
    assert config.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"
