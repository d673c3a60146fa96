"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**30
_OWN_MAPPING = 32 * 2**20  # the most that glibc takes


def keep_freed_memory() -> None:
    """Let a process keep up to 1 GiB that was freed for what it allocates next.

    Tensors come and go at every operation. By default, glibc hands most of their memory back to the
    system, which clears each page again when it is next touched: that can take longer than the
    operation itself. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
