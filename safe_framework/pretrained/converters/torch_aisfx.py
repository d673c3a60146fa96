"""aiSFX as its package stores it, as a checkpoint folder with the batch norms in its convolutions.

The file is a pickle of two: the tensors, and how many classes each library of sounds has. Only
tensors and numbers are unpickled, and of the tensors the network's without its classifiers.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_NETWORK = re.compile(r"embedding_net\.conv_block(\d+)\.conv([12])\.weight")
_EPSILON = 1e-5  # of the batch norms


def write_aisfx(path: Path, folder: Path) -> None:
    """Write the network to a folder.

    Args:
        path: the file ``checkpoint.pth`` of the package.
        folder: where ``config.json`` and ``model.safetensors`` are written.

    Raises:
        CheckpointError: the file holds something else.
    """
    from safetensors.torch import save_file

    stored = _tensors(path)
    found = {}
    for name in stored:
        if match := _NETWORK.fullmatch(name):
            block, number = int(match[1]), int(match[2])
            kernel, bias = _merged(stored, f"embedding_net.conv_block{block}", number)
            found[f"blocks.{block - 1}.{number - 1}.weight"] = kernel
            found[f"blocks.{block - 1}.{number - 1}.bias"] = bias
    if not found:
        raise CheckpointError(f"`{path}` holds no network of aiSFX")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    channels = [len(found[f"blocks.{place}.1.bias"]) for place in range(len(found) // 4)]
    config = {"model_type": "aisfx", "channels": channels}
    (folder / "config.json").write_text(json.dumps(config) + "\n", "utf-8")


def _tensors(path: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        with torch.serialization.safe_globals(_numbers()):
            tensors, _ = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"`{path}` is not aiSFX: it is no pickle of tensors and numbers alone",
            hint="download it again",
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"`{path}` is not aiSFX: {why}", hint="download it again") from error
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"`{path}` holds no network of aiSFX")
    return tensors


def _numbers() -> list[Any]:
    """What unpickles the numbers of NumPy that stand beside the tensors."""
    import numpy as np

    scalar = np.int64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # NumPy 1 and 2
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.int64))]


def _merged(stored: Mapping[str, Tensor], block: str, number: int) -> tuple[Tensor, Tensor]:
    """A convolution that does what it and the batch norm behind it do in evaluation mode."""
    kernel = stored[f"{block}.conv{number}.weight"].double()
    scale, shift, mean, variance = (
        stored[f"{block}.bn{number}.{part}"].double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + _EPSILON).sqrt()
    merged = kernel * factor[:, None, None, None]
    return merged.float(), (shift - mean * factor).float()
