"""The state that random numbers start from."""

from __future__ import annotations

import torch


def seed_generators(seed: int) -> None:
    """Start every generator of torch's from a seed.

    Where there is no accelerator, ``torch.manual_seed`` notes for each kind of one what it would
    have done there, with the stack of its caller, which takes milliseconds under a deep one.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
