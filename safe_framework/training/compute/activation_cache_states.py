"""What the frozen base makes of fixed texts, computed once and kept on disk.

Texts are run in fixed groups of like length, whatever is asked for first: a row's last bits depend
on the rows beside it, and a resumed run must find the same ones. Files are named by all that their
content depends on, so none is ever stale; they are mapped into memory, not read into it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from safe_framework.training.batches import attention_mask, pad_right
from safe_framework.utils.files import write_whole
from safe_framework.utils.hashing import text_fingerprint

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
        write_whole(path, save(tensors))
