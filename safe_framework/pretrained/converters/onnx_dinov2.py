"""A DINOv2 backbone inside an exported ONNX model, as a checkpoint folder of transformers.

The library of ONNX is not needed. A file is one Protocol Buffers message (onnx/onnx.proto): a
record of numbered fields, each a varint, a fixed number of bytes, or bytes with their length. Only
what holds arrays is read, and which operation uses each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from safe_framework.errors import CheckpointError
from safe_framework.utils.quiet import quietly

if TYPE_CHECKING:
    from transformers import Dinov2Model


_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _NAME, _OPERATION = 1, 3, 4
_DIMENSIONS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}


@attrs.frozen(eq=False)
class Node:
    """One operation.

    Attributes:
        name: its path, such as ``/encoder/layer.0/MatMul``.
        operation: its kind, such as ``"MatMul"``.
        inputs: names of the values that it takes.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]


@attrs.frozen(eq=False)
class Graph:
    """What a model is made of.

    Attributes:
        nodes: the operations, in the order in which they run.
        arrays: the stored arrays by name.
    """

    nodes: tuple[Node, ...]
    arrays: Mapping[str, npt.NDArray[Any]]


def read_graph(path: Path) -> Graph:
    """Read the graph of a model.

    Raises:
        CheckpointError: the file is truncated or of another format.
    """
    try:
        model = _Fields(memoryview(path.read_bytes()))
        (graph,) = (_Fields(value) for value in model[_GRAPH])
        nodes = tuple(_node(_Fields(value)) for value in graph[_NODE])
        arrays = dict(_array(_Fields(value)) for value in graph[_INITIALIZER])
        if not arrays:
            raise ValueError("it holds no arrays")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is not a whole ONNX model: {error}", hint="download it again"
        ) from error
    return Graph(nodes, arrays)


class _Fields:
    """The fields of a message by number; a field that repeats has several values."""

    def __init__(self, data: memoryview) -> None:
        self._held: dict[int, list[Any]] = {}
        for number, value in _fields(data):
            self._held.setdefault(number, []).append(value)

    def __getitem__(self, number: int) -> list[Any]:
        return self._held.get(number, [])

    def text(self, number: int) -> str:
        """The last value of a field as text; empty without any."""
        return bytes(self[number][-1]).decode() if self[number] else ""


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place + length > len(data):
            raise ValueError(f"it ends {place + length - len(data)} bytes too early")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _node(fields: _Fields) -> Node:
    inputs = tuple(bytes(value).decode() for value in fields[_INPUT])
    return Node(fields.text(_NAME), fields.text(_OPERATION), inputs)


def _array(fields: _Fields) -> tuple[str, npt.NDArray[Any]]:
    name, kind = fields.text(_TENSOR_NAME), fields[_TYPE][-1]
    if kind not in _TYPES:
        raise ValueError(f"`{name}` holds numbers of the unknown type {kind}")
    if not fields[_RAW]:
        raise ValueError(f"`{name}` is not stored as raw bytes")
    shape = [size for value in fields[_DIMENSIONS] for size in _dimensions(value)]
    return name, np.frombuffer(fields[_RAW][-1], _TYPES[kind]).reshape(shape)


def _dimensions(value: Any) -> Iterator[int]:
    """One number, or several packed into bytes."""
    if isinstance(value, int):
        yield value
        return
    place = 0
    while place < len(value):
        size, place = _varint(value, place)
        yield size


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
