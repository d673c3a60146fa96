"""What the speed benchmark measures: calls, memory, loading, starting, and the certificate."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speed_model import (
    MANY_TOKENS,
    MODALITY,
    TOKENS,
    Calls,
    recipe_of,
    step_costs,
    trace_of,
    waken,
)
from speed_rows import Row, amount, ratio
from speed_turns import Seconds, compare, taking_turns

from safe_framework.config.schema import Recipe
from safe_framework.core.build import build, load
from safe_framework.core.model import SafeModel
from safe_framework.pretrained import quietly, resolve
from safe_framework.pretrained.base_model import load_base
from safe_framework.verification.outcome import Operation, trace_difference
from safe_framework.verification.verify import verify

OFF, PREFILL, DECODE, BUILD, LOAD = 1.02, 1.08, 1.06, 1.1, 0.3
"""Targets, with 8 tokens fused at 4 layers of a base of 135 million parameters, on two cores."""
_TARGET_LENGTH = 128
_OTHER = f"prefix of {MANY_TOKENS}"


def prefill(calls: Calls, rounds: int) -> list[Row]:
    """A forward call in each way."""
    found = taking_turns(calls.prefills(), rounds, warm_up=2)
    what, target = f"{calls.length} tokens", calls.length == _TARGET_LENGTH
    rows = [
        ratio(f"{what}, {arm}", "base", compare(found, arm, "base"), _most(arm, target))
        for arm in found
        if arm != "base"
    ]
    against = compare(found, "on", _OTHER)
    return [*rows, ratio(f"{what}, on", _OTHER, against, 1.0 if target else None)]


def _most(arm: str, target: bool) -> float | None:
    if arm in ("absent", "gate 0"):
        return OFF
    return PREFILL if arm == "on" and target else None


def decode(calls: Calls, rounds: int, steps: int) -> list[Row]:
    """A step of decoding in each way, and what it costs whatever the machine does."""
    found = taking_turns(calls.decodings(steps), rounds)
    return [
        ratio(f"after {calls.length} tokens, {arm}", "base", compare(found, arm, "base"), most)
        for arm, most in (("absent", OFF), ("on", DECODE))
    ]


def step_rows(calls: Calls) -> list[Row]:
    """What a step of decoding sends to torch and to Python's interpreter."""
    ways: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
        "base": (calls.model.base.generate, {}),
        "absent": (calls.model.generate, {}),
        "on": (calls.model.generate, calls.sample),
    }
    rows = []
    for arm, (generate, more) in ways.items():
        cost = step_costs(calls, generate, more)
        rows += [
            amount(f"a step, {arm}", [cost.operations], "operations"),
            amount(f"a step, {arm}", [cost.frames], "functions entered"),
        ]
    return rows


def same_operations(calls: Calls) -> dict[str, str]:
    """Of each way to be off, the first operation that is not the base's; empty if none."""
    text, base = calls.text, calls.model.base
    wanted = trace_of(base, text, base)
    absent = trace_of(calls.model, text, base)
    closed = trace_of(calls.model, {**text, **calls.sample, "gate": 0.0}, base)
    return {"absent": differing(absent, wanted), "gate 0": differing(closed, wanted)}


def differing(seen: Sequence[Operation], wanted: Sequence[Operation]) -> str:
    """The first difference of two traces; empty if there is none.

    Raises:
        RuntimeError: nothing was traced, so that nothing was compared.
    """
    if not wanted:
        raise RuntimeError("the base's call sent no operation to torch")
    return trace_difference(seen, wanted)


def operation_rows(calls: Calls) -> list[Row]:
    """Whether each way to be off sends torch what the base does."""
    return [
        Row(f"{way}: operations that differ", "base", float(bool(found)), 0, 0, found, most=0)
        for way, found in same_operations(calls).items()
    ]


def encoding(model: SafeModel, name: str, sample: Any, rounds: int) -> list[Row]:
    """What the encoder takes for a sample, which every form of the modality pays alike."""
    found = taking_turns({"encoder": lambda: _done(model.encode(name, [sample]))}, rounds)
    return [amount("encoder, one sample", found["encoder"], "s")]


MEMORY_ARMS = ("base", "on", f"prefix of {TOKENS}", _OTHER)


def memory(length: int, child: Callable[[str, int], Mapping[str, float]]) -> list[Row]:
    """Peak memory of processes that make one call each, of the base alone and of each form."""
    found = {arm: child(arm, length) for arm in MEMORY_ARMS}
    unwrapped = found["base"]["peak"]
    rows = [amount(f"base, {length} tokens", [unwrapped], "MiB")]
    for arm in MEMORY_ARMS[1:]:
        peak = found[arm]["peak"]
        rows.append(Row(f"{arm}, {length} tokens", "base", peak / unwrapped, 0, 0))
        rows.append(amount(f"{arm}, {length} tokens, beyond the base", [peak - unwrapped], "MiB"))
    return rows


