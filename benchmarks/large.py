"""Speed on a base of billions of parameters, which wants a GPU: what a modality costs it.

    python benchmarks/large.py --write-docs

The base has the shape of Llama 3.1 8B (its published configuration) and random weights, which cost
as much time as trained ones; nothing is downloaded. The arms and the table are those of speed.py.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from speed import write
from speed_measures import calls_of, certificate, decode, operation_rows, prefill, step_rows
from speed_model import TOKENS, waken
from speed_rows import Row, amount, shown
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from safe_framework.core.model import SafeModel
from safe_framework.verification.target import MadeUpEncoder

GROUPS = ("off", "prefill", "decode", "certificate")
MARKS = ("<!-- large -->", "<!-- /large -->")
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rope_theta": 500_000.0,
    },
    "tiny": {
        "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    },
}  # fmt: skip
"""Of https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json, and one to try it."""


def built(shape: str, device: str, kind: torch.dtype) -> tuple[SafeModel, list[Row]]:
    """The base of a shape in bfloat16, made where it lies, with a modality that has an effect.

    Args:
        shape: one of ``SHAPES``.
        device: of the base.
        kind: the numbers of projector and adapter.

    Returns:
        The model, and the rows of what attaching the modality took.
    """
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            base = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], pad_token_id=0)).eval()
        finally:
            torch.set_default_dtype(before)
    start = time.perf_counter()
    model = SafeModel(base)
    model.add_modality("touch", **_parts(model))
    took = amount("a modality attached to a base in memory", [time.perf_counter() - start], "s")
    waken(model).modality("touch").to(kind)
    return model.eval(), [took]


def _parts(model: SafeModel) -> dict[str, nn.Module]:
    from safe_framework_plugins.fusion.lora import LoraFusion
    from safe_framework_plugins.projectors.standard import StandardProjector

    facts, encoder = model.facts(), MadeUpEncoder()
    projector = StandardProjector(encoder.dim, facts.hidden_size, tokens=TOKENS, hidden_dim=256)
    fusion = LoraFusion(facts, layers=[0.4, 0.55, 0.7, 0.8], rank=16, alpha=32.0)
    return {"encoder": encoder, "projector": projector, "fusion": fusion}


def measured(
    model: SafeModel, wanted: Sequence[str], lengths: Sequence[int], rounds: int
) -> dict[str, list[Row]]:
    """The wanted groups of rows."""
    calls = {length: calls_of(model, "touch", length) for length in lengths}
    first = calls[lengths[0]]
    groups: Mapping[str, Callable[[], list[Row]]] = {
        "off": lambda: operation_rows(first),
        "prefill": lambda: [row for one in calls.values() for row in prefill(one, rounds)],
        "decode": lambda: [
            *step_rows(first),
            *(row for one in calls.values() for row in decode(one, rounds, steps=12)),
        ],
        "certificate": lambda: certificate(model),
    }
    return {name: groups[name]() for name in wanted}


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modality-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("runs/large.json"))
    parser.add_argument("--write-docs", action="store_true", help="put the table into speed.md")
    chosen = parser.parse_args()
    console, before = Console(width=120), os.getloadavg()[0]
    with torch.no_grad():
        model, attached = built(chosen.shape, chosen.device, getattr(torch, chosen.modality_dtype))
        rows = measured(model, chosen.groups, chosen.lengths, chosen.rounds)
    rows = {"attaching": attached, **rows}
    for name, found in rows.items():
        console.print(shown(name, found))
    write(rows, before, chosen.output, MARKS if chosen.write_docs else None)


if __name__ == "__main__":
    main()
