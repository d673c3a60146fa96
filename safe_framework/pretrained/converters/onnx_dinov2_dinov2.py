"""A DINOv2 backbone inside an exported ONNX model, as a checkpoint folder of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.converters.onnx_dinov2 import Graph, read_graph
from safe_framework.utils.quiet import quietly

if TYPE_CHECKING:
    from transformers import Dinov2Model

_PREFIX = "backbone."
_HEAD_DIM = 64  # of every DINOv2
_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""How DINOv2 is shown pictures: transformers' facts of the same checkpoint."""


def write_dinov2(source: Path, target: Path) -> None:
    """Write the backbone and its processor's facts into the existing folder ``target``.

    Raises:
        CheckpointError: the file is not ONNX, or holds no DINOv2 called ``backbone``.
    """
    graph = read_graph(source)
    try:
        model = _model(dict(_arrays(graph)))
    except (KeyError, ValueError, RuntimeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"`{source}` is not a DINOv2 that can be read: {why}") from error
    with quietly():
        model.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=2), "utf-8")


def _arrays(graph: Graph) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every parameter under the name that transformers gives it.

    An export keeps the names of biases and norms. It stores a linear layer's weight transposed
    and without a name: the operation that uses it has the layer's.
    """
    positions = {}
    for name, array in graph.arrays.items():
        if name.startswith(_PREFIX):
            yield name.removeprefix(_PREFIX), array
    for node in graph.nodes:
        parts = node.name.strip("/").split("/")
        stored = [graph.arrays[name] for name in node.inputs if name in graph.arrays]
        if parts[0] != _PREFIX[:-1] or len(stored) != 1:
            continue
        if node.operation == "MatMul":
            yield ".".join((*parts[1:-1], "weight")), stored[0].T
        elif parts[1] == "embeddings" and stored[0].ndim == 3:
            positions[node.operation] = stored[0]  # (1, positions, hidden)
    both = (positions["Concat"], positions["Reshape"])  # of the class token, of the patches
    yield "embeddings.position_embeddings", np.concatenate(both, axis=1)


def _model(arrays: Mapping[str, npt.NDArray[Any]]) -> Dinov2Model:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    weight = arrays["embeddings.patch_embeddings.projection.weight"]
    hidden, _, patch, _ = weight.shape
    layers = {m[1] for name in arrays if (m := re.match(r"encoder\.layer\.(\d+)\.", name))}
    side = round((arrays["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, hidden // _HEAD_DIM),
        mlp_ratio=len(arrays["encoder.layer.0.mlp.fc1.bias"]) // hidden,
        image_size=side * patch,
        patch_size=patch,
    )
    with torch.random.fork_rng(devices=[]):  # its random start is not the caller's to pay for
        model = Dinov2Model(config)
    state = {
        name: torch.from_numpy(np.array(array, np.float32, order="C"))
        for name, array in arrays.items()
    }
    state["embeddings.mask_token"] = torch.zeros(1, hidden)  # for its pretraining alone
    model.load_state_dict(_renamed(state, model))
    return model


def _renamed(state: Mapping[str, Any], model: Dinov2Model) -> Mapping[str, Any]:
    """The names of the installed transformers, whose attention projections were renamed."""
    known = model.state_dict().keys()
    found = {}
    for name, tensor in state.items():
        newer = re.sub(r"\.attention\.attention\.(query|key|value)\.", _short, name)
        newer = newer.replace(".attention.output.dense.", ".attention.o_proj.")
        found[name if name in known else newer] = tensor
    return found


def _short(match: re.Match[str]) -> str:
    return f".attention.{match[1][0]}_proj."
