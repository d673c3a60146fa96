"""A batch's samples, encoded once and kept on disk, or prepared anew where the encoder trains.

An encoded file is keyed by the sample's content, the encoder's weights and its options; none is
ever stale. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from safe_framework.data.augmentation import Variation
from safe_framework.data.long_sounds import HeardSound, LongSound, loaded
from safe_framework.data.windows import (
    each_window,
    in_slots,
    is_long,
    prepare_samples,
    try_sample,
)
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample, Several, each_of
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, FROM, PRESENT, Frames, all_real
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import fingerprint, text_fingerprint
from safe_framework.utils.progress import ProgressCallback

_Item = TypeVar("_Item")


class FrameCache:
    """Frames of one modality's samples, computed on demand and kept.

    Args:
        name: of the modality, for messages.
        encoder: whose frames they are; frozen.
        encode: frames of what the encoder prepared, wherever the encoder is.
        folder: where they are kept; shared by all runs.
        options: the encoder's options in the recipe, which belong to the key.

    Raises:
        SafeError: the encoder is trainable: what it gave once would not stay true.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        encode: Callable[[Mapping[str, Tensor]], Frames],
        folder: Path,
        options: object = None,
    ) -> None:
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise SafeError(
                f"the encoder of modality `{name}` is trainable, so its frames change with"
                " every step and cannot be kept",
                hint="keep its samples: `safe_framework.data.frame_cache.RawSampleStore`",
            )
        kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
        key = text_fingerprint(kind, fingerprint(encoder), options)
        self.encoder, self.encode = encoder, encode
        self.folder = folder / key[:32]

    def frames(
        self,
        samples: Sequence[Sample],
        progress: ProgressCallback | None = None,
        sources: Sequence[str] | None = None,
        variation: Variation | None = None,
    ) -> list[Frames]:
        """One row of frames for each sample, without the padding at its end.

        Samples of one content have one row in memory, however often they are given.

        Args:
            samples: to encode, or to read where they have been encoded before.
            progress: called after each sample that had to be encoded.
            sources: where each sample comes from, for messages.
            variation: of which variant of the samples; of themselves if None.

        Raises:
            SampleError: a sample cannot be encoded, or its frames are not finite.
            DataError: the samples cannot be varied so.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{self._name(s, variation)}.safetensors" for s in samples]
        named = sources or [f"samples[{i}]" for i in range(len(samples))]
        todo = {path: i for i, path in enumerate(paths) if not path.exists()}
        for done, (path, i) in enumerate(todo.items(), start=1):
            self._encode(path, samples[i], named[i], variation)
            if progress:
                progress("encoding samples", done, len(todo))
        found = {path: _read(path) for path in dict.fromkeys(paths)}
        return [found[path] for path in paths]

    def _name(self, sample: Sample, variation: Variation | None) -> str:
        """What a sample's file is called: a longer one's frames depend on the hop too."""
        name, windows = sample_key(sample), self.encoder.windows
        if windows and is_long(sample, windows):
            name += f"-every-{windows.hop}"
        return f"{name}-{variation.key}" if variation else name

    def _encode(self, path: Path, sample: Sample, place: str, variation: Variation | None) -> None:
        """Encode one sample alone: beside others its last bits would depend on them."""
        try:
            _write(path, self._frames_of_windows(sample, variation), place)
        except SampleError as error:
            if error.message.startswith(place):
                raise
            raise SampleError(f"{place}: {error.message}", hint=error.hint) from error

    def _frames_of_windows(self, sample: Sample, variation: Variation | None) -> Iterator[Frames]:
        """The frames of each window, (1, frames, dim); of several, padded to as many each."""
        content = "" if variation is None else sample_key(sample)
        if variation is not None:
            sample = variation.of(loaded(sample), content)
        windows = self.encoder.windows
        width = windows.window.frames if windows and is_long(sample, windows) else None
        for number, window in enumerate(each_window(self.encoder, sample, "`samples[0]`")):
            prepared = self.encoder.prepare([window])
            if variation is not None:
                own = text_fingerprint(content, number) if number else content
                prepared = variation.masked(prepared, own)
            with torch.no_grad():
                frames = self.encode(prepared)
            yield frames if width is None else in_a_row(frames, width)


def sample_key(sample: Sample) -> str:
    """SHA-256 of a sample's content: its array, and its rate if it has one.

    Raises:
        SampleError: it holds no array.
    """
    if isinstance(sample, LongSound):
        return sample.key
    values = sample if isinstance(sample, Tensor) else getattr(sample, "values", sample)
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        raise SampleError(f"a sample of type {type(sample).__name__} holds no array to hash")
    about = f"{values.dtype}|{values.shape}|{getattr(sample, 'sampling_rate', '')}|"
    content = np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(about.encode() + content).hexdigest()


def stack(frames: Sequence[Frames | None], dim: int) -> Frames:
    """Rows of frames as one batch, padded to the longest; None is a row without frames."""
    width = max((f.values.shape[1] for f in frames if f is not None), default=1) or 1
    values = torch.zeros(len(frames), width, dim)
    mask = torch.zeros(len(frames), width, dtype=torch.bool)
    for row, one in enumerate(frames):
        if one is not None:
            values[row, : one.values.shape[1]] = one.values[0]
            mask[row, : one.values.shape[1]] = one.mask[0]
    return Frames(values, mask)


def finite_frames(frames: Frames, place: str) -> Frames:
    """Frames in float32 on the CPU, if those that are real are finite.

    Args:
        frames: as an encoder gave them.
        place: of their sample, for messages.

    Raises:
        SampleError: one is not.
    """
    values, mask = frames.values.cpu().float(), frames.mask.cpu()
    if not torch.isfinite(values[mask]).all():
        raise SampleError(
            f"{place}: the encoder gave NaN or infinite frames", hint="check the recording"
        )
    return Frames(values, mask)


def _read(path: Path) -> Frames:
    from safetensors.torch import load_file

    held = load_file(path)
    values = held["frames"].unsqueeze(0)  # (1, frames, dim)
    mask = held["mask"].unsqueeze(0) if "mask" in held else all_real(values)
    return Frames(values, mask)


def _write(path: Path, windows: Iterator[Frames], place: str) -> None:
    """Keep frames up to the last real one; the mask too where one before it is not real."""
    from safetensors.torch import save

    parts = (finite_frames(frames, place) for frames in windows)
    first = next(parts)
    second = next(parts, None)
    if second is not None:
        atomic_write(path, partial(_write_parts, chain([first, second], parts)))
        return
    values, mask = first.values[0], first.mask[0]
    length = int(mask.nonzero().max()) + 1 if mask.any() else 0
    values, mask = values[:length], mask[:length]
    held = {"frames": torch.where(mask.unsqueeze(-1), values, 0.0).contiguous()}
    if not mask.all():
        held["mask"] = mask.contiguous()
    atomic_write(path, save(held))


_HEADER = 512
"""Bytes of the header of a file that is written window by window, filled up with spaces."""


def _write_parts(parts: Iterator[Frames], path: Path) -> None:
    """Write a safetensors file of frames and mask, of which only one part is held at a time.

    Its format has the tensors' sizes first, which are known last.
    """
    masks = list[Tensor]()
    with path.open("wb") as file:
        file.write(b" " * _HEADER)
        for one in parts:
            kept = torch.where(one.mask.unsqueeze(-1), one.values, 0.0)
            file.write(np.ascontiguousarray(kept[0].numpy()).astype("<f4", copy=False).tobytes())
            masks.append(one.mask[0])
            width = one.values.shape[2]
        mask = torch.cat(masks)
        length = int(mask.nonzero().max()) + 1 if mask.any() else 0
        end = length * width * 4
        file.truncate(_HEADER + end)
        file.seek(_HEADER + end)
        file.write(mask[:length].numpy().tobytes())
        about = {
            "frames": {"dtype": "F32", "shape": [length, width], "data_offsets": [0, end]},
            "mask": {"dtype": "BOOL", "shape": [length], "data_offsets": [end, end + length]},
        }
        file.seek(0)
        file.write((_HEADER - 8).to_bytes(8, "little"))
        file.write(json.dumps(about).encode().ljust(_HEADER - 8))


def in_a_row(frames: Frames, width: int, real: Tensor | None = None) -> Frames:
    """The frames of windows one after another, each padded to ``width``.

    Args:
        frames: of the windows, (windows, frames, dim).
        width: frames of a whole window.
        real: which windows each sample has, (samples, windows); all of them one sample's if None.

    Returns:
        (samples, windows * width, dim).
    """
    room = (0, width - frames.values.shape[1])
    values = torch.nn.functional.pad(frames.values, (0, 0, *room))
    mask = torch.nn.functional.pad(frames.mask, room)
    if real is None:
        real = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
    return Frames(in_slots(values, real).flatten(1, 2), in_slots(mask, real).flatten(1, 2))


@attrs.frozen(eq=False)
class RawSample:
    """A row's sample where finished frames would not stay true.

    Attributes:
        sample: as it was read.
        encoder: that prepares it, beside the others of its batch.
    """

    sample: Sample
    encoder: Encoder


CachedSample = Frames | RawSample
"""One sample of a row: its frames, or the sample itself if its encoder trains."""

CachedSamples = CachedSample | Several[CachedSample]
"""A row's sample, or its samples in order."""