def memory_of(arm: str, length: int) -> dict[str, float]:
    """Peak memory of this process in MiB, once it has made the call of one arm."""
    recipe = recipe_of()
    with torch.no_grad():
        if arm == "base":
            base, _ = load_base(recipe.base)
            ids = torch.randint(5, 1000, (1, length))
            base(input_ids=ids, attention_mask=torch.ones_like(ids))
        else:
            calls_of(waken(build(recipe)), "audio", length).prefills()[arm]()
    return {"peak": _peak()}


def _peak() -> float:
    """Most memory that this process has held, in MiB.

    Where the system reports it, it is the program's alone: ``getrusage`` counts what the process
    held before it became this program, which is as much as its parent did.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text("utf-8").splitlines() if x.startswith("VmHWM:"))
        return float(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def calls_of(model: SafeModel, name: str, length: int) -> Calls:
    """Calls of a model, and a wider projector of its kind for the prefix."""
    from safe_framework_plugins.projectors.standard import StandardProjector

    dim = model.modality(name).encoder.dim
    wide = StandardProjector(dim, model.stack.hidden_size, tokens=MANY_TOKENS, hidden_dim=256)
    like = next(model.modality(name).projector.parameters())
    return Calls(model, name, length, wide.eval().to(like))


def loading(recipe: Recipe, rounds: int) -> list[Row]:
    """Building, loading and saving, against loading the pretrained parts alone."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "adapter")
        first = time.perf_counter()
        model = build(recipe)
        first = time.perf_counter() - first
        waken(model).save_pretrained(folder)
        arms: dict[str, Callable[[], float | None]] = {
            "base": lambda: _making(lambda: load_base(recipe.base)),
            "parts": lambda: _making(lambda: (load_base(recipe.base), whisper_of(recipe))),
            "build": lambda: _making(lambda: build(recipe)),
            "load": lambda: _making(lambda: load(folder)),
            "load on base": lambda: _on_base(folder, model),
            "save": lambda: _making(lambda: model.save_pretrained(folder)),
        }
        with quietly():
            found = taking_turns(arms, rounds)
    beyond = _differences(found, "load", "base")
    return [
        amount("base alone", found["base"], "s"),
        ratio("build", "base and encoder alone", compare(found, "build", "parts"), BUILD),
        amount("first build in this process", [first], "s"),
        amount("load of an adapter beyond its base", beyond, "s", LOAD),
        amount("load on a base in memory, whose weights are hashed", found["load on base"], "s"),
        amount("save", found["save"], "s"),
    ]


def whisper_of(recipe: Recipe) -> tuple[Any, Any]:
    """The whole Whisper and its feature extractor, as one would load them without us."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    path = resolve(recipe.modalities[MODALITY].encoder.options["model"])
    return WhisperModel.from_pretrained(path), WhisperFeatureExtractor.from_pretrained(path)


def _making(make: Callable[[], object]) -> float:
    """Seconds in which something is made; what the turn before left is collected first."""
    gc.collect()
    start = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - start
    del made
    return seconds


def _on_base(folder: Path, model: SafeModel) -> float:
    """Seconds of a load on a base that somebody else has loaded."""
    gc.collect()
    start = time.perf_counter()
    loaded = load(folder, base=model.base, tokenizer=model.tokenizer)
    seconds = time.perf_counter() - start
    for name in list(loaded.modalities):
        loaded.remove_modality(name)
    return seconds


def _differences(found: Seconds, arm: str, other: str) -> list[float]:
    return [own - less for own, less in zip(found[arm], found[other], strict=True)]


_COMMANDS: Mapping[str, Sequence[str]] = {
    "python": ("-c", ""),
    "import torch": ("-c", "import torch"),
    "import transformers and its Llama": (
        "-c", "from transformers.models.llama import modeling_llama",
    ),
    "import safe_framework": ("-c", "import safe_framework"),
    "safe --help": ("-m", "safe_framework.cli", "--help"),
}  # fmt: skip


def starting(rounds: int) -> list[Row]:
    """Processes of Python that import or show the help."""
    arms: dict[str, Callable[[], None]] = {
        name: lambda words=words: _ran(words) for name, words in _COMMANDS.items()
    }
    found = taking_turns(arms, rounds)
    rows = [amount(name, found[name], "s") for name in arms]
    for own in ("import safe_framework", "safe --help"):
        rows.append(ratio(own, "import torch", compare(found, own, "import torch")))
    return rows


def _ran(words: Sequence[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def certificate(model: SafeModel) -> list[Row]:
    """The certificate that compares some of its calls, against one call of the base.

    Raises:
        RuntimeError: a law does not hold.
    """
    start = time.perf_counter()
    if not verify(model, calls="quick").holds:
        raise RuntimeError("the certificate does not hold; see `safe verify`")
    return [amount("safe verify --quick", [time.perf_counter() - start], "s")]


def in_child(arm: str, length: int, script: str) -> dict[str, float]:
    """What ``memory_of`` finds in a process of its own."""
    words = [sys.executable, script, "--memory-of", arm, "--lengths", str(length)]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def _done(made: object) -> None:
    """Let go of what was made."""
    del made
