"""Checkpoints of the Hugging Face hub, whole in its cache on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from safe_framework.errors import CheckpointError

_WEIGHTS = ("*.safetensors", "*.bin")
"""Files of weights that transformers reads, the first kind that there is."""
_NOT_READ = (
    "*.bin", "*.ckpt", "*.gguf", "*.h5", "*.mlmodel", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot",
    "*.pt", "*.pth", "*.tflite", "onnx/*", "original/*",
)  # fmt: skip
"""The same weights in formats of others, which a checkpoint on the hub often holds as well."""


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint of the hub; what is missing of it is downloaded.

    Args:
        name: a hub id, ``owner/name``.
        revision: a branch, tag or commit; the main branch if None.

    Raises:
        CheckpointError: it does not exist, may not be read, cannot be reached, or holds no weights
            that can be read; the message says which.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, ignore_patterns=[*_NOT_READ]))
        if not any(folder.glob(_WEIGHTS[0])):
            snapshot_download(name, revision=revision, allow_patterns=[_WEIGHTS[1]])
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"`{name}` is gated: its owner lets in who accepts the terms",
            hint=f"accept them at https://huggingface.co/{name}, then `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"`{name}` has no revision `{revision}` on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no `{name}` on the hub, or it is private",
            hint="correct its name; of a private one, `hf auth login`",
        ) from error
    except OSError as error:  # no network, `HF_HUB_OFFLINE`, a full disk
        why = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"`{name}` is not whole on this machine, and cannot be downloaded: {why}",
            hint="connect to the hub, or name a folder that holds it",
        ) from error
    if missing := _missing(folder):
        raise CheckpointError(
            f"`{name}` is not ready in `{folder}`: {missing}",
            hint="connect to the hub and fetch it again",
        )
    return folder


def _missing(folder: Path) -> str:
    """What a checkpoint's folder lacks to be loaded; empty if nothing."""
    if not (folder / "config.json").is_file():
        return "it has no `config.json`"
    indices = [path for kind in _WEIGHTS for path in folder.glob(f"{kind}.index.json")]
    try:
        parts = {
            part
            for path in indices[:1]
            for part in json.loads(path.read_text("utf-8"))["weight_map"].values()
        }
    except (KeyError, ValueError) as error:
        return f"`{indices[0].name}` cannot be read: {error}"
    if lacking := sorted(part for part in parts if not (folder / part).is_file()):
        return f"{len(lacking)} of {len(parts)} files of weights are missing, as `{lacking[0]}`"
    if not any(any(folder.glob(kind)) for kind in _WEIGHTS):
        return "it has no weights in `.safetensors` or `.bin`"
    return ""