class RawSampleStore:
    """What a ``FrameCache`` is to a frozen encoder, for one that trains: it keeps the samples.

    Args:
        encoder: that trains.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def frames(
        self,
        samples: Sequence[Sample],
        progress: ProgressCallback | None = None,
        sources: Sequence[str] | None = None,
        variation: Variation | None = None,
    ) -> list[RawSample]:
        """One row for each sample, tried on the encoder now so that a bad one stops the run here.

        Args:
            samples: to keep.
            progress: called after each sample.
            sources: where each sample comes from, for messages.
            variation: which variant of the samples to keep; themselves if None.

        Raises:
            SampleError: a sample cannot be used.
            DataError: the samples cannot be varied so.
        """
        encoder = self.encoder
        if variation is not None:
            if variation.spec.mask:
                raise SafeError(
                    "`mask` of `augment` masks what a frozen encoder prepared, which is kept; this"
                    " one prepares its samples anew in each step",
                    hint="leave `mask` out",
                )
            samples = [variation.of(loaded(sample), sample_key(sample)) for sample in samples]
        named = sources or [f"samples[{i}]" for i in range(len(samples))]
        for done, (sample, place) in enumerate(zip(samples, named, strict=True), start=1):
            try:
                try_sample(encoder, sample)
            except SampleError as error:
                raise SampleError(f"{place}: {error.message}", hint=error.hint) from error
            if progress:
                progress("trying samples", done, len(samples))
        return [RawSample(sample, encoder) for sample in samples]


def prepare_inputs(
    name: str, encoder: Encoder, samples: Sequence[Sample | Several[Sample] | None]
) -> dict[str, Tensor]:
    """The part of a batch that carries modality ``name`` as its encoder takes it.

    Args:
        name: of the modality.
        encoder: its own.
        samples: of each row one, several or None; what is absent is zeros.
    """
    present, real = presence(samples)
    batch = {f"{name}__{PRESENT}": present}
    if real:
        for key, values in _prepared(encoder, real).items():
            batch[f"{name}__{key}"] = in_slots(values, present)
    return batch


def _prepared(encoder: Encoder, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
    """What the encoder prepares of samples, or their frames where a listener has all of them."""
    heard = [one for one in samples if isinstance(one, HeardSound) and one.encoder is encoder]
    if len(heard) < len(samples) or encoder.training:
        return prepare_samples(encoder, samples)
    frames = stack([one.frames for one in heard], encoder.dim)
    return {FRAMES: frames.values, FRAMES_MASK: frames.mask}


def presence(rows: Sequence[_Item | Several[_Item] | None]) -> tuple[Tensor, list[_Item]]:
    """Which rows have something, and all that they have, row after row.

    Returns:
        True on the rows that have something, (batch,); where some have several, True on as many
        slots, (batch, slots).
    """
    held = [each_of(row) for row in rows]
    counts = torch.tensor([len(each) for each in held])
    most = int(counts.max()) if held else 0
    present = torch.arange(most) < counts[:, None] if most > 1 else counts > 0
    return present, [one for each in held for one in each]


def modality_inputs(name: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modality ``name``'s part of a batch, by the keys that its encoder knows."""
    prefix = f"{name}__"
    return {
        key.removeprefix(prefix): value
        for key, value in batch.items()
        if key.startswith(prefix) and key not in (prefix + PRESENT, prefix + FROM)
    }


def contents(rows: Mapping[str, CachedSamples]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What tells rows from others: the frames of some, and hashes of the samples of the rest."""
    single = {
        key if len(each_of(row)) == 1 else f"{key}.{number}": one
        for key, row in rows.items()
        for number, one in enumerate(each_of(row))
    }
    frames = {key: one.values for key, one in single.items() if isinstance(one, Frames)}
    hashes = {key: sample_key(o.sample) for key, o in single.items() if isinstance(o, RawSample)}
    return frames, hashes
