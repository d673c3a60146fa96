"""The last position of a text run once more, through the layers from the first fused one on.

A base has read a prompt, and its cache holds the keys and values of it. To let modalities act on
the last position, that position's column leaves the cache of these layers, and each layer is called
again with what it was given, cut to that one position: the cost of a step of decoding. The base
goes on with what its last layer then gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.injection import ActiveModality
from safe_framework.core.layer_discovery import PLAIN, LayerStack
from safe_framework.core.layer_hooks import registered
from safe_framework.core.prompt_states import input_of, output_of

_KEPT = (type(None), bool, int, float, str)
_POSITIONS = ("position_ids", "cache_position")
_ROTATIONS = "position_embeddings"
_OF_PAIRS = ("mask", "bias")
_ENCODED = "encoder_hidden_states"
"""Names of what layers are given beside hidden states."""


class _UnknownArgumentError(Exception):
    """An argument of a layer of which nobody knows what belongs to one position."""


@attrs.frozen(eq=False)
class _Run:
    """What one layer was called with, without its hidden states.

    Attributes:
        module: the layer.
        args: further positional arguments.
        kwargs: further keyword arguments.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@attrs.define(eq=False)
class LastPosition:
    """What some consecutive layers were called with, the last one being the base's last.

    Attributes:
        first: of these layers.
        columns: of the text that they were called with last.
    """

    first: int
    columns: int = attrs.field(default=0, init=False)
    _given: Tensor | None = attrs.field(default=None, init=False)
    _runs: list[_Run] = attrs.field(factory=list, init=False)
    _out: Tensor | None = attrs.field(default=None, init=False)
    _whole: bool = attrs.field(default=False, init=False)

    def note(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Remember the call of a layer, in which no modality acted."""
        if layer < self.first:
            return
        hidden = input_of(args, kwargs)
        if layer == self.first:
            self._runs, self._whole = [], True
            self.columns, self._given = hidden.shape[1], hidden[:, -1:].clone()
        # Else the base does something between its layers, which would be left out.
        self._whole &= layer == self.first + len(self._runs)
        self._whole &= layer == self.first or hidden is self._out
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        self._runs.append(_Run(module, args[1:], rest))
        self._out = output_of(out)

    def again(self, modalities: Sequence[ActiveModality], rows: Tensor) -> Tensor | None:
        """What the last layer gives at the last position with these modalities on.

        Args:
            modalities: each of which acts at that position alone.
            rows: whose keys and values there are to be the new ones; others keep what they had.

        Returns:
            (copies, 1, hidden); None where that position cannot be run by itself.
        """
        hidden, calls = self._given, list[dict[str, Any]]()
        if not self._whole or hidden is None:
            return None
        with suppress(_UnknownArgumentError):
            calls = [_sliced(run, self.columns) for run in self._runs]
        caches = [_layer_of(call, self.first + n) for n, call in enumerate(calls)]
        if not calls or not all(_croppable(cache) for cache in caches):
            return None
        for number, (run, call, cache) in enumerate(zip(self._runs, calls, caches, strict=True)):
            layer, before = self.first + number, (cache.keys, cache.values)
            _crop(cache)
            for active in modalities:
                if layer in active.fusion.layers:
                    hidden = active.apply_everywhere(hidden, layer)
            out: Any = run.module.forward(hidden, **call)  # its hooks have seen this position
            hidden = output_of(out)
            _keep_others(cache, before, rows)
        return hidden


def _sliced(run: _Run, columns: int) -> dict[str, Any]:
    """A layer's further arguments by name, cut to the last position.

    Raises:
        _UnknownArgumentError: one is unknown.
    """
    parameters = list(inspect.signature(type(run.module).forward).parameters.values())[2:]
    names = [p.name for p in parameters if p.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(names) < len(run.args):
        raise _UnknownArgumentError
    named = dict(zip(names, run.args, strict=False)) | dict(run.kwargs)
    return {name: _at_last(name, value, columns) for name, value in named.items()}


def _at_last(name: str, value: Any, columns: int) -> Any:
    from transformers import Cache

    if isinstance(value, (*_KEPT, Cache)):
        return value
    if name.startswith(_ROTATIONS) and isinstance(value, (tuple, list)):
        return tuple(_last(one, -2, columns) for one in value)
    if not isinstance(value, Tensor):
        raise _UnknownArgumentError
    if name.startswith(_ROTATIONS):
        return _last(value, -2, columns)
    if name in _POSITIONS:
        return _last(value, -1, columns)
    if name == _ENCODED:
        return value
    if name.endswith(_OF_PAIRS) and value.ndim == 4:  # (batch, heads, columns, keys)
        return value if value.shape[-2] == 1 else _last(value, -2, columns)
    if name == "alibi" and value.shape[-2] == 1:
        return value
    raise _UnknownArgumentError


def _last(value: Any, axis: int, columns: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim < -axis or value.shape[axis] != columns:
        raise _UnknownArgumentError
    return value.narrow(axis, columns - 1, 1)


def _layer_of(call: Mapping[str, Any], number: int) -> Any:
    """The part of a call's cache that one layer writes its own keys and values into."""
    from transformers import Cache, EncoderDecoderCache

    cache: Any = next((value for value in call.values() if isinstance(value, Cache)), None)
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layers = [] if cache is None or getattr(cache, "offloading", False) else cache.layers
    return layers[number] if number < len(layers) else None


def _croppable(layer: Any) -> bool:
    """Whether a layer's cache still holds all that its last position attended to."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if type(layer) is DynamicSlidingWindowLayer:
        return bool(layer.is_initialized and layer.cumulative_length < layer.sliding_window)
    return type(layer) is DynamicLayer and layer.is_initialized


def _crop(layer: Any) -> None:
    """Take the last column out."""
    layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
    if layer.is_sliding:
        layer.cumulative_length -= 1


def _keep_others(layer: Any, before: tuple[Tensor, Tensor], rows: Tensor) -> None:
    """Give every row but ``rows`` the keys and values back that it had."""
    copies = layer.keys.shape[0]
    if len(rows) == copies:
        return
    new = torch.zeros(copies, dtype=torch.bool, device=layer.keys.device)
    new[rows.to(new.device)] = True
    mask = new[:, None, None, None]
    layer.keys = torch.where(mask, layer.keys, before[0])
    layer.values = torch.where(mask, layer.values, before[1])


def with_last(hidden: Tensor, last: Tensor, rows: Tensor) -> Tensor:
    """Hidden states, (copies, length, hidden), with those of some rows' last position replaced.

    A clone keeps the strides, on which the base's own kernels, and so its bits, depend.
    """
    at = rows.to(hidden.device)
    out = hidden.clone()
    out[at, -1] = last.to(hidden.device)[at, 0]
    return out


_AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Difference, by type, within which one position alone gives what it gives in its text."""


@torch.no_grad()
def runs_alone(base: nn.Module, stack: LayerStack, example: Mapping[str, Any]) -> bool:
    """Whether the last position of a text gives by itself what it gave in its text.

    Args:
        base: a transformers model.
        stack: its layers.
        example: keyword arguments of one of its calls.
    """
    if stack.layout != PLAIN or stack.passes > 1:
        return False
    seen, layers = LastPosition(0), stack.of(base)
    found: list[Tensor] = []

    def leave(number: int) -> Callable[..., None]:
        """A hook of one layer."""

        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            """Remember the call, and compare once the last layer has run."""
            if len(found):
                return
            seen.note(number, module, args, kwargs, out)
            if number == stack.count - 1:
                alone = seen.again((), torch.arange(len(output_of(out))))
                found.extend([] if alone is None else [output_of(out)[:, -1:], alone])

        return hook

    handles = [
        layer.register_forward_hook(leave(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    with registered(*handles), suppress(Exception):  # a base that refuses this is asked in full
        base(**_padded(example), use_cache=True)
    if len(found) != 2:
        return False
    whole, alone = found
    off = (whole - alone).abs().max() / whole.abs().max()
    return bool(off <= _AGREES.get(whole.dtype, 8 * torch.finfo(whole.dtype).eps))


def _padded(example: Mapping[str, Any]) -> dict[str, Any]:
    """The example with its first row padded by one word on the left, so that its mask matters."""
    mask = example.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) < 2:
        return dict(example)
    padded = mask.clone()
    padded[0, 0] = 0
    return {**example, "attention_mask": padded}
