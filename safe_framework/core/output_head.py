"""Run a model, and look at its logits at some positions: no others are shown to the vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.layer_hooks import get_hidden_states, registered
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_states import output_of


def logits_at(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], positions: Tensor
) -> Tensor:
    """Logits at chosen positions, row after row, (chosen, vocabulary).

    The vocabulary is wide: most of the time and memory of a small base goes into its output
    embeddings, so they are shown the hidden states of these positions alone.

    Args:
        model: the SafeModel, possibly wrapped.
        base: its base.
        inputs: of the call.
        positions: True at each chosen position, (batch, length).
    """
    chosen = int(positions.sum())
    options = no_cache_option(base)
    with shown_only(base, positions):
        logits: Tensor = model(**inputs, **options).logits
    if logits.shape[:2] == (1, chosen):
        return logits[0]
    if logits.shape[:2] != positions.shape:  # the base does something to positions behind its head
        logits = model(**inputs, **options).logits
    return logits[positions]


def hidden_at(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], positions: Tensor
) -> Tensor | None:
    """What would enter the output embeddings at chosen positions, (chosen, hidden).

    It comes out of the model as its logits do, so that a wrapper sees what it has to.

    Args:
        model: the SafeModel, possibly wrapped.
        base: its base, whose logits are its output embeddings of something and nothing more.
        inputs: of the call.
        positions: True at each chosen position, (batch, length).

    Returns:
        None where the output embeddings are not shown one hidden state for each position.
    """
    held: list[Tensor] = []

    def hold(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Keep the hidden states, and show none."""
        picked = _picked(args, positions)
        if picked is None:
            return None
        held.append(picked)
        return (picked[:, :0], *args[1:])

    def give(module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """The hidden states instead of the logits."""
        return held[0] if held else logits

    head = base.get_output_embeddings()  # type: ignore[operator]  # a method
    handles = [head.register_forward_pre_hook(hold), head.register_forward_hook(give)]
    try:
        given: Tensor = model(**inputs, **no_cache_option(base)).logits
    finally:
        for handle in handles:
            handle.remove()
    return given[0] if held else None


def no_cache_option(base: nn.Module) -> dict[str, bool]:
    """The option that keeps a base from caching keys and values; none if it has no such cache."""
    takes_cache = "use_cache" in inspect.signature(base.forward).parameters
    return {"use_cache": False} if takes_cache else {}


def _picked(args: tuple[Any, ...], positions: Tensor) -> Tensor | None:
    """The hidden states at the positions as one row, of a module's arguments; None if of others."""
    if not args or args[0].shape[:2] != positions.shape:
        return None
    hidden: Tensor = args[0]
    return hidden[positions.to(hidden.device)].unsqueeze(0)


@contextmanager
def shown_only(base: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within the block, the output embeddings see the hidden states at ``positions`` as one row.

    Args:
        base: that will be called.
        positions: True at each that is seen, (batch, length).
    """

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The chosen positions of what goes into the output embeddings."""
        picked = _picked(args, positions)
        return None if picked is None else (picked, *args[1:])

    head = base.get_output_embeddings()  # type: ignore[operator]  # a method
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


PREFIX, FINAL = "below", "final"


class _Reached(Exception):  # noqa: N818  # it ends a run, and is no error
    """Ends a run of the base, the rest of which nobody needs."""


@torch.no_grad()
def run_until(
    model: SafeModel,
    inputs: Mapping[str, Any],
    *,
    layer: int | None = None,
    final: bool = False,
) -> dict[str, Tensor]:
    """Run the base, with every modality off, as far as is needed.

    Args:
        model: whose base is run.
        inputs: the base's own, of some rows of text and pictures.
        layer: whose input hidden states are wanted, under ``PREFIX``.
        final: whether the input of the output embeddings is wanted, under ``FINAL``.

    Returns:
        What was asked for and came by, each (batch, length, hidden).
    """
    seen: dict[str, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a layer's input; stop there if nothing above it is wanted."""
        seen[PREFIX] = get_hidden_states(args, kwargs)
        if not final:
            raise _Reached

    def leave(module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep what the output embeddings are given; nobody needs the logits."""
        seen[FINAL] = args[0]
        raise _Reached

    handles = []
    if layer is not None:
        entered = model.stack.of(model.base)[layer]
        handles.append(entered.register_forward_pre_hook(enter, with_kwargs=True))
    if final:
        handles.append(output_head(model.base).register_forward_pre_hook(leave))
    try:
        with suppress(_Reached), model.off():
            model(**on_device(inputs, model.device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def layer_outputs(
    model: SafeModel, inputs: Mapping[str, Any], layers: Collection[int]
) -> dict[int, Tensor]:
    """Run the base, with every modality off, up to the last of some layers, and give their outputs.

    Args:
        model: whose base is run.
        inputs: the base's own.
        layers: whose outputs are wanted, from 0.

    Returns:
        By layer, (batch, length, hidden), as far as they came by.
    """
    seen: dict[int, Tensor] = {}

    def leaving(number: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """Keeps one layer's output; stops there if nothing above it is wanted."""

        def leave(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            """Keep the output, and stop behind the last layer that is wanted."""
            seen[number] = output_of(out)
            if number == max(layers):
                raise _Reached

        return leave

    stack = model.stack.of(model.base)
    hooks = [stack[number].register_forward_hook(leaving(number)) for number in layers]
    with registered(*hooks), suppress(_Reached), model.off():
        model(**on_device(inputs, model.device))
    return seen


def output_head(base: nn.Module) -> nn.Module:
    """The output embeddings, which turn hidden states into logits."""
    head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]  # a method
    return head


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The same batch where the model is; what is no tensor stays as it is."""
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


@torch.no_grad()
def has_plain_head(model: SafeModel, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the logits are nothing but the output embeddings of what went into them.

    Args:
        model: whose base is asked.
        inputs: the base's own, of any row without padding.
    """
    if output_head(model.base) is None:
        return False
    hidden = run_until(model, inputs, final=True).get(FINAL)
    if hidden is None or hidden.shape[:2] != inputs["input_ids"].shape:
        return False
    with model.off():
        logits: Tensor = model(**on_device(inputs, model.device)).logits
    return torch.equal(output_head(model.base)(hidden), logits)
