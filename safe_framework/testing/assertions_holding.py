"""What the contracts share: how often they try, when two results are the same, what learns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor, nn

_STEPS = 4


def tried(most: int = 30) -> settings:
    """Settings of a law that is tried on up to ``most`` examples, or as the profile says.

    A contract runs as a method of each of its subclasses, which Hypothesis takes for a mistake;
    and a first example may load a model.
    """
    return settings(
        max_examples=min(most, settings().max_examples),
        deadline=None,
        phases=[phase for phase in settings().phases if phase is not Phase.explain],  # minutes
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )


def assert_near(seen: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of other shapes of the same products."""
    largest = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5 * max(largest, 1.0))


def moved(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module after something has been learned: each trainable parameter changed a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise.to(parameter.dtype))
    return module


def never_learning(module: nn.Module, output: Callable[[], Tensor]) -> list[str]:
    """Names of the trainable parameters that no gradient reaches in a few steps.

    Args:
        module: in training, from a fresh start.
        output: of the module; a random direction of it is trained.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert trainable, "no parameter is trainable"
    optimizer = torch.optim.Adam(trainable.values(), lr=0.01)
    generator, waiting = torch.Generator().manual_seed(0), set(trainable)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        given = output()
        loss = (given * torch.randn(given.shape, generator=generator)).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        for name, parameter in trainable.items():
            if parameter.grad is not None and parameter.grad.any():
                waiting.discard(name)
        optimizer.step()
    return sorted(waiting)


def finite_gradients(module: nn.Module) -> bool:
    """Whether every gradient that there is holds finite numbers."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
