"""An adapter in vLLM: who has no sample gets plain vLLM's bits, who has one is heard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import safe_framework
from safe_framework.errors import SafeError
from tests.optional.vllm.conftest import (
    CLOSING,
    OPENING,
    TOKENS,
    Case,
    Making,
    asked,
    by_transformers,
    engine,
    outputs,
    same,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

MIXED = [
    Case(5), Case(5, 0), Case(70, 1), Case(70), Case(9, 1, 0.0), Case(70, 0, 0.5), Case(11),
]  # fmt: skip


DECIDED = [
    Case(length, 0, "auto") for pair in zip(OPENING, CLOSING, strict=True) for length in pair
]


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
    assert [case.acts for case in cases].count(True) in (3, 6)
    for case, one, other in zip(cases, found, expected, strict=True):
        assert (one != other) is case.acts
    assert all(map(same, found, by_transformers(folder, cases)))


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
        assert again.num_cached_tokens == 32  # of 70: what a head reads is computed anew


def test_answers_to_one_request_share_what_was_decided(adapter: Making, monkeypatch: Any) -> None:
    """Law: a head is asked once for all answers to a request, also for those that begin later."""
    from vllm import SamplingParams

    from safe_framework.serving.vllm.worker import _Sense

    asks, own = list[int](), _Sense.asks

    def counted(self: Any, state: Any) -> bool:
        """As its own."""
        asks.append(self.order)
        return own(self, state)

    monkeypatch.setattr(_Sense, "asks", counted)
    likeliest = SamplingParams(n=3, max_tokens=TOKENS, temperature=0.01, seed=0, ignore_eos=True)
    with engine(adapter(), max_num_seqs=2) as llm:
        for case, hears in ((Case(70, 0, "auto"), True), (Case(62, 0, "auto"), False)):
            (one,) = asked(llm, [Case(len(case.ids), 0 if hears else None)])
            (found,) = llm.generate([case.prompt()], likeliest, use_tqdm=False)
            tokens = [list(answer.token_ids) for answer in found.outputs]
            assert tokens == [[token for token, _ in one]] * 3
    assert len(asks) == 2


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
        assert case.acts or one == other
    assert all(map(same, found, by_transformers(folder, cases)))


def preemptions(llm: Any) -> float:
    """How often rows were thrown out."""
    named = "vllm:num_preemptions"
    return sum(float(one.value) for one in llm.get_metrics() if one.name == named)


def test_a_gate_that_cannot_be_decided_is_refused(adapter: Making) -> None:
    """Law: where an adapter acts before the end of a prompt, "auto" is refused, and says why."""
    from safe_framework.serving.vllm.samples import check_can_decide

    acting = {attend: safe_framework.load(adapter("gated", attend)) for attend in ("all", "answer")}
    with pytest.raises(SafeError, match="`audio` acts `all` of the text: in vLLM a prompt is read"):
        check_can_decide(acting["all"], {"audio": "auto"})
    check_can_decide(acting["answer"], {"audio": "auto"})
    check_can_decide(acting["all"], {"audio": 1.0})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
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
