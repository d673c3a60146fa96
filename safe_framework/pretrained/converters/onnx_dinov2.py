"""Reader of ONNX models without the library: their arrays, and which operation uses each.

An ONNX file is one Protocol Buffers message (onnx/onnx.proto): a record of numbered fields, each
a varint, a fixed number of bytes, or bytes with their length. Only what holds arrays is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from safe_framework.errors import CheckpointError

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
