"""Calls with a modality that begin where it first acts, from what the base's own call gave there.

A text is read by the base and beside several samples. Below the first fused layer all of these
compute the same, to the bit; whether a base's calls can begin there is tried on the first texts,
and on the first with pictures, whose image tower then need not run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.frozen_prefix import FrozenPrefix, first_fused_layer
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.layer_hooks import get_hidden_states, registered
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import per_token_inputs
from safe_framework.core.prompt_rows import PIXELS
from safe_framework.utils.torch_private import compiled_call

_TRIED = 2  # rows, where a batch can be cut to them
_TEXT = {"input_ids", "attention_mask"}


class SharedLayers:
    """Lets calls on a batch of texts share the layers below the first fused one.

    Args:
        model: in eval mode.
        gate: strengths of the calls, by modality.
    """

    def __init__(self, model: SafeModel, gate: Mapping[str, float]) -> None:
        self.model, self.gate = model, dict(gate)
        self._prefixes = dict[bool, FrozenPrefix | None]()  # with pictures and without, once tried
        self._may_begin = _may_begin_there(model)

    @classmethod
    @contextmanager
    def of(cls, model: SafeModel, gate: Mapping[str, float]) -> Iterator[SharedLayers]:
        """Within the block, calls may share layers; behind it these are as they were."""
        made = cls(model, gate)
        try:
            yield made
        finally:
            for prefix in made._prefixes.values():
                if prefix is not None:
                    prefix.close()

    @contextmanager
    def kept(self) -> Iterator[list[Tensor]]:
        """Within the block, what enters the first fused layer is kept, of each call of the base."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keep it."""
            found.append(get_hidden_states(args, kwargs))

        if not self._may_begin:
            yield found
            return
        entered = self.model.stack.of(self.model.base)[first_fused_layer(self.model)]
        with registered(entered.register_forward_pre_hook(keep, with_kwargs=True)):
            yield found

    @contextmanager
    def shared(
        self, kept: list[Tensor], given: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> Iterator[Mapping[str, Any]]:
        """Within the block, a call begins behind what is shared, if it can.

        Args:
            kept: of one call of the base, on ``plain``.
            given: what the call is given: the same texts, with samples.
            plain: the texts alone.

        Yields:
            What the call is to be given.
        """
        pictured, own = plain.keys() != _TEXT, {name for name in given if "__" not in name}
        if len(kept) != 1 or own != plain.keys() or not _by_row(plain):
            yield given
            return
        shortened = _without_pixels(given)
        if pictured not in self._prefixes:
            self._prefixes[pictured] = self._tried(given, shortened, plain)
        prefix = self._prefixes[pictured]
        if prefix is None:
            yield given
            return
        with prefix.start_from(kept[0], always=pictured):
            yield shortened

    @torch.no_grad()
    def _tried(
        self, given: Mapping[str, Any], shortened: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> FrozenPrefix | None:
        """The prefix, if a call that begins behind it gives what a whole one gives, to the bit."""
        prefix = FrozenPrefix(self.model, first_fused_layer(self.model))
        rows = len(plain["input_ids"])
        if all(isinstance(one, Tensor) and len(one) == rows for one in given.values()):
            given, shortened, plain = (
                {name: values[:_TRIED] for name, values in one.items()}
                for one in (given, shortened, plain)
            )
        other = {name: values.flip(0) for name, values in plain.items()}
        whole, short = ({**one, "gate": self.gate} for one in (given, shortened))
        if prefix.matches_whole_call(whole, short if plain.keys() != _TEXT else None, other):
            return prefix
        prefix.close()
        return None


def _by_row(plain: Mapping[str, Any]) -> bool:
    """Whether a call is given an id and a mask of each token, and no more but of whole rows."""
    ids = plain["input_ids"]
    rows = all(isinstance(one, Tensor) and len(one) == len(ids) for one in plain.values())
    return rows and per_token_inputs(plain, ids.shape).keys() == _TEXT


def _without_pixels(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if not name.startswith(PIXELS)}


def _may_begin_there(model: SafeModel) -> bool:
    """Whether no known property of a model keeps its calls from sharing layers."""
    return (
        isinstance(model, SafeModel)  # and not a peer that is measured like one
        and first_fused_layer(model) > 0
        and not model.split_rows
        and not model.is_gradient_checkpointing
        and not decodes_separately(model.base)
        and compiled_call(model.base) is None
    )
