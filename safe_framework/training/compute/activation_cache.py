"""Hidden states of the frozen base for fixed texts, computed once and kept on disk.

Texts are run in fixed groups of similar length, whichever is asked for first: the last bits of a
row depend on the other rows of its batch, and a resumed run must find the same ones. A file is
named by everything that its content depends on, so none is ever stale; it is mapped into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import FINAL, PREFIX, has_plain_head, run_until
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.pretrained.location import cache_folder
from safe_framework.training.compute.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import fingerprint, text_fingerprint
from safe_framework.utils.progress import ProgressCallback

GROUP_SIZE = 16
Activations = Mapping[str, Tensor]
Compute = Callable[[Tensor, Tensor], Activations]
Rows = Sequence[Sequence[int]]
_GIB = 2**30


class ActivationStore:
    """Hidden states of texts by kind, one entry for each text.

    Args:
        rows: token ids of each text; a repeated text is stored once.
        compute: gives states (batch, length, hidden) by kind, from padded ids and their mask.
        kinds: names of the states.
        folder: where they are stored; shared by all runs of the same base.
        pad: id of padding.
    """

    def __init__(
        self,
        rows: Rows,
        compute: Compute,
        kinds: Sequence[str],
        folder: Path,
        pad: int,
    ) -> None:
        self.compute, self.kinds, self.folder, self.pad = compute, tuple(kinds), folder, pad
        unique = sorted({tuple(row) for row in rows}, key=lambda row: (len(row), row))
        self._groups = [unique[i : i + GROUP_SIZE] for i in range(0, len(unique), GROUP_SIZE)]
        self._group_of = {row: n for n, group in enumerate(self._groups) for row in group}
        self._loaded: dict[tuple[int, ...], Activations] = {}

    def precompute(
        self,
        needed: Collection[Sequence[int]],
        label: str,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Compute what is missing for the texts that will be asked for."""
        numbers = sorted({self._group_of[tuple(row)] for row in needed})
        for done, number in enumerate(numbers, start=1):
            self._load(number)
            if progress:
                progress(label, done, len(numbers))

    def of(self, rows: Rows) -> list[Activations]:
        """The states of each text, (length, hidden) by kind, without padding.

        Raises:
            KeyError: the store has no such text.
        """
        found = []
        for row in map(tuple, rows):
            if row not in self._loaded:
                self._load(self._group_of[row])
            found.append(self._loaded[row])
        return found

    @property
    def token_count(self) -> int:
        """Tokens of all texts together, each text counted once."""
        return sum(len(row) for group in self._groups for row in group)

    def contains(self, rows: Rows) -> bool:
        """Whether the store has each of the texts, computed already or not."""
        return all(tuple(row) in self._group_of for row in rows)

    def derive(self, name: str, compute: Callable[[Activations], Activations]) -> ActivationStore:
        """A store of what is computed from the states of this one.

        Args:
            name: distinguishes it from others that are computed from the same states.
            compute: computes it from the states of some texts, one token after another.
        """

        def grouped(ids: Tensor, mask: Tensor) -> Activations:
            """What is computed from the texts of a group, padded as they are."""
            rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
            states, lengths = self.of(rows), [len(row) for row in rows]
            derived = compute({kind: torch.cat([s[kind] for s in states]) for kind in self.kinds})
            return {
                kind: nn.utils.rnn.pad_sequence(list(torch.split(whole, lengths)), batch_first=True)
                for kind, whole in derived.items()
            }

        rows = [row for group in self._groups for row in group]
        folder = self.folder.with_name(text_fingerprint([self.folder.name, name])[:32])
        return ActivationStore(rows, grouped, (), folder, self.pad)

    def _load(self, number: int) -> None:
        from safetensors.torch import load_file

        group = self._groups[number]
        path = self.folder / f"{text_fingerprint(group)[:32]}.safetensors"
        if not path.exists():
            self._write(path, group)
        stored = load_file(path)
        for index, row in enumerate(group):
            prefix = f"{index}."
            self._loaded[row] = {
                name.removeprefix(prefix): tensor
                for name, tensor in stored.items()
                if name.startswith(prefix)
            }

    def _write(self, path: Path, group: Sequence[tuple[int, ...]]) -> None:
        from safetensors.torch import save

        with torch.no_grad():
            states = self.compute(pad_right(group, self.pad), attention_mask(group))
        tensors = {
            f"{index}.{name}": state[index, : len(row)].cpu().clone()
            for name, state in states.items()
            for index, row in enumerate(group)
        }
        atomic_write(path, save(tensors))


