"""One modality: encoder, projector, fusion adapter and gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_framework.config.schema import Attend
from safe_framework.core.injection import ActiveModality, InlineTokens, Unfused
from safe_framework.core.layer_discovery import PLAIN, Layout
from safe_framework.core.markers.embeddings import Markers
from safe_framework.core.relevance import AUTO, RelevanceHead, Strength, pooled_frames
from safe_framework.core.segments import (
    SegmentVectors,
    TimeVectors,
    joined,
    numbers_in_rows,
    window_frames,
)
from safe_framework.data.frame_cache import FrameCache, in_a_row
from safe_framework.data.listening import Listener
from safe_framework.data.transcripts import Transcripts
from safe_framework.errors import PluginError, SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import (
    FRAMES,
    FRAMES_MASK,
    FROM,
    PRESENT,
    WINDOW_COUNT,
    Frames,
    Memory,
    Tokens,
)
from safe_framework.utils.tensors import keeping_type

if TYPE_CHECKING:
    from safe_framework.config.schema import Recipe


_WINDOWS_AT_ONCE = 16
"""That an encoder is given of one batch, so that its memory does not grow with a recording."""


class Modality(nn.Module):
    """The plugins that give a base one new modality.

    A batch carries a modality in keys ``NAME__KEY``: ``present`` (True on the rows that have a
    sample), and either what the encoder's ``prepare`` gave or finished ``frames`` with their
    ``frames_mask``. ``from`` may say at which text position it begins to act, (batch,); where it is
    missing, ``attend`` says so. Every tensor has one row for each row of the call. Where a row has
    several samples, a second axis of every other tensor is its slots, filled from the first on.
    Where a sample has several windows, the next axis of what ``prepare`` gave is for them, and
    ``window_count`` says how many it has; finished frames of windows stand behind one another.

    Args:
        name: of the modality, such as ``"audio"``.
        encoder: turns samples into frames.
        projector: maps frames into the base's hidden size.
        fusion: lets decoder layers attend to the tokens.
        segments: tells the samples of one text apart.
        gate: strength from 0 (off) to 1, or ``"auto"``.
        markers: what it puts into the text: words around its position, or a transcript's; None for
            nothing.
        attend: where in the text it acts.
        transcripts: what was said in its samples; None where nobody asks.
        features: let the base attend to what the encoder hears; without, the transcript is all.

    Attributes:
        times: tells the windows of one sample apart; None where its encoder cuts none.
        relevance: decides whether a call is about its sample, where the gate is ``"auto"``; None
            where none was fitted.
        built_from: the recipe that it was built from; None where it was put together in Python.
        memory: what runs the encoder on prepared inputs, or knows what it gives; None for the
            encoder itself.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        projector: Projector,
        fusion: FusionAdapter,
        segments: SegmentVectors,
        gate: Strength = 1.0,
        markers: Markers | None = None,
        attend: Attend = "all",
        transcripts: Transcripts | None = None,
        *,
        features: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.attend = name, attend
        self.transcripts, self.features = transcripts, features
        self.encoder, self.projector, self.fusion = encoder, projector, fusion
        self.segments, self.markers = segments, markers
        hidden = segments.weight.shape[1]
        self.times = None if encoder.windows is None else TimeVectors(hidden)
        self.gate = checked_gate(gate)
        self.relevance: RelevanceHead | None = None
        self.built_from: Recipe | None = None
        self.memory: Callable[[Encoder, Mapping[str, Tensor]], Frames] | None = None

    def train(self, mode: bool = True) -> Modality:
        """Switch the projector and the adapter; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and self.encoder_trains)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Modality:
        """Move or cast the parts, as ``to`` and ``half`` do.

        A frozen encoder keeps its type: its frames are kept on disk, and its plugin's inputs are
        of that type. So does the relevance head, whose threshold was chosen on its numbers.
        """
        if recurse:
            for child in self.children():
                frozen = child is self.encoder and not self.encoder_trains
                frozen = frozen or child is self.relevance
                moved = keeping_type(fn) if frozen else fn
                child._apply(moved)  # type: ignore[no-untyped-call]  # torch's own
        super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]  # torch's own
        if self.transcripts is not None:
            self.transcripts.transcriber.to(next(self.projector.parameters()).device)
        return self

    @property
    def marked(self) -> bool:
        """Whether markers stand around its samples in the text."""
        return self.markers is not None and self.markers.marked

    @property
    def encoder_trains(self) -> bool:
        """Whether any parameter of the encoder is trainable."""
        return any(p.requires_grad for p in self.encoder.parameters())

    def encode(self, inputs: Mapping[str, Tensor]) -> Frames:
        """Frames of prepared inputs, without gradient if the encoder is frozen."""
        if FRAMES in inputs:
            return Frames(inputs[FRAMES], inputs[FRAMES_MASK])
        with nullcontext() if self.encoder_trains else torch.no_grad():
            inputs = {key: _as_type_of(self.encoder, value) for key, value in inputs.items()}
            counts = inputs.pop(WINDOW_COUNT, None)
            return self._run(inputs) if counts is None else self._run_windows(inputs, counts)

    def _run(self, inputs: Mapping[str, Tensor]) -> Frames:
        known = self.memory
        frames = self.encoder(**inputs) if known is None else known(self.encoder, inputs)
        if not isinstance(frames, Frames):
            raise PluginError(
                f"encoder of modality `{self.name}` gave {type(frames).__name__}, not Frames"
            )
        return frames

    def _run_windows(self, inputs: Mapping[str, Tensor], counts: Tensor) -> Frames:
        """Frames of samples whose windows stand behind one another, a few windows at a time."""
        assert self.encoder.windows is not None
        width = self.encoder.windows.window.frames
        most = next(iter(inputs.values())).shape[1]
        real = torch.arange(most, device=counts.device) < counts[:, None]  # (samples, windows)
        windows = {key: value[real] for key, value in inputs.items()}
        parts = []
        for start in range(0, int(real.sum()), _WINDOWS_AT_ONCE):
            some = {k: value[start : start + _WINDOWS_AT_ONCE] for k, value in windows.items()}
            frames = self._run(some)
            one_each = torch.ones(len(frames.mask), 1, dtype=torch.bool, device=frames.mask.device)
            parts.append(in_a_row(frames, width, one_each))
        values = torch.cat([part.values for part in parts])
        return in_a_row(Frames(values, torch.cat([part.mask for part in parts])), width, real)

    def tokens(self, frames: Frames) -> Tokens:
        """What the projector gives of samples, of each its windows' tokens one after another.

        Args:
            frames: of samples, (samples, frames, dim), as ``encode`` gives them.
        """
        frames = Frames(_as_type_of(self.projector, frames.values), frames.mask)
        if self.times is None or self.encoder.windows is None:
            found: Tokens = self.projector(frames)
            return found
        windows = self.encoder.windows
        frames, samples, number = window_frames(frames, windows.window.frames)
        start = number * (windows.hop / windows.window.steps)
        return joined(self.times(self.projector(frames), start), samples, number)

    def split(self, frames: Frames) -> tuple[Frames, Tensor]:
        """What the projector is given at once, the frames of each window; and the sample of each.

        Args:
            frames: of samples, (samples, frames, dim), as ``encode`` gives them.
        """
        windows = self.encoder.windows
        if windows is None:
            return frames, torch.arange(len(frames.mask), device=frames.mask.device)
        return window_frames(frames, windows.window.frames)[:2]

    def frame_cache(self, folder: Path, options: object = None) -> FrameCache:
        """Frames of this modality's samples on disk, each computed once.

        Args:
            folder: where they are kept; shared by all runs.
            options: the encoder's options in the recipe, which belong to the key.

        Raises:
            SafeError: the encoder is trainable: what it gave once would not stay true.
        """
        return FrameCache(self.name, self.encoder, self._encode_prepared, folder, options)

    def listen(self, seconds: float | None = None, sampling_rate: int | None = None) -> Listener:
        """What takes a running recording in chunks, and gives the last of it as a sample.

        Args:
            seconds: of the recording that a sample has at most; None for as much as it takes.
            sampling_rate: of the chunks, in hertz; None for the encoder's own.

        Raises:
            SafeError: the modality takes no sound, or less than ``seconds`` of it.
        """
        return Listener(self.name, self.encoder, self._encode_prepared, seconds, sampling_rate)

    def _encode_prepared(self, prepared: Mapping[str, Tensor]) -> Frames:
        device = next(iter(self.projector.parameters())).device
        return self.encode({key: value.to(device) for key, value in prepared.items()})

    def activate(
        self,
        gate: RowGates | None,
        inputs: Mapping[str, Tensor],
        device: torch.device,
        layout: Layout = PLAIN,
    ) -> ActiveModality | None:
        """What this modality does in one call, or None where it is off on every row.

        Args:
            gate: strength for this call: one number, one for each row, or None for its own. On
                rows where a head would decide, it is 1: that is what it learns, and opens to.
            inputs: the modality's part of the batch, without the ``NAME__`` prefix.
            device: where the base's inputs go.
            layout: axes of the base's hidden states.
        """
        gate = self.gate if gate is None else gate
        if isinstance(gate, (float, int)) and checked_gate(gate) == 0:
            return None
        inputs = {key: value.to(device) for key, value in inputs.items()}
        gates = row_gates(gate, len(inputs[PRESENT])).nan_to_num(1.0)
        present, first = inputs.pop(PRESENT).bool(), inputs.pop(FROM, None)
        closed = (gates == 0).to(present.device)
        present = present & ~(closed if present.ndim == 1 else closed.unsqueeze(1))
        samples = present.nonzero()[:, 0]  # the row of each
        if not len(samples):
            return None
        if not self.features:
            return self._words_alone(torch.unique_consecutive(samples), gates, len(present), layout)
        frames = self.encode({key: value[present] for key, value in inputs.items()})
        tokens = self.tokens(frames)
        each = tokens.values.shape[1]
        number = numbers_in_rows(present)
        tokens = joined(self.segments(tokens, number), samples, number)
        rows, counts = torch.unique_consecutive(samples, return_counts=True)
        unmasked = tokens.mask.any(dim=1).nonzero().flatten()  # all masked is absent
        if not len(unmasked):
            return None
        if len(unmasked) < len(rows):
            tokens, rows, counts = tokens.rows(unmasked), rows[unmasked], counts[unmasked]
        memory = self.fusion.remember(tokens)
        strengths = gates.to(rows.device)[rows]
        inline = None
        if self.markers is not None and self.markers.tokens is not None:
            inline = InlineTokens(tokens.values, tokens.mask, each * counts)
        return ActiveModality(
            self.name,
            self.fusion,
            memory,
            rows,
            strengths,
            len(present),
            layout,
            inline,
            attend=self.attend,
            first=first,
        )

    def _words_alone(
        self, rows: Tensor, gates: Tensor, batch: int, layout: Layout
    ) -> ActiveModality:
        """A modality that is on, of which the base is given transcripts and nothing else."""
        nothing = Memory({}, torch.zeros(len(rows), 0, dtype=torch.bool, device=rows.device))
        strengths = gates.to(rows.device)[rows]
        return ActiveModality(
            self.name, Unfused(), nothing, rows, strengths, batch, layout, attend=self.attend
        )

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean of each row's frames as a relevance head reads it, (rows, dim), in float32.

        Args:
            inputs: the modality's part of a batch, without the ``NAME__`` prefix; a row without a
                sample has zeros.
        """
        present = inputs[PRESENT].bool()
        rows = present.nonzero()[:, 0]  # of each sample
        if not len(rows):
            return torch.zeros(len(present), self.encoder.dim, device=present.device)
        given = {k: value[present] for k, value in inputs.items() if k not in (PRESENT, FROM)}
        frames = self.encode(given)
        return pooled_frames(frames, rows.to(frames.values.device), len(present))

    def encoded(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The modality's part of a batch with finished frames instead of what the encoder takes.

        Args:
            inputs: that part, without the ``NAME__`` prefix.
        """
        if FRAMES in inputs:
            return dict(inputs)
        inputs = dict(inputs)
        present = inputs.pop(PRESENT).bool()
        kept = {PRESENT: present, **({FROM: inputs.pop(FROM)} if FROM in inputs else {})}
        if not present.any():
            shape, device = (*present.shape, 1), present.device
            values = torch.zeros(*shape, self.encoder.dim, device=device)
            mask = torch.zeros(shape, dtype=torch.bool, device=device)
            return {**kept, FRAMES: values, FRAMES_MASK: mask}
        frames = self.encode({key: value[present] for key, value in inputs.items()})
        at = present.to(frames.values.device).nonzero(as_tuple=True)
        values, mask = (
            part.new_zeros(*present.shape, *part.shape[1:]).index_put(at, part)
            for part in (frames.values, frames.mask)
        )
        return {**kept, FRAMES: values, FRAMES_MASK: mask}


def _as_type_of(module: nn.Module, values: Tensor) -> Tensor:
    """Floating numbers in the type of a module's parameters, where autocast does not see to it."""
    if not values.is_floating_point() or torch.is_autocast_enabled(values.device.type):
        return values
    types = (p.dtype for p in module.parameters() if p.is_floating_point())
    return values.to(next(types, values.dtype))


def check_name(name: str, modalities: nn.ModuleDict) -> None:
    """Refuse a name for another modality.

    Raises:
        SafeError: it is taken, or cannot be a keyword.
    """
    if name in modalities:
        raise SafeError(f"modality `{name}` is already attached", hint="call remove_modality first")
    if not name.isidentifier() or "__" in name or hasattr(modalities, name):
        raise SafeError(
            f"a modality cannot be called `{name}`",
            hint="use a short word such as `audio`, without double underscores",
        )


def check_layers(name: str, layers: Sequence[int], count: int) -> None:
    """Refuse layers that modality ``name`` cannot be fused into.

    Raises:
        SafeError: there is none, or the base has no such layer.
    """
    if not layers:
        raise SafeError(f"the fusion adapter of `{name}` names no layer in `layers`")
    if wrong := [layer for layer in layers if not 0 <= layer < count]:
        raise SafeError(
            f"`layers` of the fusion adapter of `{name}` names {wrong}, but the base has "
            f"layers 0 to {count - 1}"
        )


def checked_gate(value: Strength) -> Strength:
    """A gate's strength as a float, or ``"auto"``.

    Raises:
        SafeError: it is neither a number from 0 to 1 nor ``"auto"``.
    """
    if isinstance(value, str):
        if value == AUTO:
            return AUTO
        raise SafeError(f'a gate must be between 0 and 1, or "auto", not {value!r:.60}')
    number = _number(value)
    if not 0 <= number <= 1:
        raise SafeError(f"a gate must be between 0 and 1, not {value!r:.60}")
    return number


def _number(value: Any) -> float:
    """One number of any library, NaN for what is none."""
    if getattr(value, "ndim", 0) or isinstance(value, (bytes, bytearray)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


RowGates = Strength | Tensor | Sequence[Strength]
"""One modality's gate in a call: one for all rows, or one for each."""


def checked_gates(gate: RowGates) -> Strength | Tensor | list[Strength]:
    """A call's gate of one modality: a number or one for each row, of whatever library.

    Raises:
        SafeError: a strength is neither from 0 to 1 nor ``"auto"``.
    """
    if isinstance(gate, Tensor):
        if not bool(((gate >= 0) & (gate <= 1)).all()):
            raise SafeError(f"`gate` must hold numbers between 0 and 1, not {gate.tolist()!r:.60}")
        return gate
    given: Any = gate
    given = given.tolist() if hasattr(given, "tolist") else given  # of NumPy and pandas
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    return [checked_gate(one) for one in given] if several else checked_gate(given)


def leaves_open(gate: RowGates) -> bool:
    """Whether a call's gate of a modality leaves it to a relevance head on some row."""
    gates = checked_gates(gate)
    return gates == AUTO if isinstance(gates, str) else isinstance(gates, list) and AUTO in gates


def row_gates(gate: RowGates, rows: int) -> Tensor:
    """Strength on each row of a call, NaN where a relevance head is to decide.

    Raises:
        SafeError: a strength is not from 0 to 1, or there are not as many as rows.
    """
    gates = checked_gates(gate)
    if isinstance(gates, Tensor):
        each = gates.detach().float().expand(rows) if gates.ndim == 0 else gates.detach().float()
        if each.shape != (rows,):
            shape = tuple(each.shape)
            raise SafeError(f"`gate` must hold {rows} numbers, one for each row, not {shape}")
        return each
    listed = gates if isinstance(gates, list) else [gates] * rows
    if len(listed) != rows:
        raise SafeError(f"`gate` must hold {rows} strengths, one for each row, not {len(listed)}")
    return torch.tensor([math.nan if isinstance(one, str) else one for one in listed])


def split_by_modality(
    args: Sequence[object], inputs: Mapping[str, object], names: Iterable[str]
) -> tuple[dict[str, object], dict[str, dict[str, Tensor]]]:
    """Part a call's keyword arguments into the base's own and each modality's.

    Args:
        args: the call's positional arguments, the first of which is its texts.
        inputs: its keyword arguments.
        names: of the attached modalities.

    Raises:
        SampleError: a key belongs to a modality that is not attached, its value is no tensor,
            or a modality's tensors do not have as many rows as the call has texts.
    """
    own: dict[str, object] = {}
    given: dict[str, dict[str, Tensor]] = {}
    known = set(names)
    for key, value in inputs.items():
        name, separator, rest = key.partition("__")
        if name in known:
            given.setdefault(name, {})[rest] = _checked_tensor(key, value)
        elif not separator or not isinstance(value, Tensor):
            own[key] = value
        else:
            raise SampleError(
                f"`{key}` belongs to modality `{name}`, which is not attached",
                hint=f"attached modalities: {', '.join(sorted(known)) or 'none'}",
            )
    for name, tensors in given.items():
        _check_rows(name, tensors, _texts(args, own))
    return own, given


def _checked_tensor(key: str, value: object) -> Tensor:
    if "__" not in key or not isinstance(value, Tensor):
        raise SampleError(
            f"`{key}` is a {type(value).__name__}, not a tensor of a batch",
            hint="make the batch with `model.processor`",
        )
    return value


def _texts(args: Sequence[object], own: Mapping[str, object]) -> Tensor | None:
    named = (own.get(key) for key in ("input_ids", "inputs", "inputs_embeds"))
    return next((value for value in (*args[:1], *named) if isinstance(value, Tensor)), None)


def _check_rows(name: str, tensors: Mapping[str, Tensor], texts: Tensor | None) -> None:
    if PRESENT not in tensors:
        raise SampleError(
            f"modality `{name}` came without `{name}__{PRESENT}`",
            hint="make the batch with `model.processor`",
        )
    counts = {key: len(value) for key, value in tensors.items()}
    if len(set(counts.values())) > 1:
        raise SampleError(
            f"the tensors of modality `{name}` have different numbers of rows: {counts}",
            hint="slice every tensor of a batch alike",
        )
    if texts is not None and len(texts) != counts[PRESENT]:
        raise SampleError(
            f"modality `{name}` came with {counts[PRESENT]} rows for {len(texts)} texts",
            hint="give one sample for each text, None where there is none",
        )
    slots, held = tensors[PRESENT].shape, [key for key in tensors if key != FROM]
    if len(slots) > 2 or any(tensors[key].shape[: len(slots)] != slots for key in held):
        shapes = {key: tuple(tensors[key].shape) for key in held}
        raise SampleError(
            f"the tensors of modality `{name}` have different slots for samples: {shapes}",
            hint="make the batch with `model.processor`",
        )
