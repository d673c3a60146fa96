"""Whether a picture reaches the answer: asked of the zoo's types, and of models of recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.model import SafeModel
from safe_framework.verification.bench import Bench, frozen_state
from safe_framework.verification.calls import FORWARD, GREEDY, Call
from safe_framework.verification.outcome import Outcome, capture_outcome, difference
from tests.support.seeing import Base, picture, seeing_bases

WAYS = ("not given", "gate 0", "absent on each row")
"""To be off: without a sample, with one, and with a row's place for one."""
_PIXELS = ("pixel_values", "high_res_pixel_values", "flattened_patches")
_TYPES = {
    "llava": ["llava"],
    "llava_next": ["llava-next"],
    "blip-2": ["blip-2-opt", "blip-2-t5"],
    "instructblip": ["instructblip"],
    "qwen2_vl": ["qwen2-vl"],
    "qwen2_5_vl": ["qwen2.5-vl"],
    "qwen3_vl": ["qwen3-vl"],
    "smolvlm": ["smolvlm"],
    "idefics3": ["idefics3"],
    "gemma3": ["gemma3"],
    "paligemma": ["paligemma"],
    "internvl": ["internvl"],
    "florence2": ["florence2"],
    "mllama": ["mllama"],
}


def with_processor(model_type: str) -> list[Callable[[], Base]]:
    """What makes the tiny bases of a type that have their real processor; none for most types."""
    makers = seeing_bases()
    return [makers[name] for name in _TYPES.get(model_type, [])]


def question(model: Any, processor: Any, colour: str, rows: int = 2) -> dict[str, Any]:
    """What a base's own processor makes of questions about a picture of one colour."""
    text = "what is this"
    if processor.chat_template:
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}])
    pictures = [[picture(colour)]] * rows
    batch = dict(processor(text=[text] * rows, images=pictures, return_tensors="pt"))
    batch.pop("labels", None)  # PaliGemma's, of its own questions
    if decodes_separately(model):
        batch["decoder_input_ids"] = batch["input_ids"][:, -2:]
    return batch


def another_picture(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs with other pixels in each place; None where there are none."""
    pixels = {name: inputs[name] for name in _PIXELS if name in inputs}
    # Ones stay: what `flattened_patches` begins with is where a patch lies.
    other = {name: torch.where(value == 1, value, -value) for name, value in pixels.items()}
    return {**inputs, **other} if pixels else None


def moves(base: Any, first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the base itself gives other logits for another picture."""
    said = [capture_outcome(base, inputs).starting_with("logits") for inputs in (first, other)]
    return bool(said[0].leaves) and bool(difference(*said))


def problems(model: SafeModel, first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a picture from reaching the answer, or the base's own answer from being given.

    Another picture must change the logits with the sense on, off and absent. Off and absent must
    give bit for bit what the base gives for that picture: logits and greedy tokens.

    Args:
        model: with a sense that is heard.
        first: keyword arguments of a call of the base, and of its samples if it is to have some
            of its own.
        other: the same with another picture.
    """
    with frozen_state(model):
        benches = [Bench.of(model, first), Bench.of(model, other)]
        yield from _unmoved("of the base", [bench.run_base(FORWARD) for bench in benches])
        yield from _unmoved("with the sense on", [bench.run_on(FORWARD) for bench in benches])
        for way in WAYS:
            off = [bench.run_off(FORWARD, way) for bench in benches]
            yield from _unmoved(f"with the sense off ({way})", off)
            for bench in benches:
                yield from _not_the_bases(bench, FORWARD, way)
                yield from _not_the_bases(bench, GREEDY, way)


def _unmoved(when: str, outcomes: list[Outcome]) -> Iterator[str]:
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        yield f"{when}: {errors[0].splitlines()[0]}"
        return
    first, other = (outcome.starting_with("logits") for outcome in outcomes)
    if not first.leaves or not difference(first, other):
        yield f"another picture gives the same logits {when}"


def _not_the_bases(bench: Bench, call: Call, way: str) -> Iterator[str]:
    base = bench.run_base(call)
    if found := difference(bench.run_off(call, way), base):
        yield f"off ({way}) is not the base, {call.name}: {found}"
