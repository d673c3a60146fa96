"""Hidden states of the frozen base for fixed texts and pictures, computed once and kept on disk.

Texts are run in fixed groups of similar length, whichever is asked for first: the last bits of a
row depend on the other rows of its batch, and a resumed run must find the same ones. A file is
named by everything that its content depends on, so none is ever stale; it is mapped into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import FINAL, PREFIX, has_plain_head, on_device, run_until
from safe_framework.core.prompt_rows import (
    PromptEncoder,
    PromptRow,
    Rows,
    as_rows,
    groups_of,
    read_positions,
)
from safe_framework.pretrained.location import cache_folder
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import fingerprint, text_fingerprint
from safe_framework.utils.progress import ProgressCallback

GROUP_SIZE = 16
Activations = Mapping[str, Tensor]
Compute = Callable[[Rows], Mapping[str, Tensor | Sequence[Tensor]]]
Grouping = Callable[[Rows], Sequence[Rows]]
_GIB = 2**30
_REVISION = 2  # of what is kept of rows with pictures: a higher one computes it anew


class ActivationStore:
    """Hidden states of rows by kind, one entry for each row.

    Args:
        rows: texts with their pictures, or ids alone; a repeated one is stored once.
        compute: gives states by kind, of each row (length, hidden), or longer with padding.
        kinds: names of the states.
        folder: where they are stored; shared by all runs of the same base.
        of_pictures: fingerprint of all that states of pictures depend on beside these.
        length: of what is kept of a row; by its kind if None.
        groups: puts rows into those that are run together; a few of alike length if None.
    """

    def __init__(
        self,
        rows: Sequence[PromptRow | Sequence[int]],
        compute: Compute,
        kinds: Sequence[str],
        folder: Path,
        of_pictures: str = "",
        length: Callable[[PromptRow], int] | None = None,
        groups: Grouping | None = None,
    ) -> None:
        self.compute, self.kinds, self.folder = compute, tuple(kinds), folder
        self.of_pictures, self._length = of_pictures, length
        unique = sorted(set(as_rows(rows)), key=_order)
        self._groups = (groups or in_groups)(unique)
        self._group_of = {row: n for n, group in enumerate(self._groups) for row in group}
        self._loaded: dict[PromptRow, Activations] = {}

    def precompute(
        self,
        needed: Sequence[PromptRow | Sequence[int]],
        label: str,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Compute what is missing for the rows that will be asked for."""
        numbers = sorted({self._group_of[row] for row in as_rows(needed)})
        for done, number in enumerate(numbers, start=1):
            self._load(number)
            if progress:
                progress(label, done, len(numbers))

    def of(self, rows: Sequence[PromptRow | Sequence[int]]) -> list[Activations]:
        """The states of each row, (length, hidden) by kind, without padding.

        Those behind the layers are of the tokens alone at which a prediction is read.

        Raises:
            KeyError: the store has no such row.
        """
        found = []
        for row in as_rows(rows):
            if row not in self._loaded:
                self._load(self._group_of[row])
            found.append(self._loaded[row])
        return found

    @property
    def rows(self) -> list[PromptRow]:
        """Every row, once."""
        return [row for group in self._groups for row in group]

    @property
    def token_count(self) -> int:
        """Tokens of all rows together, each row counted once."""
        return sum(len(row) for group in self._groups for row in group)

    def contains(self, rows: Sequence[PromptRow | Sequence[int]]) -> bool:
        """Whether the store has each of the rows, computed already or not."""
        return all(row in self._group_of for row in as_rows(rows))

    def derive(self, name: str, compute: Callable[[Activations], Activations]) -> ActivationStore:
        """A store of what is computed from the states of this one.

        Args:
            name: distinguishes it from others that are computed from the same states.
            compute: computes it from the states of some rows, one token that is read after
                another.
        """

        def grouped(rows: Rows) -> Activations:
            """What is computed from the rows of a group, padded as they are."""
            states, lengths = self.of(rows), [row.words for row in rows]
            known = [kind for kind in self.kinds if kind in states[0] and kind != PREFIX]
            derived = compute({kind: torch.cat([s[kind] for s in states]) for kind in known})
            return {
                kind: nn.utils.rnn.pad_sequence(list(torch.split(whole, lengths)), batch_first=True)
                for kind, whole in derived.items()
            }

        folder = self.folder.with_name(text_fingerprint([self.folder.name, name])[:32])
        return ActivationStore(self.rows, grouped, (), folder, self.of_pictures)

    def _load(self, number: int) -> None:
        from safetensors.torch import load_file

        group = self._groups[number]
        path = self.folder / f"{text_fingerprint(self._key(group))[:32]}.safetensors"
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

    def _key(self, group: Rows) -> Any:
        """What the states of a group depend on, beside the folder."""
        rows = [row.identity for row in group]
        return [self.of_pictures, rows] if group[0].images else rows

    def _write(self, path: Path, group: Rows) -> None:
        from safetensors.torch import save

        with torch.no_grad():
            states = self.compute(group)
        tensors = {
            f"{index}.{name}": state[index][: self._length_of(row, name)].cpu().clone()
            for name, state in states.items()
            for index, row in enumerate(group)
        }
        atomic_write(path, save(tensors))

    def _length_of(self, row: PromptRow, kind: str) -> int:
        """Of what is kept: what enters the first fused layer is needed of placeholders too."""
        if self._length is not None:
            return self._length(row)
        return len(row) if kind == PREFIX else row.words


