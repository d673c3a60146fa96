"""``safe doctor``: what is installed, what is missing or broken, and how to repair it."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from safe_framework.cli.table import table
from safe_framework.utils.files import atomic_write
from safe_framework.utils.optional_imports import load_torchaudio

_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")
_NOT_FOR_USERS = ("dev", "test")
_ELSEWHERE = ("safe-framework", "torchaudio")  # the latter has a section of its own
_WORKS = "works on the CPU"
_PRODUCT = """\
import torch
ones = torch.ones(64, 64, dtype=torch.bfloat16)
torch.nn.functional.linear(ones, ones)
"""


class _Requirement(NamedTuple):
    distribution: str
    extra: str  # empty where the framework cannot do without


def add(commands: Any) -> None:
    """Declare the command."""
    text = "say what is installed, what is missing or broken, and how to repair it"
    commands.add_parser("doctor", help=text, description=text).set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.pretrained import cache_folder

    print(table([("python", platform.python_version()), ("cache", str(cache_folder()))], indent=""))
    requirements = _requirements()
    print("\nneeded")
    print(table([_row(needed) for needed in requirements if not needed.extra]))
    print("\noptional")
    print(table([_row(needed) for needed in requirements if needed.extra]))
    print(f"\ntorchaudio\n  {torchaudio_state()}")
    print(f"\nbfloat16\n  {bfloat16_state(cache=cache_folder())}")
    missing = [needed for needed in requirements if not needed.extra and not _version(needed)]
    return 1 if missing else 0


def torchaudio_state() -> str:
    """Whether torchaudio is missing, broken or works, and what follows from that."""
    try:
        version("torchaudio")
    except PackageNotFoundError:
        return (
            "not installed: sounds are resampled by soxr, which serves as well, and only the\n"
            '  encoder `torchaudio` needs it: pip install "safe-framework[torchaudio]"'
        )
    try:
        return f"{load_torchaudio().__version__} works"
    except ImportError as error:
        torch = _version(_Requirement("torch", ""))
        return (
            f"{version('torchaudio')} is broken beside torch {torch}: {error}\n"
            "  Its native library was built for another torch. It is set aside: sounds are\n"
            "  resampled by soxr, and only the encoder `torchaudio` does not work. A program that\n"
            "  imports models of transformers before the framework needs any fails, since\n"
            "  transformers imports torchaudio wherever it is installed.\n"
            "hint: `pip uninstall torchaudio`, or install the build that matches torch"
        )


def bfloat16_state(program: str = _PRODUCT, cache: Path | None = None) -> str:
    """Whether a product of bfloat16 matrices works on this processor, tried in another process.

    Some virtual machines announce AMX and forbid it, so that oneDNN's products end Python.

    Args:
        program: makes such a product.
        cache: folder where it is noted that one has worked; to import torch takes seconds.
    """
    known = cache / "doctor" / _key(program) if cache is not None else None
    if known is not None and known.is_file():
        return _WORKS
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode == 0:
        if known is not None:
            with suppress(OSError):
                atomic_write(known, b"")
        return _WORKS
    if done.returncode == -signal.SIGILL:
        return (
            "a matrix product ends Python: the processor announces an instruction and forbids it\n"
            "hint: `export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` before Python starts"
        )
    lines = done.stderr.strip().splitlines() or [f"Python ended with {done.returncode}"]
    return f"cannot be tried: {lines[-1]}"


def _key(program: str) -> str:
    """What decides whether a program works: itself, Python, torch, the processor and oneDNN."""
    processor = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = "".join(line for line in lines[:40] if line.startswith(("model", "flags")))
    onednn = sorted(name + value for name, value in os.environ.items() if "DNN" in name)
    about = (program, sys.version, _version(_Requirement("torch", "")), processor, *onednn)
    return hashlib.sha256("\n".join((*about, *platform.uname())).encode()).hexdigest()[:16]


def _requirements() -> list[_Requirement]:
    """What the framework's own metadata asks for; of several extras the smallest is named."""
    lines = [_REQUIREMENT.match(line) for line in requires("safe-framework") or []]
    found = [_Requirement(match[1], match[2] or "") for match in lines if match]
    sizes = Counter(needed.extra for needed in found)
    chosen: dict[str, _Requirement] = {}
    for needed in sorted(found, key=lambda needed: (sizes[needed.extra], needed.extra)):
        if needed.extra not in _NOT_FOR_USERS and needed.distribution not in _ELSEWHERE:
            chosen.setdefault(needed.distribution, needed)
    return sorted(chosen.values())


def _row(needed: _Requirement) -> tuple[str, str]:
    if found := _version(needed):
        return needed.distribution, found
    target = f"safe-framework[{needed.extra}]" if needed.extra else needed.distribution
    return needed.distribution, f'missing: pip install "{target}"'


def _version(needed: _Requirement) -> str:
    try:
        return version(needed.distribution)
    except PackageNotFoundError:
        return ""
