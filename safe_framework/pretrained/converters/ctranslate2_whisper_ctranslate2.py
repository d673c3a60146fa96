"""Reader of CTranslate2's binary models: named arrays, little-endian, without the library.

Layout: version, name of the specification, its revision; then the number of variables, each
with its name, shape, type and bytes; then the number of aliases, each with its name and that of
its variable. A name is preceded by its length, which counts the zero byte at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safe_framework.errors import CheckpointError

_VERSION = 6
_TYPES = tuple(np.dtype(name) for name in ("<f4", "i1", "<i2", "<i4", "<f2"))


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def array(self, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """Read numbers of one kind."""
        values = np.frombuffer(self._data, kind, count, self._place)
        self._place += values.nbytes
        return values

    def number(self, code: str) -> int:
        """Read one little-endian number, as ``struct`` codes it."""
        (value,) = struct.unpack_from("<" + code, self._data, self._place)
        self._place += struct.calcsize("<" + code)
        return int(value)

    def text(self) -> str:
        """Read a text, which its length precedes and a zero ends."""
        length = self.number("H")
        start, self._place = self._place, self._place + length
        return self._data[start : self._place - 1].decode()

    def at_end(self) -> bool:
        """Whether all has been read."""
        return self._place == len(self._data)


def read_variables(path: Path, specification: str) -> Mapping[str, npt.NDArray[Any]]:
    """Read every array of a model; an alias is the same array under another name.

    Args:
        path: a ``model.bin``.
        specification: what kind of model it must be, such as ``"WhisperSpec"``.

    Raises:
        CheckpointError: the file is truncated, of another format, or of another kind of model.
    """
    data = _Bytes(path.read_bytes())
    try:
        version, kind, _ = data.number("I"), data.text(), data.number("I")
        if (version, kind) != (_VERSION, specification):
            raise ValueError(f"version {version} of {kind}, not {_VERSION} of {specification}")
        variables = dict(_variable(data) for _ in range(data.number("I")))
        for _ in range(data.number("I")):
            alias = data.text()
            variables[alias] = variables[data.text()]
        if not data.at_end():
            raise ValueError("bytes are left over at the end")
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"`{path}` is not a whole CTranslate2 {specification}: {error}",
            hint="download it again",
        ) from error
    return variables


def _variable(data: _Bytes) -> tuple[str, npt.NDArray[Any]]:
    name = data.text()
    shape = [data.number("I") for _ in range(data.number("B"))]
    kind, size = _TYPES[data.number("B")], data.number("I")
    return name, data.array(kind, size // kind.itemsize).reshape(shape)
