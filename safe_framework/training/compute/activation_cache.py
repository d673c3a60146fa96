"""What training keeps of the frozen base: hidden states of the task's texts and of retention's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import BELOW, FINAL, capture, has_plain_head
from safe_framework.pretrained.location import cache_folder
from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.training.compute.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import fingerprint, text_fingerprint

# What the frozen base makes of fixed texts, computed once and kept on disk.
#
# Texts are run in fixed groups of like length, whatever is asked for first: a row's last bits
# depend on the rows beside it, and a resumed run must find the same ones. Files are named by all
# that their content depends on, so none is ever stale; they are mapped into memory, not read.


GROUP = 16
State = Mapping[str, Tensor]
Compute = Callable[[Tensor, Tensor], State]
Progress = Callable[[str, int, int], None]


class TextStates:
    """Hidden states of texts by name, one row for each text.

    Args:
        rows: token ids of each text; repeats are kept once.
        compute: gives states (batch, length, hidden) by name, from padded ids and their mask.
        kinds: names of the states.
        folder: where they are kept; shared by all runs of the same base.
        pad: id that fills rows up.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        compute: Compute,
        kinds: Sequence[str],
        folder: Path,
        pad: int,
    ) -> None:
        self.compute, self.kinds, self.folder, self.pad = compute, tuple(kinds), folder, pad
        distinct = sorted({tuple(row) for row in rows}, key=lambda row: (len(row), row))
        self._groups = [distinct[i : i + GROUP] for i in range(0, len(distinct), GROUP)]
        self._group_of = {row: n for n, group in enumerate(self._groups) for row in group}
        self._kept: dict[tuple[int, ...], State] = {}

    def warm(
        self, needed: Collection[Sequence[int]], label: str, progress: Progress | None = None
    ) -> None:
        """Compute what is missing for the texts that will be asked for."""
        numbers = sorted({self._group_of[tuple(row)] for row in needed})
        for done, number in enumerate(numbers, start=1):
            self._keep(number)
            if progress:
                progress(label, done, len(numbers))

    def of(self, rows: Sequence[Sequence[int]]) -> list[State]:
        """The states of each text, (length, hidden) by name, without padding.

        Raises:
            KeyError: a text is not one of those that are kept.
        """
        found = []
        for row in map(tuple, rows):
            if row not in self._kept:
                self._keep(self._group_of[row])
            found.append(self._kept[row])
        return found

    @property
    def words(self) -> int:
        """How many words all texts have together, each text counted once."""
        return sum(len(row) for group in self._groups for row in group)

    def holds(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether every one of the texts is kept, or can be."""
        return all(tuple(row) in self._group_of for row in rows)

    def derived(self, name: str, compute: Callable[[State], State]) -> TextStates:
        """A store of what can be made of the states here.

        Args:
            name: tells it from others that are made of the same states.
            compute: makes it of the states of some texts, word after word.
        """

        def grouped(ids: Tensor, mask: Tensor) -> State:
            """What is made of the texts of a group, padded as they are."""
            rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
            states, lengths = self.of(rows), [len(row) for row in rows]
            made = compute({kind: torch.cat([s[kind] for s in states]) for kind in self.kinds})
            return {
                kind: nn.utils.rnn.pad_sequence(list(torch.split(whole, lengths)), batch_first=True)
                for kind, whole in made.items()
            }

        rows = [row for group in self._groups for row in group]
        folder = self.folder.with_name(text_fingerprint([self.folder.name, name])[:32])
        return TextStates(rows, grouped, (), folder, self.pad)

    def _keep(self, number: int) -> None:
        from safetensors.torch import load_file

        group = self._groups[number]
        path = self.folder / f"{text_fingerprint(group)[:32]}.safetensors"
        if not path.exists():
            self._write(path, group)
        held = load_file(path)
        for place, row in enumerate(group):
            prefix = f"{place}."
            self._kept[row] = {
                name.removeprefix(prefix): tensor
                for name, tensor in held.items()
                if name.startswith(prefix)
            }

    def _write(self, path: Path, group: Sequence[tuple[int, ...]]) -> None:
        from safetensors.torch import save

        with torch.no_grad():
            states = self.compute(pad_right(group, self.pad), attention_mask(group))
        tensors = {
            f"{place}.{name}": state[place, : len(row)].cpu().clone()
            for name, state in states.items()
            for place, row in enumerate(group)
        }
        atomic_write(path, save(tensors))


Rows = Sequence[Sequence[int]]
_GIB = 2**30


class Caches:
    """Makes the stores of a run, and lets its calls begin at the first fused layer.

    Args:
        model: about to be trained, in eval mode.
        keep: what shall be kept, of ``"prefix"`` and ``"teacher"``.
        example: a batch of texts beside samples, on which a call that begins at the first fused
            layer is compared with a whole one.
        pad: id that fills rows up.
        room: bytes that the states of one store may take; a larger one is not made.

    Attributes:
        prefix: None where nothing below the first fused layer is kept.
        notes: what is not kept although it was asked for, and why, for people to read.
    """

    def __init__(
        self,
        model: SafeModel,
        keep: Sequence[str],
        example: Mapping[str, Tensor],
        pad: int,
        room: float = math.inf,
    ) -> None:
        self.model, self.keep, self.pad, self.room = model, tuple(keep), pad, room
        self.notes: list[str] = []
        self.prefix = _prefix(model, example) if "prefix" in keep else None

    def task_texts(self, rows: Rows) -> TextStates | None:
        """The store of the task's texts; None where nothing is kept of them."""
        return None if self.prefix is None else self._states(rows, final=False)

    def retention_texts(self, rows: Rows) -> TextStates | None:
        """The store of retention's texts; None where nothing is kept of them."""
        final = "teacher" in self.keep and bool(rows) and has_plain_head(self.model, rows[0])
        return self._states(rows, final=final) if final or self.prefix is not None else None

    def begun(
        self, states: TextStates | None, ids: Tensor, mask: Tensor
    ) -> Sequence[Tensor] | None:
        """What enters the first fused layer, each (length of a row, hidden); None if not kept.

        Args:
            states: of the texts.
            ids: of the call, filled up on the right, (batch, length).
            mask: its attention mask.
        """
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        if self.prefix is None or states is None or not states.holds(rows):
            return None
        return [state[BELOW] for state in states.of(rows)]

    @contextmanager
    def beginning(self, begun: Sequence[Tensor]) -> Iterator[None]:
        """Within the block, a call on these texts begins at the first fused layer.

        Args:
            begun: what enters it, as ``begun`` gives it.
        """
        assert self.prefix is not None  # or nothing would have been kept
        hidden = nn.utils.rnn.pad_sequence(list(begun), batch_first=True)
        with self.prefix.given(hidden.to(self.model.device)):
            yield

    def close(self) -> None:
        """Give the base's layers the attributes that they had."""
        if self.prefix is not None:
            self.prefix.close()

    def _states(self, rows: Rows, *, final: bool) -> TextStates | None:
        layer = None if self.prefix is None else self.prefix.layer

        def compute(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            """What is kept of a batch of texts."""
            return capture(self.model, ids, mask, layer=layer, final=final)

        kinds = [BELOW] * (layer is not None) + [FINAL] * final
        states = TextStates(rows, compute, kinds, self._folder(layer, final), self.pad)
        # The teacher makes as much again of its states, for a divergence.
        itemsize = next(self.model.base.parameters()).element_size()
        size = states.words * (len(kinds) + final) * self.model.stack.hidden_size * itemsize
        if size <= self.room:
            return states
        self.notes.append(
            f"hidden states of {states.words} words would take {size / _GIB:.1f} GiB: computed "
            "anew at each step (`cache_gib` in [training] sets the limit)"
        )
        return None

    def _folder(self, layer: int | None, final: bool) -> Path:
        base: Any = self.model.base
        weights = next(base.parameters())
        about = {
            "base": fingerprint(base),
            "attention": getattr(base.config, "_attn_implementation", None),
            "dtype": str(weights.dtype),
            "device": weights.device.type,
            "versions": [torch.__version__, _transformers_version()],
            "states": {BELOW: layer, FINAL: final},
        }
        return cache_folder() / "texts" / text_fingerprint(about)[:32]


def _prefix(model: SafeModel, example: Mapping[str, Tensor]) -> FrozenPrefix | None:
    layer = first_fused_layer(model)
    if layer == 0:
        return None
    prefix = FrozenPrefix(model, layer)
    if prefix.holds(example):
        return prefix
    prefix.close()
    return None


def _transformers_version() -> str:
    from transformers import __version__

    return str(__version__)
