"""What a retention method computes before the first step, kept beside the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from safe_framework.errors import DataError

Progress = Callable[[str, int, int], None]


def _silent(label: str, done: int, total: int) -> None:
    return None


class RetentionStore:
    """One safetensors file that is computed once, at the start of training.

    Args:
        path: of the file.
        made_for: gives what the content depends on, as fingerprints by name; a file that was
            made for anything else is refused. Only asked when the store is used.
        start: fingerprint of the adapter at the start of training; None where a run goes on from
            a later step: then the file must be there.
        progress: called with a label, how much is done and of how much.
    """

    def __init__(
        self,
        path: Path,
        made_for: Callable[[], Mapping[str, str]],
        *,
        start: str | None,
        progress: Progress = _silent,
    ) -> None:
        self.path, self.made_for, self.start = path, made_for, start
        self.progress = progress

    def once(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The file's tensors on the CPU, computed and written if there is no file yet.

        Raises:
            DataError: the file was made for something else, or a run goes on without it.
        """
        from safetensors.torch import load_file

        facts = dict(self.made_for())
        if not self.path.exists():
            if self.start is None:
                raise DataError(
                    f"`{self.path}` is missing, without which its run cannot go on",
                    hint="start anew with --no-resume",
                )
            self._write(compute(), facts)
        self._refuse_stale(facts)
        return load_file(self.path)

    def _write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Rename a whole file into place, so that a kill leaves none that is half."""
        from safetensors.torch import save_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        copies = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
        save_file(copies, part, metadata={**facts, "start": self.start or ""})
        os.replace(part, self.path)

    def _refuse_stale(self, facts: Mapping[str, str]) -> None:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            held = file.metadata() or {}
        wanted = {**facts} if self.start is None else {**facts, "start": self.start}
        if other := [name for name, value in wanted.items() if held.get(name) != value]:
            raise DataError(
                f"`{self.path}` is stale: it was made for another {' and another '.join(other)}",
                hint="start anew with --no-resume",
            )