def in_groups(rows: Rows) -> list[Rows]:
    """Sorted rows, a few at a time, those with pictures apart."""
    apart = [[rows[number] for number in group] for group in groups_of(rows)]
    return [some[i : i + GROUP_SIZE] for some in apart for i in range(0, len(some), GROUP_SIZE)]


def _order(row: PromptRow) -> tuple[int, tuple[int, ...], list[str]]:
    return len(row), row.ids, [picture.digest for picture in row.images]


class ActivationCaches:
    """The activation stores of a run; lets its calls start at the first fused layer.

    Args:
        model: about to be trained, in eval mode.
        keep: what to store, of ``"prefix"`` and ``"teacher"``.
        example: a batch of texts with samples, on which a call that starts at the first fused
            layer is compared with a whole one. Of rows with pictures one is made, when there are
            some, with the same samples.
        pad: id of padding.
        max_bytes: that the states of one store may take; a larger one is not made.
        prompts: makes batches of rows with pictures; the model's own if None.

    Attributes:
        prefix: for rows without pictures; None where nothing below the first fused layer is stored.
        notes: what is not stored although it was asked for, and why, for people to read.
    """

    def __init__(
        self,
        model: SafeModel,
        keep: Sequence[str],
        example: Mapping[str, Tensor],
        pad: int,
        max_bytes: float = math.inf,
        prompts: PromptEncoder | None = None,
    ) -> None:
        self.model, self.pad, self.max_bytes = model, pad, max_bytes
        self.prompts = prompts or PromptEncoder.of(model)
        self._keep_prefix, self._keep_final = "prefix" in keep, "teacher" in keep
        self._samples = {key: value for key, value in example.items() if "__" in key}
        self.notes: list[str] = []
        self.prefix = _prefix(model, example) if self._keep_prefix else None
        self._picture_prefix: FrozenPrefix | None = None
        self._pictures_tried = self._drops_pixels = False

    def task_texts(self, rows: Sequence[PromptRow | Sequence[int]]) -> ActivationStore | None:
        """The store of the task's rows; None where nothing of them is stored."""
        startable = [row for row in self._seen(rows) if self._prefix_of(row) is not None]
        return self._store(startable, final=False) if startable else None

    def retention_texts(self, rows: Sequence[PromptRow | Sequence[int]]) -> ActivationStore | None:
        """The store of retention's rows; None where nothing of them is stored."""
        seen = self._seen(rows)
        final = bool(self._keep_final and seen) and has_plain_head(
            self.model, self._inputs(seen[:1])
        )
        if not final:
            seen = [row for row in seen if self._prefix_of(row) is not None]
        return self._store(seen, final=final) if seen else None

    def starts(self, states: ActivationStore | None, rows: Rows) -> bool:
        """Whether a call on these rows, all alike, can start at the first fused layer."""
        return states is not None and self._prefix_of(rows[0]) is not None and states.contains(rows)

    def pixels_needed(self, states: ActivationStore | None, rows: Rows) -> bool:
        """Whether a call on these rows has to be given what the image tower reads."""
        return not (self.starts(states, rows) and self._drops_pixels)

    def prefix_states(self, states: ActivationStore | None, rows: Rows) -> Sequence[Tensor] | None:
        """What enters the first fused layer, each (length of a row, hidden); None if not stored.

        Args:
            states: of the rows.
            rows: of a call, all with pictures or all without.
        """
        if states is None or not self.starts(states, rows):
            return None
        return [state[PREFIX] for state in states.of(rows)]

    @contextmanager
    def start_from_prefix(
        self, prefix_states: Sequence[Tensor], *, pictures: bool = False
    ) -> Iterator[None]:
        """Within the block, a call on these rows starts at the first fused layer.

        Args:
            prefix_states: what enters it, as the method of that name gives it.
            pictures: whether rows have some, so that the layers below may not run on their ids.
        """
        prefix = self._picture_prefix if pictures else self.prefix
        assert prefix is not None  # or nothing would have been stored
        hidden = nn.utils.rnn.pad_sequence(list(prefix_states), batch_first=True)
        with prefix.start_from(hidden.to(self.model.device), always=pictures):
            yield

    def close(self) -> None:
        """Give the base's layers the attributes that they had."""
        for prefix in (self.prefix, self._picture_prefix):
            if prefix is not None:
                prefix.close()

    def _seen(self, rows: Sequence[PromptRow | Sequence[int]]) -> list[PromptRow]:
        """The rows; the first ones with pictures are tried."""
        found = list(as_rows(rows))
        pictured = [row for row in found if row.images]
        if pictured and self._keep_prefix and not self._pictures_tried:
            self._pictures_tried = True
            self._picture_prefix = self._tried_on(pictured)
        return found

    def _tried_on(self, rows: Rows) -> FrozenPrefix | None:
        """The prefix, if calls on such rows can start behind it, best without their pixels."""
        layer = first_fused_layer(self.model)
        count = len(next(iter(self._samples.values()), ()))
        if layer == 0 or not count:
            return None
        chosen = [rows[i % len(rows)] for i in range(count)]
        prefix, device = FrozenPrefix(self.model, layer), self.model.device
        whole, short = (
            on_device(self.prompts.collate(chosen, self.pad, pixels=pixels), device)
            | on_device(self._samples, device)
            for pixels in (True, False)
        )
        other = on_device(self._inputs(chosen[::-1]), device)
        self._drops_pixels = prefix.matches_whole_call(whole, short, other)
        if not self._drops_pixels:
            self.notes.append(
                "pictures: this base's image tower runs at each step, since its calls need their "
                "pictures where they start behind the frozen layers too"
            )
        if self._drops_pixels or prefix.matches_whole_call(whole, whole, other):
            return prefix
        prefix.close()
        return None

    def _prefix_of(self, row: PromptRow) -> FrozenPrefix | None:
        return self._picture_prefix if row.images else self.prefix

    def _inputs(self, rows: Rows) -> dict[str, Tensor]:
        return self.prompts.collate(rows, self.pad)

    def _store(self, rows: Rows, *, final: bool) -> ActivationStore | None:
        layer = None if self.prefix is None else self.prefix.layer

        def compute(group: Rows) -> dict[str, Tensor]:
            """What is stored of a batch of rows."""
            prefix = self._prefix_of(group[0])
            until = None if prefix is None else prefix.layer
            found = run_until(self.model, self._inputs(group), layer=until, final=final)
            if FINAL in found and group[0].images:
                found[FINAL] = _at_words(found[FINAL], group)
            return found

        started = any(self._prefix_of(row) is not None for row in rows)
        kinds = [PREFIX] * started + [FINAL] * final
        folder = self._folder(layer, final)
        states = ActivationStore(rows, compute, kinds, folder, self._of_pictures())
        # The teacher stores as much again, derived from its states for a divergence.
        numbers = (len(kinds) + final) * self.model.stack.hidden_size
        return self._if_it_fits(states, numbers)

    def store_of(
        self,
        rows: Rows,
        compute: Compute,
        numbers: int,
        name: str,
        length: Callable[[PromptRow], int] | None = None,
        groups: Grouping | None = None,
    ) -> ActivationStore | None:
        """A store of something else that is computed from rows; None if it is too large.

        Args:
            rows: of text, with their pictures.
            compute: as ``ActivationStore`` takes it.
            numbers: at most so many are kept of one position.
            name: distinguishes it from others.
            length: how many positions are kept of a row; all if None.
            groups: puts rows into those that are run together; a few of alike length if None.
        """
        layer = None if self.prefix is None else self.prefix.layer
        folder = self._folder(layer, False)
        folder = folder.with_name(text_fingerprint([folder.name, name])[:32])
        states = ActivationStore(rows, compute, (), folder, self._of_pictures(), length, groups)
        return self._if_it_fits(states, numbers)

    def samples(self, rows: int) -> dict[str, Tensor]:
        """The example's samples for so many rows, again and again if they are fewer."""
        return {
            key: value[torch.arange(rows, device=value.device) % len(value)]
            for key, value in self._samples.items()
        }

    def _if_it_fits(self, states: ActivationStore, numbers: int) -> ActivationStore | None:
        """The store, if so many numbers of each position are not too many."""
        itemsize = next(self.model.base.parameters()).element_size()
        size = states.token_count * numbers * itemsize
        if size <= self.max_bytes:
            return states
        self.notes.append(
            f"hidden states of {states.token_count} words would take {size / _GIB:.1f} GiB: "
            "computed anew at each step (`cache_gib` in [training] sets the limit)"
        )
        return None

    def _of_pictures(self) -> str:
        """What states of rows with pictures depend on, beside what those of texts do."""
        config: Any = self.model.base.config
        layer = None if self._picture_prefix is None else self._picture_prefix.layer
        return text_fingerprint(_REVISION, layer, self.prompts.settings(), config.to_dict())

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


def _at_words(hidden: Tensor, rows: Rows) -> Tensor:
    """Hidden states (batch, length, hidden) where predictions are read, one after another."""
    read = zip(hidden, read_positions(rows).to(hidden.device), strict=True)
    return nn.utils.rnn.pad_sequence([row[at] for row, at in read], batch_first=True)


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
