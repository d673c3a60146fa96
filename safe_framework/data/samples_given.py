"""A sample as somebody hands it over: a file's name, a mapping, an array, or a finished sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_framework.data.samples import named_file, read_sample
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Sample


def given_sample(name: str, value: Any, encoder: Encoder) -> Sample:
    """What the encoder takes, read from a file where a file is named.

    Args:
        name: of the modality.
        value: a path, ``{"path": ...}``, ``{"bytes": ...}``, an ``{"array": ...}`` with its
            ``sampling_rate``, or what the processor takes, which is left as it is.
        encoder: the modality's own, to whose rate sound is resampled.

    Raises:
        SampleError: it is at an address of the network, which is not looked up.
        DataError: it cannot be read.
    """
    if isinstance(value, str) and "://" in value:
        scheme, _, place = value.partition("://")
        if scheme != "file":
            raise SampleError(
                f"`{name}` is at `{value}`, which is not read from the network",
                hint="download it and give its path",
            )
        value = place
    if not isinstance(value, (str, Path, Mapping)):
        return value
    source = value if isinstance(value, Path) else named_file(value, name, Path(), f"`{name}`")
    return read_sample(source, encoder.sampling_rate, f"`{name}`")
