"""One process of several that fill a cache of frames together.

Called as ``python filling.py CACHE MEETING NAME OTHER``. The process named NAME waits in front of
every sample until OTHER is there too, so that both encode all of them at the same time, and prints
a digest of what the cache gave it.
"""

import hashlib
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from safe_framework.core.modality import Modality
from safe_framework.core.segments import SegmentVectors
from safe_framework.interfaces.types import Frames
from safe_framework.testing.bases import HIDDEN
from safe_framework.testing.toys import ToyEncoder, ToyFusion, ToyProjector

COUNT, LENGTH = 12, 4096  # files large enough to be written in several pieces


class MeetingEncoder(ToyEncoder):
    """Waits for the other process before each sample."""

    def meet(self, meeting: Path, name: str, other: str) -> None:
        self.meeting, self.name, self.other, self.turn = meeting, name, other, 0

    def forward(self, **inputs: Tensor) -> Frames:
        (self.meeting / f"{self.name}-{self.turn}").touch()
        end = time.monotonic() + 60
        while not (self.meeting / f"{self.other}-{self.turn}").exists():
            assert time.monotonic() < end, "the other process is gone"
            time.sleep(0.001)
        self.turn += 1
        return super().forward(**inputs)


def samples() -> list[Tensor]:
    """What both encode."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(LENGTH, 4, generator=generator) for _ in range(COUNT)]


def digest(rows: list[Frames]) -> str:
    """Of the bits of all frames."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row.values.numpy().tobytes() + row.mask.numpy().tobytes())
    return found.hexdigest()


def main(cache: str, meeting: str, name: str, other: str) -> None:
    """Fill the cache, and print what came of it."""
    torch.manual_seed(0)
    encoder = MeetingEncoder()
    encoder.meet(Path(meeting), name, other)
    store = Modality(
        "touch", encoder, ToyProjector(), ToyFusion(), SegmentVectors(HIDDEN)
    ).frame_cache(Path(cache))
    rows = store.frames(samples())
    assert encoder.turn == COUNT
    print(digest(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
