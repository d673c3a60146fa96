"""How far a run with ``nullspace`` moved what each constrained layer gives on retention inputs.

Measured without the method's own arithmetic: the model is run on the retention texts with the
weights of the start and with the trained ones, and the outputs of each layer are compared, so
that a layer's inputs come from the other layers as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import safe_framework
from safe_framework.config.read import read_recipe
from safe_framework.core.model import SafeModel
from safe_framework.data.examples import read_examples
from safe_framework.evaluation.answers import model_inputs
from safe_framework.runs.run import CHECKPOINTS
from safe_framework.training.retention.counterfactual import RetentionExamples
from safe_framework.training.setup import frame_stores, make_retention
from safe_framework.utils.run_folder import ADAPTER


@torch.no_grad()
def null_space_change(run: Path) -> dict[str, dict[str, float]]:
    """By layer: ``inputs``, ``free`` directions, and root mean squares of its outputs.

    ``before`` and ``change`` are on the retention inputs of training, ``task`` is what the trained
    layer gives on test samples. ``relative`` is ``change`` over the larger of ``before`` and
    ``task``: the outputs of a pair that was silent at the start have no size of their own.
    """
    kept = load_file(run / CHECKPOINTS / "retention-0.safetensors")
    recipe = read_recipe(run.with_suffix(".toml"))
    model = safe_framework.load(run / ADAPTER)
    encoders = model.encoders
    files, prompt = recipe.data_files(), model.processor.template
    train = read_examples(files["train"], encoders, prompt)
    test = read_examples(files["test"], encoders, prompt)
    stores = frame_stores(model, recipe)
    retention = make_retention(model, recipe, train, stores, model.tokenizer.eos_token_id)
    assert retention is not None
    texts = RetentionExamples(retention, retention.methods[0].method.counterfactual)
    task = [model_inputs(model, [row.prompt], [row.samples]) for row in test]
    layers = {name.removeprefix("free."): free for name, free in kept.items() if "free." in name}

    trained = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    start = {name: kept[f"start.{name}"] for name in trained}
    after, wanted = _outputs(model, layers, texts), _outputs(model, layers, task)
    _set(model, start)
    before = _outputs(model, layers, texts)
    _set(model, trained)
    return {
        name: _compared(before[name], after[name], wanted[name], free)
        for name, free in layers.items()
    }


def _compared(before: Tensor, after: Tensor, task: Tensor, free: Tensor) -> dict[str, float]:
    change, was, gives = (_size(tensor) for tensor in (after - before, before, task))
    return {
        "inputs": len(free),
        "free": free.shape[1],
        "before": was,
        "task": gives,
        "change": change,
        "relative": change / max(was, gives) if change else 0.0,
    }


def _size(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def _set(model: SafeModel, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.trainable_parameters().items():
        parameter.copy_(weights[name])


def _outputs(
    model: SafeModel, layers: Iterable[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """What each layer gives over all batches, (positions, outputs)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keeping(name: str) -> Any:
        return lambda layer, given, out: seen[name].append(out.cpu().flatten(0, -2))

    hooks = [
        model.modalities.get_submodule(name).register_forward_hook(keeping(name)) for name in seen
    ]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}
