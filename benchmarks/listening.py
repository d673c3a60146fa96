"""What a chunk of a running recording costs, beside encoding all that is heard anew.

Each round hears one hop of sound in chunks and asks once, and then encodes the last seconds as one
recording, window by window. A round gives ratios of time of the processor, which other work on the
machine moves least; their medians and ranges are printed.

    OMP_NUM_THREADS=1 python benchmarks/listening.py [--seconds 30 --window 5 --chunk 0.5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from safe_framework.data.audio import Waveform
from safe_framework.data.listening import Listener
from safe_framework.data.windows import each_window
from safe_framework.interfaces import registry
from safe_framework.interfaces.encoder import Encoder


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="that are heard")
    parser.add_argument("--window", type=float, default=5.0, help="of the encoder, in seconds")
    parser.add_argument("--hop", type=float, help="of its windows; default: they do not overlap")
    parser.add_argument("--chunk", type=float, default=0.5, help="in seconds")
    parser.add_argument("--rounds", type=int, default=21)
    asked = parser.parse_args()
    encoder: Encoder = registry.encoders.load("whisper")(
        model=asked.model, layer=asked.layer, seconds=asked.window
    )
    encoder.cut_into_windows(hop=asked.hop, longest=asked.seconds)
    ratios: dict[str, list[float]] = {"chunk": [], "question": []}
    baseline = []
    for number, (chunk, question, anew) in enumerate(rounds(encoder, asked.chunk, asked.rounds)):
        if number:  # the first warms up
            ratios["chunk"].append(chunk / anew)
            ratios["question"].append(question / anew)
            baseline.append(anew)
    print(f"{asked.seconds:g} s heard, windows of {asked.window:g} s, chunks of {asked.chunk:g} s")
    print(f"encoded anew: {statistics.median(baseline):.3f} s of the processor", end=", ")
    print(f"{torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}")
    for name, each in ratios.items():
        each.sort()
        told = f"{statistics.median(each):.4f} ({each[0]:.4f} to {each[-1]:.4f})"
        print(f"a {name}: {told} of that, {len(each)} rounds")


def rounds(encoder: Encoder, chunk: float, count: int) -> list[tuple[float, float, float]]:
    """Of each round a chunk's mean time, a question's, and that of all anew."""
    assert encoder.windows is not None
    assert encoder.sampling_rate is not None
    rate, windows = encoder.sampling_rate, encoder.windows
    ears = Listener("audio", encoder, lambda given: encoder(**given))
    noise = np.random.default_rng(0)

    def sound(steps: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """So much noise."""
        return noise.normal(0, 0.1, steps).astype(np.float32)

    ears.add(sound(windows.longest))
    size, found = round(chunk * rate), []
    for _ in range(count + 1):
        hop = sound(windows.hop)
        chunks = [hop[start : start + size] for start in range(0, len(hop), size)]
        added = sum(took(lambda part=part: ears.add(part)) for part in chunks)
        ears.add(sound(windows.hop // 2))  # so that a question has something new to encode
        asking = took(ears.heard)
        ears.add(sound(windows.hop - windows.hop // 2))
        whole = Waveform(sound(windows.longest), rate)
        found.append((added / len(chunks), asking, took(lambda w=whole: anew(encoder, w))))
    return found


@torch.no_grad()
def anew(encoder: Encoder, whole: Waveform) -> None:
    """Encode a recording as it is encoded where its frames are kept: each window alone."""
    for window in each_window(encoder, whole, "it"):
        encoder(**encoder.prepare([window]))


def took(work: Callable[[], object]) -> float:
    """Seconds of the processor that it takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
