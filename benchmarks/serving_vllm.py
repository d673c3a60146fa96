"""What a sense costs vLLM: throughput beside plain vLLM, in one process and one run.

Rounds of some arms, one after the other and in the next round the other way round, so that a busy
machine troubles all of them alike: plain vLLM on the base, vLLM on the adapter without a sample,
and with a sound in every request, at gate 1 and, where the adapter has a relevance head, at "auto".
Each round gives a ratio; their median and range are printed. Prompts and sounds differ from round
to round, so that no arm finds them in a cache. What a sound costs once weighs less in a longer
answer, so answers of several lengths are measured. Times are those of the process's own code on the
processor ("user"), of one thread, so that what else runs on the machine counts as little as can be.

Where in memory an engine's weights happen to lie is worth a few parts in a hundred: two plain
engines in one process differ by as much. So both are started anew several times, in turns the one
and the other first.

    python benchmarks/serving_vllm.py runs/quickstart [--starts 4 --rounds 3 --tokens 24 96]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

RATE = 16_000
QUESTIONS = ("Which instrument is playing?", "What do you hear?", "Name a colour.", "Who are you?")
BASE = "base"
_FOUND = "seconds "


def main() -> None:
    """Start both engines again and again, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 96])
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start is not None:
        print(_FOUND + json.dumps(one_start(arguments)))
        return
    seconds: dict[str, list[float]] = {}
    for number in range(arguments.starts):
        command = [sys.executable, *sys.argv, "--start", str(number)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        line = next(one for one in shown.splitlines() if one.startswith(_FOUND))
        for name, each in json.loads(line.removeprefix(_FOUND)).items():
            seconds.setdefault(name, []).extend(each)
            print(number, name, [round(one, 2) for one in each])
    for name, each in seconds.items():
        arm, tokens = name.split()
        best = f"{arguments.requests * int(tokens) / min(each):.1f} tokens a second at best"
        ratios = sorted(a / b for a, b in zip(seconds[f"{BASE} {tokens}"], each, strict=True))
        told = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        beside = "" if arm == BASE else f"{told} of plain vLLM's throughput, {len(ratios)} rounds; "
        print(f"{arm}, answers of {tokens} tokens: {beside}{best}")


def one_start(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, by arm and length, with engines that are started for it."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    base_first = arguments.start % 2 == 0
    plain, listening = engines(arguments.adapter, arguments.max_batch, base_first=base_first)
    arms: dict[str, tuple[Any, Any]] = {
        BASE: (plain, None), "without": (listening, None), "hearing": (listening, 1)
    }  # fmt: skip
    if decides(arguments.adapter):
        arms["auto"] = (listening, "auto")
    each = [(length, name) for length in arguments.tokens for name in arms]
    seconds: dict[str, list[float]] = {f"{name} {length}": [] for length, name in each}
    for number in range(arguments.rounds + 1):
        for length, name in each if number % 2 else reversed(each):
            took = measured(arms[name], number, arguments.requests, length)
            if number:  # the first warms up
                seconds[f"{name} {length}"].append(took)
    return seconds


def engines(adapter: str, max_batch: int, *, base_first: bool) -> tuple[Any, Any]:
    """Plain vLLM on the base of an adapter, and vLLM on the adapter, in some order of starting."""
    from vllm import LLM

    from safe_framework.serving.vllm.arguments import engine_arguments, find_adapter

    folder = find_adapter(adapter)
    if folder is None:
        raise SystemExit(f"{adapter} is no adapter")
    options = {
        "max_num_seqs": max_batch, "distributed_executor_backend": "uni", "max_model_len": 512,
        "kv_cache_memory_bytes": 2**29, "enforce_eager": True,
    }  # fmt: skip
    own = engine_arguments(folder)
    plain = LLM(model=own["model"], dtype=own["dtype"], **options) if base_first else None
    listening = LLM(model=str(folder), **options)
    return plain or LLM(model=own["model"], dtype=own["dtype"], **options), listening


def decides(adapter: str) -> bool:
    """Whether an adapter has a relevance head that vLLM can follow."""
    from safe_framework.serving.vllm.adapter import load_adapter, sense_of_sounds
    from safe_framework.serving.vllm.arguments import find_adapter

    model = load_adapter(str(find_adapter(adapter)))
    modality = model.modality(sense_of_sounds(model))
    return modality.relevance is not None and modality.attend == "answer"


def measured(arm: tuple[Any, Any], number: int, requests: int, tokens: int) -> float:
    """Seconds of the processor in which all are answered, each to its last token.

    Args:
        arm: what answers, and the gate of a second of noise that each has; None for none.
        number: of the round.
        requests: how many.
        tokens: of an answer.
    """
    from vllm import SamplingParams

    llm, gate = arm
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    tokenizer, prompts = llm.get_tokenizer(), list[dict[str, Any]]()
    for one in range(requests):
        asked = f"{number} {one} {gate} {tokens}. {QUESTIONS[one % len(QUESTIONS)]}"
        chat = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        prompts.append({"prompt_token_ids": list(ids["input_ids"])})
        if gate is not None:
            drawn = np.random.default_rng((number, one, tokens))
            noise = drawn.normal(0, 0.1, RATE).astype(np.float32)
            prompts[-1]["multi_modal_data"] = {"audio": (noise, RATE)}
            prompts[-1]["mm_processor_kwargs"] = {"gate": gate}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    found = llm.generate(prompts, params, use_tqdm=False)
    took = resource.getrusage(resource.RUSAGE_SELF).ru_utime - start
    assert all(len(one.outputs[0].token_ids) == tokens for one in found)
    return took


if __name__ == "__main__":
    main()
