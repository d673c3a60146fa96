"""A recording that goes on: the last of it is a sample for a call at any moment.

Windows begin at whole hops from the beginning of the recording, so that each is encoded once, when
its sound is all there, and kept until it is too old. Only what is behind the last whole window is
encoded for each call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safe_framework.data.audio import StreamResampler, Waveform, check_waveform
from safe_framework.data.frame_cache import finite_frames, in_a_row
from safe_framework.data.long_sounds import HeardSound, Mono
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames


class Listener:
    """Takes a running recording in chunks, and gives the last of it as a sample.

    The sample is what a recording of the same last seconds is: its frames are those that
    ``FrameCache`` has of it, bit for bit, and it goes wherever a sample goes. Of an encoder with
    ``windows`` it begins at the first window that begins within the last ``seconds``, so that it
    may be a hop shorter; where ``seconds`` fit into one window, and without ``windows``, it is all
    of them, encoded for each call. What it holds does not grow with the recording. Chunks may come
    in one thread and calls be made in another.

    Args:
        name: of the modality, for messages.
        encoder: that hears; in evaluation mode, with weights that stay as they are.
        encode: frames of what the encoder prepared, wherever the encoder is.
        seconds: of the recording that a sample has at most; None for as much as the encoder takes.
        sampling_rate: of the chunks, in hertz; None for the encoder's own.

    Raises:
        SafeError: the modality is no sound, its encoder takes less than ``seconds``, or an argument
            is out of its range.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        encode: Callable[[Mapping[str, Tensor]], Frames],
        seconds: float | None = None,
        sampling_rate: int | None = None,
    ) -> None:
        if encoder.sampling_rate is None:
            raise SafeError(
                f"modality `{name}` is not listened to: it takes no sound",
                hint="give its samples one by one",
            )
        self.name, self.encoder, self._encode = name, encoder, encode
        self._rate: int = encoder.sampling_rate
        self.sampling_rate = self._rate if sampling_rate is None else sampling_rate
        if type(self.sampling_rate) is not int or self.sampling_rate < 1:
            raise SafeError(f"`sampling_rate` must be a positive integer, not {sampling_rate!r}")
        self._most = self._steps_of(seconds)
        windows = encoder.windows
        self._hop = windows.hop if windows and self._most > windows.window.steps else None
        self._resampler: StreamResampler | None
        self._resampler = StreamResampler(self.sampling_rate, self._rate)
        self._sound = np.zeros(self._most, np.float32)  # a ring: sample n is at n % most
        self._total = 0
        self._whole: deque[tuple[int, Frames]] = deque()  # windows by where they begin
        self._next = 0  # where the first one begins that is not among them
        self._lock = threading.Lock()

    def _steps_of(self, seconds: float | None) -> int:
        """So many seconds in samples of the encoder."""
        windows, window = self.encoder.windows, self.encoder.whole_window()
        room = None if window is None else window.steps
        if windows is not None:
            room = windows.longest
        if seconds is None:
            if room is None:
                raise SafeError(
                    f"the encoder of `{self.name}` does not say what it takes at once",
                    hint="say how many `seconds` it is to hear",
                )
            return room
        if not 0 < seconds < float("inf") or round(seconds * self._rate) < 1:
            raise SafeError(f"`seconds` must be a positive number, not {seconds!r}")
        steps = round(seconds * self._rate)
        if room is not None and steps > room:
            limit = "the encoder takes at once"
            limit = limit if windows is None else "`longest` of its `windows` allows"
            raise SafeError(
                f"`seconds` is {seconds:g}, longer than the {room / self._rate:g} s of "
                f"`{self.name}` that {limit}",
                hint=f"`windows = {{ longest = {seconds:g} }}` in the recipe, or listen to less",
            )
        return steps

    @property
    def seconds(self) -> float:
        """What a sample has at most."""
        return self._most / self._rate

    @property
    def total(self) -> float:
        """Seconds of the recording so far, as far as they are resampled."""
        return self._total / self._rate

    def add(self, chunk: NDArray[Any] | Tensor | Waveform) -> None:
        """Hear more of the recording, and encode the windows that it completes.

        Args:
            chunk: what follows, of any length, mono, (samples,): floats from -1 to 1, or 16- or
                32-bit integers.

        Raises:
            SampleError: it is no such array, holds NaN or Inf, or is at another rate; none of it is
                heard then. Or the encoder refuses a window.
            SafeError: the recording has ended, or the encoder is in training.
        """
        values = self._checked(chunk)
        with self._lock:
            if self._resampler is None:
                raise SafeError(
                    f"the recording for `{self.name}` has ended",
                    hint="listen to another: `model.listen`",
                )
            self._append(self._resampler(values))

    def end(self) -> None:
        """Nothing follows: hear what a resampler still held of the recording."""
        with self._lock:
            if self._resampler is not None:
                rest, self._resampler = self._resampler.end(), None
                self._append(rest)

    def heard(self) -> HeardSound:
        """The last of the recording as a sample of the modality, which stays what it is.

        Raises:
            SampleError: nothing was heard yet, or the encoder refuses it.
            SafeError: the encoder is in training.
        """
        with self._lock:
            if not self._total:
                raise SampleError(
                    f"nothing was heard yet for `{self.name}`", hint="give it a chunk of sound"
                )
            first = self._first()
            sound = Waveform(self._part(first, self._total), self._rate)
            return HeardSound(sound, self.encoder, self._frames(first))

    def _frames(self, first: int) -> Frames:
        """Of the recording from ``first`` on: kept ones, and those of what is behind them."""
        windows, steps = self.encoder.windows, self._total - first
        if windows is None or steps <= windows.window.steps:
            return self._encoded(first, self._total)
        parts = [frames for _, frames in self._whole]
        for start in windows.starts(steps)[len(parts) :]:
            stop = min(start + windows.window.steps, steps)
            parts.append(self._encoded(first + start, first + stop))
        parts = [in_a_row(one, windows.window.frames) for one in parts]
        values = torch.cat([one.values for one in parts], dim=1)
        return Frames(values, torch.cat([one.mask for one in parts], dim=1))

    def _checked(self, chunk: Any) -> Mono:
        """The amplitudes of a chunk.

        Raises:
            SampleError: it is none of this recording.
        """
        if isinstance(chunk, Tensor):
            chunk = chunk.detach().cpu().numpy()
        if isinstance(chunk, np.ndarray):
            if chunk.shape == (0,):
                return np.zeros(0, np.float32)
            chunk = Waveform(chunk, self.sampling_rate)
        if not isinstance(chunk, Waveform):
            raise SampleError(
                f"a chunk of sound must be an array, not {type(chunk).__name__}",
                hint="give amplitudes, (samples,)",
            )
        if chunk.sampling_rate != self.sampling_rate:
            raise SampleError(
                f"a chunk is sampled at {chunk.sampling_rate} Hz, and the recording for "
                f"`{self.name}` at {self.sampling_rate} Hz",
                hint=f"listen at its rate: sampling_rate={chunk.sampling_rate}",
            )
        return check_waveform(chunk, "the chunk", self.name, self.sampling_rate).values

    def _append(self, values: Mono) -> None:
        self._total += len(values)
        kept = values[-self._most :]
        at = (self._total - len(kept)) % self._most
        room = self._most - at
        self._sound[at : at + len(kept)] = kept[:room]
        self._sound[: len(kept[room:])] = kept[room:]
        if self._hop is None:
            return
        first = self._first()
        while self._whole and self._whole[0][0] < first:
            self._whole.popleft()
        self._next = max(self._next, first)
        assert self.encoder.windows is not None
        size = self.encoder.windows.window.steps
        while self._next + size <= self._total:
            self._whole.append((self._next, self._encoded(self._next, self._next + size)))
            self._next += self._hop

    def _first(self) -> int:
        """Where the last of the recording begins."""
        over = max(0, self._total - self._most)
        return over if self._hop is None else -(-over // self._hop) * self._hop

    def _part(self, start: int, stop: int) -> Mono:
        at, length = start % self._most, stop - start
        part = self._sound[at : at + length]
        return np.concatenate([part, self._sound[: length - len(part)]])

    def _encoded(self, start: int, stop: int) -> Frames:
        """The frames of one window, alone: beside others its last bits would depend on them."""
        if self.encoder.training:
            raise SafeError(
                f"the encoder of `{self.name}` is in training, so that what it hears now would not "
                "stay true",
                hint="model.eval()",
            )
        place = f"what was heard for `{self.name}`"
        try:
            prepared = self.encoder.prepare([Waveform(self._part(start, stop), self._rate)])
        except SampleError as error:
            message = error.message.replace("`samples[0]`", place)
            raise SampleError(message, hint=error.hint) from error
        with torch.no_grad():
            return finite_frames(self._encode(prepared), place)
