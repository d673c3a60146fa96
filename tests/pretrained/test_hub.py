"""Checkpoints of the hub: whole on this machine, or an error that says what is wrong.

The hub itself is a stand-in for the one function of ``huggingface_hub`` that is called; its errors
are the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.hub import download

SINGLE = {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "{}"}
INDEX = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
SHARDED = {
    "config.json": "{}",
    "m-1.safetensors": "1",
    "m-2.safetensors": "2",
    "model.safetensors.index.json": INDEX,
}
OTHERS = {"pytorch_model.bin": "w", "onnx/model.onnx": "w", "model.gguf": "w", "tf_model.h5": "w"}


class Hub:
    """A repository's files, and the cache into which ``snapshot_download`` puts them."""

    def __init__(self, cache: Path, files: dict[str, str]) -> None:
        self.cache, self.files, self.revisions = cache, files, set[str | None]()

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        ignore_patterns: list[str] | None = None,
    ) -> str:
        """As huggingface_hub's: the folder of the snapshot, with what the patterns take."""
        self.revisions.add(revision)
        for name, content in self.files.items():
            wanted = allow_patterns is None or any(fnmatch(name, one) for one in allow_patterns)
            if wanted and not any(fnmatch(name, one) for one in ignore_patterns or ()):
                path = self.cache / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Hub]:
    """Makes the hub hold one repository of these files."""

    def holding(files: dict[str, str]) -> Hub:
        found = Hub(tmp_path / "cache", files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
        return found

    return holding


@pytest.mark.parametrize("files", [SINGLE, SHARDED], ids=["one file", "parts"])
def test_a_checkpoint_is_downloaded_without_what_is_not_read(
    hub: Any, files: dict[str, str]
) -> None:
    """Law: safetensors and all beside them come, weights in formats of others do not."""
    there = hub({**files, **OTHERS})
    folder = download("owner/name", "v1")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*files}
    assert there.revisions == {"v1"}


def test_without_safetensors_the_bin_is_taken(hub: Any) -> None:
    """Law: a checkpoint of an older kind is ready too."""
    hub({"config.json": "{}", **OTHERS})
    assert (download("owner/name") / "pytorch_model.bin").is_file()


NOT_READY = [
    ({"model.safetensors": "w"}, "it has no `config.json`"),
    ({"config.json": "{}", "model.gguf": "w"}, "it has no weights in `.safetensors` or `.bin`"),
    (
        {key: value for key, value in SHARDED.items() if key != "m-2.safetensors"},
        "1 of 2 files of weights are missing, as `m-2.safetensors`",
    ),
    ({**SHARDED, "model.safetensors.index.json": "{"}, "`model.safetensors.index.json` cannot"),
]


@pytest.mark.parametrize(("files", "why"), NOT_READY)
def test_a_checkpoint_that_cannot_be_loaded_is_not_ready(
    hub: Any, files: dict[str, str], why: str
) -> None:
    """Law: what lacks its config or some weights is an error that says so."""
    hub(files)
    with pytest.raises(CheckpointError, match="`owner/name` is not ready in") as caught:
        download("owner/name")
    assert why in str(caught.value)


def _http(kind: type[Exception]) -> Exception:
    """The error without the answer of a server, which each version takes of another library."""
    found = kind.__new__(kind)
    found.args = ("no",)
    return found


REFUSALS = [
    (_http(errors.GatedRepoError), "is gated", "hf auth login"),
    (_http(errors.RepositoryNotFoundError), "there is no `owner/name` on the hub", "correct"),
    (_http(errors.RevisionNotFoundError), "has no revision `v9` on the hub", ""),
    (errors.LocalEntryNotFoundError("no connection"), "cannot be downloaded: no con", "connect"),
    (errors.OfflineModeIsEnabled("offline"), "cannot be downloaded: offline", "connect"),
    (OSError(28, "No space left on device"), "No space left on device", "connect"),
]


@pytest.mark.parametrize(("error", "told", "hint"), REFUSALS)
def test_what_the_hub_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, hint: str
) -> None:
    """Law: each of the hub's errors becomes one that says what is wrong and what to do."""

    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError) as caught:
        download("owner/name", "v9")
    assert told in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.__cause__ is error


@pytest.mark.slow
def test_fetching_without_a_network_fails(tmp_path: Path) -> None:
    """Law: the command exits 1 by the real library where a hub id is not here, and names it."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "SAFE_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "safe_framework.cli", "fetch", "owner/nowhere"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **offline}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("`owner/nowhere` is not whole on this machine")
    assert "Traceback" not in done.stderr
