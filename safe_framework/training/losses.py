"""The task's loss, with the vocabulary projected only where a word counts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.training.batches import IGNORED
from safe_framework.training.classes import Classes, mean_loss
from safe_framework.vocabulary_losses import cross_entropy, takes_hidden


def answer_loss(
    model: nn.Module,
    base: nn.Module,
    batch: Mapping[str, Tensor],
    count: Tensor | None = None,
    *,
    plain: bool = False,
) -> Tensor:
    """Mean next-token cross-entropy over the labelled positions.

    Args:
        model: the SafeModel, possibly wrapped for distributed training.
        base: its base, whose output embeddings are shown only some positions.
        batch: ``input_ids``, ``attention_mask``, ``labels``, modalities, and classes that are
            read at their tokens.
        count: of labelled positions (and rows that are read at their tokens), over which the
            mean is taken, where the batch is a part of those that share them; its own if None.
        plain: whether the base's logits are known to be its output embeddings of something and
            nothing more, so that they need not be made.
    """
    inputs = dict(batch)
    classes = Classes.taken(inputs)
    targets = nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED)
    places = targets != IGNORED  # position t predicts token t + 1
    if classes is not None:
        logits = logits_at(model, base, inputs, places | classes.places)
        return mean_loss(logits, targets, classes, count)
    total = _total(model, base, inputs, places, targets[places], plain)
    return total / (places.sum() if count is None else count)


def _total(
    model: nn.Module,
    base: nn.Module,
    inputs: Mapping[str, Any],
    places: Tensor,
    targets: Tensor,
    plain: bool,
) -> Tensor:
    """Summed cross-entropy at the places."""
    head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]  # a method
    if plain and takes_hidden(head):
        hidden = hidden_at(model, base, inputs, places)
        if hidden is not None:
            return cross_entropy(hidden, head, targets)
    logits = logits_at(model, base, inputs, places)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def logits_at(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], places: Tensor
) -> Tensor:
    """Logits at chosen places, row after row, (chosen, vocabulary).

    The vocabulary is wide: most of the time and memory of a small base goes into its output
    embeddings, so they are shown the hidden states of these places alone.

    Args:
        model: the SafeModel, possibly wrapped.
        base: its base.
        inputs: of the call.
        places: True at each chosen position, (batch, length).
    """
    chosen = int(places.sum())
    options = _without_cache(base)
    with _shown_only(base, places):
        logits: Tensor = model(**inputs, **options).logits
    if logits.shape[:2] == (1, chosen):
        return logits[0]
    if logits.shape[:2] != places.shape:  # the base does something to positions behind its head
        logits = model(**inputs, **options).logits
    return logits[places]


def hidden_at(
    model: nn.Module, base: nn.Module, inputs: Mapping[str, Any], places: Tensor
) -> Tensor | None:
    """What would enter the output embeddings at chosen places, (chosen, hidden).

    It comes out of the model as its logits do, so that a wrapper sees what it has to.

    Args:
        model: the SafeModel, possibly wrapped.
        base: its base, whose logits are its output embeddings of something and nothing more.
        inputs: of the call.
        places: True at each chosen position, (batch, length).

    Returns:
        None where the output embeddings are not shown one hidden state for each position.
    """
    held: list[Tensor] = []

    def hold(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Keep the hidden states, and show none."""
        picked = _picked(args, places)
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
        given: Tensor = model(**inputs, **_without_cache(base)).logits
    finally:
        for handle in handles:
            handle.remove()
    return given[0] if held else None


def _without_cache(base: nn.Module) -> dict[str, bool]:
    takes_cache = "use_cache" in inspect.signature(base.forward).parameters
    return {"use_cache": False} if takes_cache else {}


def _picked(args: tuple[Any, ...], places: Tensor) -> Tensor | None:
    """The hidden states at the places as one row, of a module's arguments; None if of others."""
    if not args or args[0].shape[:2] != places.shape:
        return None
    hidden: Tensor = args[0]
    return hidden[places.to(hidden.device)].unsqueeze(0)


@contextmanager
def _shown_only(base: nn.Module, places: Tensor) -> Iterator[None]:
    """Within the block, the output embeddings see the hidden states at ``places`` as one row."""

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The chosen places of what goes into the output embeddings."""
        picked = _picked(args, places)
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


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """The loss, if it is a number.

    Raises:
        FloatingPointError: it is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the {name} is {loss.item()} at step {step}\n"
            "hint: lower the learning rates in [training]"
        )
    return loss
