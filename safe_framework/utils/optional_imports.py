"""Libraries that only some uses need, and torchaudio, which may be broken.

The wheel of torchaudio holds a native library for one build of torch. Beside any other it cannot
be imported, and then neither can most model classes of transformers, which imports it wherever it
is installed. So a torchaudio that cannot be imported is set aside before transformers is.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from safe_framework.errors import DataError

_why_aside: list[str] = []


def load_torchaudio() -> ModuleType:
    """The module ``torchaudio``.

    Raises:
        ImportError: it is not installed, or was built for another torch.
    """
    if _why_aside and sys.modules.get("torchaudio") is None:
        raise ImportError(_why_aside[0])
    try:
        return import_module("torchaudio")
    except ImportError:
        raise
    except Exception as error:  # whatever a native library of another build runs into
        reasons = [str(each) for each in (error, error.__cause__) if each is not None]
        raise ImportError(": ".join(reasons)) from error


def set_aside_broken_torchaudio() -> None:
    """Call it before transformers or peft is imported, or as soon as possible afterwards.

    A torchaudio that cannot be imported is, for the rest of the process, as if it were not
    installed; a warning says so. One that works is left alone, and so is one that is missing.
    """
    if "torchaudio" in sys.modules or find_spec("torchaudio") is None:
        return
    try:
        load_torchaudio()
    except ImportError as error:
        _why_aside[:] = [str(error)]
        for name in [name for name in sys.modules if name.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # how Python marks absence
        _forget_what_transformers_saw()
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"torchaudio cannot be imported and is set aside, see `safe doctor`: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )


def _forget_what_transformers_saw() -> None:
    """Its answer to whether torchaudio is there is cached by its first import."""
    seen = sys.modules.get("transformers.utils.import_utils")
    forget = getattr(getattr(seen, "is_torchaudio_available", None), "cache_clear", None)
    if forget is not None:
        forget()


def require(module: str, extra: str, why: str) -> Any:
    """Import a module that only some uses need.

    Args:
        module: its dotted name.
        extra: the extra of this package that installs it.
        why: what needs it, for the message.

    Raises:
        DataError: it cannot be imported.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: one without its native library
        raise DataError(
            f"{why}, which cannot be imported: {error}",
            hint=f"pip install 'safe-framework[{extra}]'",
        ) from error
