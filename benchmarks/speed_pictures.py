"""What a modality costs a base that sees, with a picture in the call and without.

The base is a LLaVA whose language model has the shape of SmolLM2-135M and whose tower gives 64
patches, with random weights, which cost what trained ones do; nothing is downloaded. A call with a
picture is held against the bare base's same call, and what the modality adds to it against what it
adds to as many tokens of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from speed_measures import DECODE, OFF, calls_of, differing
from speed_model import MODALITY, TOKENS, Calls, trace_of, waken
from speed_rows import Row, amount, ratio
from speed_turns import Seconds, compare, taking_turns
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from safe_framework.core.model import SafeModel
from safe_framework.verification.target import MadeUpEncoder

SIDE, PATCH = 112, 14
PATCHES = (SIDE // PATCH) ** 2
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "vocab_size": 8192, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
"""Of SmolLM2-135M, but for a smaller vocabulary; and one to try it."""


def seeing_model(shape: str = "135m") -> SafeModel:
    """A LLaVA made from its config, with a modality that has an effect."""
    text = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, pad_token_id=0)
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=8, num_attention_heads=6,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    special: Any = {"pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base: nn.Module = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=1, **special)
        )
    model = SafeModel(base.eval())
    model.add_modality(MODALITY, **_parts(model))
    return waken(model).eval()


def _parts(model: SafeModel) -> dict[str, Any]:
    """A modality in the shape of the quickstart's, of made-up frames."""
    from safe_framework_plugins.fusion.lora import LoraFusion
    from safe_framework_plugins.projectors.standard import StandardProjector

    facts, encoder = model.facts(), MadeUpEncoder()
    projector = StandardProjector(encoder.dim, facts.hidden_size, tokens=TOKENS, hidden_dim=256)
    fusion = LoraFusion(facts, layers=[0.4, 0.55, 0.7, 0.8], rank=16, alpha=32.0)
    return {"encoder": encoder, "projector": projector, "fusion": fusion}


def with_picture(calls: Calls) -> Calls:
    """The same calls with a picture before the text."""
    text = calls.text
    device = text["input_ids"].device
    seen = torch.full((1, PATCHES), calls.model.base.config.image_token_id, device=device)
    ids = torch.cat([seen, text["input_ids"]], dim=1)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    pixels = pixels.to(next(calls.model.base.parameters()))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return attrs.evolve(calls, given=given)


def picture_rows(model: SafeModel, lengths: list[int], rounds: int) -> list[Row]:
    """Forward calls and steps of decoding with a picture, beside the bare base and beside text."""
    rows = operations(model, lengths[0])
    for length in lengths:
        rows += prefills(model, length, rounds)
    for length in lengths:
        rows += decodings(model, length, max(3, rounds // 2))
    return rows


def operations(model: SafeModel, length: int) -> list[Row]:
    """That off sends the base's operations, and what the modality adds, which no noise can move."""
    seen, read = _both(model, length)
    found = {
        "absent": trace_of(model, seen.text, model.base),
        "gate 0": trace_of(model, {**seen.text, **seen.sample, "gate": 0.0}, model.base),
    }
    base = trace_of(model.base, seen.text, model.base)
    rows = [
        Row(
            f"a picture, {way}: operations that differ", "base",
            float(bool(wrong := differing(trace, base))), 0, 0, wrong, most=0,
        )
        for way, trace in found.items()
    ]  # fmt: skip
    added = [_added_operations(calls) for calls in (seen, read)]
    return [
        *rows,
        amount("operations added, a picture", [added[0]], "operations"),
        Row("operations added, a picture", "as much text", added[0] / added[1], 0, 0, most=1.0),
    ]


def _added_operations(calls: Calls) -> float:
    base, model = calls.model.base, calls.model
    on = trace_of(model, {**calls.text, **calls.sample}, base)
    return float(len(on) - len(trace_of(base, calls.text, base)))


def prefills(model: SafeModel, length: int, rounds: int) -> list[Row]:
    """A forward call in each way, with a picture and with as many tokens of text."""
    seen, read = _both(model, length)
    arms = _named("picture", seen.ways()) | _named("text", read.ways())
    found = taking_turns(arms, rounds, warm_up=2)
    what = f"a picture and {length} tokens"
    return [
        *(
            ratio(f"{what}, {arm}", "base", _against(found, "picture", arm), most)
            for arm, most in (("absent", OFF), ("gate 0", OFF), ("on", None))
        ),
        amount(f"{what}, on, beyond the base", _beyond(found, "picture"), "ms"),
        amount(f"{read.length} tokens of text, on, beyond the base", _beyond(found, "text"), "ms"),
    ]


def decodings(model: SafeModel, length: int, rounds: int) -> list[Row]:
    """A step of decoding behind a picture and text, in each way."""
    seen, _ = _both(model, length)
    found = taking_turns(seen.decodings(12), rounds)
    what = f"after a picture and {length} tokens"
    return [
        ratio(f"{what}, {arm}", "base", compare(found, arm, "base"), most)
        for arm, most in (("absent", OFF), ("on", DECODE))
    ]


def _both(model: SafeModel, length: int) -> tuple[Calls, Calls]:
    """Calls with a picture, and with as many tokens of text alone."""
    seen = with_picture(calls_of(model, MODALITY, length))
    return seen, calls_of(model, MODALITY, PATCHES + length)


def _named(
    kind: str, arms: Mapping[str, Callable[[], None]]
) -> dict[str, Callable[[], float | None]]:
    return {f"{kind}, {name}": work for name, work in arms.items()}


def _against(found: Seconds, kind: str, arm: str) -> Any:
    return compare(found, f"{kind}, {arm}", f"{kind}, base")


def _beyond(found: Seconds, kind: str) -> list[float]:
    """Milliseconds that the modality takes beyond the base, round by round."""
    pairs = zip(found[f"{kind}, on"], found[f"{kind}, base"], strict=True)
    return [1000 * (on - base) for on, base in pairs]