class ActivationCaches:
    """The activation stores of a run; lets its calls start at the first fused layer.

    Args:
        model: about to be trained, in eval mode.
        keep: what to store, of ``"prefix"`` and ``"teacher"``.
        example: a batch of texts with samples, on which a call that starts at the first fused
            layer is compared with a whole one.
        pad: id of padding.
        max_bytes: that the states of one store may take; a larger one is not made.

    Attributes:
        prefix: None where nothing below the first fused layer is stored.
        notes: what is not stored although it was asked for, and why, for people to read.
    """

    def __init__(
        self,
        model: SafeModel,
        keep: Sequence[str],
        example: Mapping[str, Tensor],
        pad: int,
        max_bytes: float = math.inf,
    ) -> None:
        self.model, self.pad, self.max_bytes = model, pad, max_bytes
        self._keep_final = "teacher" in keep
        self.notes: list[str] = []
        self.prefix = _prefix(model, example) if "prefix" in keep else None

    def task_texts(self, rows: Rows) -> ActivationStore | None:
        """The store of the task's texts; None where nothing of them is stored."""
        return None if self.prefix is None else self._store(rows, final=False)

    def retention_texts(self, rows: Rows) -> ActivationStore | None:
        """The store of retention's texts; None where nothing of them is stored."""
        final = self._keep_final and bool(rows) and has_plain_head(self.model, rows[0])
        return self._store(rows, final=final) if final or self.prefix is not None else None

    def prefix_states(
        self, states: ActivationStore | None, ids: Tensor, mask: Tensor
    ) -> Sequence[Tensor] | None:
        """What enters the first fused layer, each (length of a row, hidden); None if not stored.

        Args:
            states: of the texts.
            ids: of the call, padded on the right, (batch, length).
            mask: its attention mask.
        """
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        if self.prefix is None or states is None or not states.contains(rows):
            return None
        return [state[PREFIX] for state in states.of(rows)]

    @contextmanager
    def start_from_prefix(self, prefix_states: Sequence[Tensor]) -> Iterator[None]:
        """Within the block, a call on these texts starts at the first fused layer.

        Args:
            prefix_states: what enters it, as the method of that name gives it.
        """
        assert self.prefix is not None  # or nothing would have been stored
        hidden = nn.utils.rnn.pad_sequence(list(prefix_states), batch_first=True)
        with self.prefix.start_from(hidden.to(self.model.device)):
            yield

    def close(self) -> None:
        """Give the base's layers the attributes that they had."""
        if self.prefix is not None:
            self.prefix.close()

    def _store(self, rows: Rows, *, final: bool) -> ActivationStore | None:
        layer = None if self.prefix is None else self.prefix.layer

        def compute(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            """What is stored of a batch of texts."""
            return run_until(self.model, ids, mask, layer=layer, final=final)

        kinds = [PREFIX] * (layer is not None) + [FINAL] * final
        states = ActivationStore(rows, compute, kinds, self._folder(layer, final), self.pad)
        # The teacher stores as much again, derived from its states for a divergence.
        itemsize = next(self.model.base.parameters()).element_size()
        size = states.token_count * (len(kinds) + final) * self.model.stack.hidden_size * itemsize
        if size <= self.max_bytes:
            return states
        self.notes.append(
            f"hidden states of {states.token_count} words would take {size / _GIB:.1f} GiB: "
            "computed anew at each step (`cache_gib` in [training] sets the limit)"
        )
        return None

    def _folder(self, layer: int | None, final: bool) -> Path:
        base: Any = self.model.base
        weights = next(base.parameters())
        key = {
            "base": fingerprint(base),
            "attention": getattr(base.config, "_attn_implementation", None),
            "dtype": str(weights.dtype),
            "device": weights.device.type,
            "versions": [torch.__version__, _transformers_version()],
            "states": {PREFIX: layer, FINAL: final},
        }
        return cache_folder() / "texts" / text_fingerprint(key)[:32]


def _prefix(model: SafeModel, example: Mapping[str, Tensor]) -> FrozenPrefix | None:
    layer = first_fused_layer(model)
    if layer == 0:
        return None
    prefix = FrozenPrefix(model, layer)
    if prefix.matches_whole_call(example):
        return prefix
    prefix.close()
    return None


def _transformers_version() -> str:
    from transformers import __version__

    return str(__version__)
