"""How a layer of vLLM's is given hidden states and hands them on, as a trial at the start shows.

Most of vLLM's layers are given two tensors, of which they read the sum, since adding them is left
to the next normalisation; others are given one. Which it is decides where a sample enters, so that
it is not taken from names alone: in one pass of a few tokens each layer is run several times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.errors import SafeError

_HIDDEN, _RESIDUAL = "hidden_states", "residual"

_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative to the norm of what is compared: sums of two tensors round otherwise than one."""

_ELSEWHERE = "serve it by `safe serve --engine transformers`"


@attrs.frozen
class LayerForm:
    """What a layer is given, and what it gives.

    Attributes:
        name: of its class.
        hidden: place of its hidden states among its arguments.
        residual: place of what they are added to; None where it reads them alone.
        count: how many tensors it gives; 0 where it gives no tuple.
        gives_sum: whether what it leaves is the sum of the two that it gives, and not the first.
    """

    name: str
    hidden: int
    residual: int | None = None
    count: int = 0
    gives_sum: bool = False

    @classmethod
    def of(cls, kind: Any) -> LayerForm:
        """What the names of a layer's arguments say.

        Raises:
            SafeError: it is given no hidden states.
        """
        named = [*inspect.signature(kind.forward).parameters][1:]
        if _HIDDEN not in named:
            raise _unknown(kind.__name__, f"is given {', '.join(named)}, and no `{_HIDDEN}`")
        residual = named.index(_RESIDUAL) if _RESIDUAL in named else None
        return cls(kind.__name__, named.index(_HIDDEN), residual)

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What a layer is given in a call, as (tokens, hidden), and what that is added to."""
        hidden, residual = self._as_given(args, kwargs)
        return _flat(hidden), None if residual is None else _flat(residual)

    def _as_given(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        hidden = args[self.hidden] if len(args) > self.hidden else kwargs[_HIDDEN]
        if self.residual is None:
            return hidden, None
        return hidden, args[self.residual] if len(args) > self.residual else kwargs.get(_RESIDUAL)

    def left(self, found: Any) -> tuple[Tensor, Tensor | None]:
        """The same of what a layer gave."""
        if not self.count:
            return _flat(found), None
        return _flat(found[0]), _flat(found[1]) if self.gives_sum else None

    def passed_on(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What has the form of what a layer gives, made without running it."""
        hidden, residual = self._as_given(args, kwargs)
        if not self.count:
            return hidden
        other = torch.zeros_like(hidden) if self.gives_sum and residual is None else residual
        return hidden, other, *[None] * (self.count - 2)


class Trial:
    """One pass in which it is seen how layers hand on hidden states.

    Attributes:
        forms: what was seen, by layer.
    """

    def __init__(self) -> None:
        self.forms: dict[int, LayerForm] = {}
        self._left: dict[int, Tensor] = {}

    def of_layer(
        self,
        number: int,
        form: LayerForm,
        run: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """What a layer gives, once it was tried on the same and on other tensors.

        Args:
            number: of the layer.
            form: what names say of it.
            run: the layer.
            args: that it is given.
            kwargs: the same, by name.

        Raises:
            SafeError: it is not known how it hands on hidden states.
        """
        if number in self.forms:
            raise _unknown(form.name, "runs twice in one pass")
        hidden, residual = form.given(args, kwargs)
        shape = (args[form.hidden] if len(args) > form.hidden else kwargs[_HIDDEN]).shape

        def tried(hidden: Tensor, residual: Tensor | None) -> Any:
            """What it gives for others; it may write into them."""
            positional, named = list(args), dict(kwargs)
            for name, place, value in (
                (_HIDDEN, form.hidden, hidden),
                (_RESIDUAL, form.residual, residual),
            ):
                if place is None:
                    continue
                if len(positional) > place:
                    positional[place] = value.view(shape) if value is not None else None
                else:
                    named[name] = value.view(shape) if value is not None else None
            return run(*positional, **named)

        form = self.forms[number] = self._seen(form, tried, hidden, residual)
        before = self._left.get(number - 1)
        if before is not None and not _alike(before, _sum(*form.given(args, kwargs))):
            raise _unknown(form.name, "is not given what the layer before it leaves")
        own = tried(hidden, residual)  # last, since a model may give what it writes over later
        self._left[number] = _sum(*form.left(own)).clone()
        return own

    def _seen(
        self,
        form: LayerForm,
        tried: Callable[[Tensor, Tensor | None], Any],
        hidden: Tensor,
        residual: Tensor | None,
    ) -> LayerForm:
        """The form, once it is known what is read and left."""
        own = tried(hidden.clone(), None if residual is None else residual.clone())
        count = len(own) if isinstance(own, tuple) else 0
        first, second, *_ = (*own, None) if count else (own, None)
        if not isinstance(first, Tensor) or first.numel() != hidden.numel():
            raise _unknown(form.name, "gives no hidden states")
        if form.residual is None or second is None:
            if residual is not None:
                raise _unknown(form.name, "is given two tensors, and gives one")
            return attrs.evolve(form, residual=None, count=count)
        left, first = _sum(first, second), first.clone()
        other = _noise(hidden)
        moved = tried(_sum(hidden, residual) - other, other.clone())
        if _alike(left, _sum(*moved[:2])):
            return attrs.evolve(form, count=count, gives_sum=True)
        ignored = tried(hidden.clone(), other.clone())
        if torch.equal(first, ignored[0]):
            return attrs.evolve(form, residual=None, count=count)
        raise _unknown(form.name, "is given two tensors, and does not read their sum")

    def check(self, layers: Sequence[int]) -> None:
        """Refuse a pass that did not run each of these layers, in their order.

        Raises:
            SafeError: it did not.
        """
        if list(self.forms) != list(layers):
            raise SafeError(
                f"vLLM's model ran layers {list(self.forms)} of {list(layers)}", hint=_ELSEWHERE
            )


@contextmanager
def attending_to_itself() -> Iterator[None]:
    """Within the block, each token attends to itself alone, so that no cache is needed."""
    from vllm.model_executor.layers.attention import Attention

    own = Attention.forward

    def forward(self: Any, query: Tensor, key: Any, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """The values of each head's own group."""
        heads = value.reshape(len(query), self.num_kv_heads, -1)
        each: Tensor = heads.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        return each.flatten(1)

    Attention.forward = forward
    try:
        yield
    finally:
        Attention.forward = own


def _flat(states: Tensor) -> Tensor:
    """As (tokens, hidden): transformers' own layers have an axis more. It is the same memory."""
    return states.view(-1, states.shape[-1])


def _sum(hidden: Tensor, residual: Tensor | None) -> Tensor:
    return hidden if residual is None else hidden + residual


def _noise(like: Tensor) -> Tensor:
    """As large as something, and the same in every process."""
    made = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
    return (made * like.float().square().mean().sqrt()).to(like)


def _alike(one: Tensor, other: Tensor) -> bool:
    far = (one.flatten().float() - other.flatten().float()).norm()
    return bool(far <= _ROUNDING[one.dtype] * one.float().norm())


def _unknown(layer: str, what: str) -> SafeError:
    return SafeError(
        f"vLLM's `{layer}` {what}: it is not known where a sample enters", hint=_ELSEWHERE
    )
