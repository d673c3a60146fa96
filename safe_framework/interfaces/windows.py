"""Windows: how much of a sample an encoder takes at once, and how a longer one is cut."""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class Window:
    """The most that an encoder takes at once.

    Attributes:
        steps: along a sample's first axis: samples of a sound, readings, pictures.
        frames: that the encoder gives of so many steps, and never more of fewer.
        rate: steps a second, in hertz; None where they are not that of a clock.
        shortest: steps without which the encoder gives no frame.
    """

    steps: int
    frames: int
    rate: float | None = None
    shortest: int = 1

    def said(self, steps: float) -> str:
        """So many steps as a person would say them.

        >>> Window(80_000, 250, 16_000).said(8_000), Window(16, 16).said(40)
        ('0.5 s', '40 steps')
        """
        return f"{steps:g} steps" if self.rate is None else f"{steps / self.rate:g} s"


@attrs.frozen
class Windows:
    """How samples that are longer than one window are cut.

    Attributes:
        window: the encoder's.
        hop: steps from the beginning of one window to that of the next.
        longest: steps that a sample may have.
    """

    window: Window
    hop: int
    longest: int

    @classmethod
    def of(cls, window: Window, hop: float | None, longest: float) -> Windows:
        """Windows of an encoder.

        Args:
            window: the encoder's.
            hop: in seconds, or in steps where the window has no rate; None for windows that do
                not overlap.
            longest: of a sample, in the same.

        Raises:
            ValueError: one is out of its range.
        """
        rate = window.rate or 1
        own = cls(window, window.steps if hop is None else round(hop * rate), round(longest * rate))
        if not 1 <= own.hop <= window.steps:
            low, high = window.said(1), window.said(window.steps)
            raise ValueError(f"`hop` must be from {low} to the window of {high}, not {hop:g}")
        if own.longest < window.steps:
            least = window.said(window.steps)
            raise ValueError(f"`longest` must be at least the window of {least}, not {longest:g}")
        return own

    def starts(self, steps: int) -> range:
        """Where the windows of a sample begin; what is left of it may be too short for one.

        >>> list(Windows(Window(10, 5), 10, 100).starts(25))
        [0, 10, 20]
        """
        count = 1 + max(0, math.ceil((steps - self.window.steps) / self.hop))
        if count > 1 and steps - (count - 1) * self.hop < self.window.shortest:
            count -= 1
        return range(0, count * self.hop, self.hop)

    @property
    def most(self) -> int:
        """How many windows the longest sample has."""
        return len(self.starts(self.longest))
