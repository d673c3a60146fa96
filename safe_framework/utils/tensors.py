"""Tensors bit by bit, and copies of them on the CPU.

That "off is the base" means equality of bits. ``torch.equal`` calls 0.0 and -0.0 equal and NaN
unequal to itself; neither is a statement about bits:

>>> bitwise_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
False
>>> bitwise_equal(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from safe_framework.errors import SafeError

TERMS = 64
"""Roundings by which two sums of the same terms may differ: errors of random signs grow with the
root of their number, here of 4,096 products."""

_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def is_bfloat16_fast(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16."""
    return device.type == "cuda" or any(map(torch.cpu.get_capabilities().get, _FAST_BFLOAT16))


def cpu_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors wants it."""
    return tensor.detach().cpu().contiguous().clone()


def bitwise_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; where they are does not count."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(as_bytes(first), as_bytes(second).to(first.device))


def near(given: Tensor, wanted: Tensor) -> bool:
    """Whether two computations differ by no more than rounding, of which bfloat16 has much."""
    rounding = min(TERMS * torch.finfo(wanted.dtype).eps, 0.05)
    return bool((given - wanted).float().norm() <= rounding * wanted.float().norm())


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor of any dtype in row-major order, flat, as ``torch.uint8``."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def checked_device(device: str | int | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        SafeError: it is not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise SafeError(f"`device` cannot be {device!r}: {why}", hint='use "cpu"') from error
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on whatever device.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Within the block, numbers of no stated type are float32, whatever torch's default is."""
    default = torch.get_default_dtype()
    if default is torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def keeping_type(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``move`` does to a tensor, but for its type."""

    def moved(tensor: Tensor) -> Tensor:
        """The tensor where ``move`` puts it, with its own bits."""
        found = move(tensor)
        return found if found.dtype == tensor.dtype else tensor.to(found.device)

    return moved


def changes_type(move: Callable[[Tensor], Tensor], dtype: torch.dtype) -> bool:
    """Whether ``move``, as ``nn.Module._apply`` takes it, gives tensors of ``dtype`` another."""
    return move(torch.empty(0, dtype=dtype)).dtype != dtype
