"""What one tiny call of a base shows of its layers, before anything is attached to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery_layout import PLAIN, Layout, layout_named, layout_of
from safe_framework.core.layer_hooks_attachment import LayerCall, hidden_of, with_hidden
from safe_framework.core.special_tokens import ordinary_ids
from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained.probe_cache import recalled

_ROWS, _LENGTH, _WORDS = 3, 5, 4
_STILL = 1e-5
"""Relative change of the outputs below which a push of a layer's input did not arrive."""


@attrs.frozen
class LayerStack:
    """The layers of a base into which a modality can be fused.

    Attributes:
        path: where their list is in the base.
        count: how many there are.
        hidden_size: width of their hidden states.
        layout: axes of their hidden states.
        passes: how often one forward call runs each of them.
        entry: the pass on which a modality enters: the first that lets gradients through.
        unserved: why a layer cannot be used, for those that cannot.
    """

    path: str
    count: int
    hidden_size: int
    layout: Layout = PLAIN
    passes: int = 1
    entry: int = 0
    unserved: Mapping[int, str] = attrs.field(factory=dict)

    def of(self, base: nn.Module) -> nn.ModuleList:
        """The list of layers in ``base``."""
        found = base.get_submodule(self.path)
        assert isinstance(found, nn.ModuleList)
        return found


def example_inputs(base: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A few ordinary words, as a call of ``base`` wants them."""
    words = ordinary_ids(base, _WORDS) * _ROWS * _LENGTH
    ids = torch.tensor(words[: _ROWS * _LENGTH], device=device).reshape(_ROWS, _LENGTH)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if decodes_apart(base):
        inputs["decoder_input_ids"] = ids
    return inputs


def decodes_apart(base: nn.Module) -> bool:
    """Whether the text to be continued goes to a decoder of its own, beside an encoder's text."""
    config = base.config
    configs = (config, getattr(config, "text_config", None))
    return any(getattr(found, "is_encoder_decoder", False) for found in configs)


def probe(base: nn.Module, paths: Sequence[str], example: Mapping[str, Any]) -> LayerStack:
    """Run ``base`` once and see which layers can be served.

    Args:
        base: a transformers model.
        paths: of lists of layers; the first of them that runs is taken.
        example: keyword arguments of the call.

    Raises:
        UnsupportedBaseError: the base did not run, no layer was called, or their hidden states
            are of an unknown kind; the message says what was seen.
    """
    question = f"layers of {', '.join(paths)}"
    return _unpacked(recalled(base, question, lambda: _packed(_probed(base, paths, example))))


def _packed(stack: LayerStack) -> dict[str, Any]:
    """A stack as JSON can hold it, which has no numbers for keys."""
    unserved = list(stack.unserved.items())
    return attrs.asdict(stack) | {"layout": stack.layout.axes, "unserved": unserved}


def _unpacked(kept: Mapping[str, Any]) -> LayerStack:
    layout, unserved = layout_named(kept["layout"]), dict(kept["unserved"])
    return LayerStack(**{**kept, "layout": layout, "unserved": unserved})


def _probed(base: nn.Module, paths: Sequence[str], example: Mapping[str, Any]) -> LayerStack:
    looks = {path: [_Look() for _ in _layers(base, path)] for path in paths}
    layers = [layer for path in paths for layer in _layers(base, path)]
    with _watching(layers, [look for found in looks.values() for look in found]):
        _run(base, example)
    for path in paths:
        seen = {layer: look.visits for layer, look in enumerate(looks[path]) if look.visits}
        if seen:
            rows = len(example["input_ids"]) if "input_ids" in example else _ROWS
            return _judge(base, LayerStack(path, len(looks[path]), 0), seen, rows)
    raise UnsupportedBaseError(
        f"`{type(base).__name__}` ran without calling any layer of `{paths[0]}`",
        hint="name the list of layers that really run by `layers_path`",
    )


def _layers(base: nn.Module, path: str) -> list[nn.Module]:
    layers: Any = base.get_submodule(path)
    return list(layers)


def check_arrival(
    base: nn.Module, stack: LayerStack, wanted: Sequence[int], example: Mapping[str, Any]
) -> None:
    """Push the input of each layer in ``wanted`` and see that the base's outputs move.

    Raises:
        UnsupportedBaseError: a layer cannot be served, or what is added to its input is lost.
    """
    for layer in wanted:
        if layer in stack.unserved:
            raise UnsupportedBaseError(
                f"layer {layer} of `{type(base).__name__}` cannot be fused: "
                f"{stack.unserved[layer]}",
                hint=f"choose other `layers`; {_served(stack)} can be used",
            )
    question = f"arrival at {list(wanted)} of {stack.path}"
    recalled(base, question, lambda: _check_pushes(base, stack, wanted, example))


def _check_pushes(
    base: nn.Module, stack: LayerStack, wanted: Sequence[int], example: Mapping[str, Any]
) -> None:
    reference = _run(base, example)
    for layer in wanted:
        with _watching([stack.of(base)[layer]], [_Push(stack)]):
            moved = _run(base, example)
        if _same(reference, moved):
            raise UnsupportedBaseError(
                f"what is added to the input of layer {layer} of `{type(base).__name__}` does "
                "not reach its outputs",
                hint="name the list of layers that really run by `layers_path`",
            )


def _served(stack: LayerStack) -> str:
    return ", ".join(str(layer) for layer in range(stack.count) if layer not in stack.unserved)


@attrs.frozen
class _Visit:
    """What a layer was called with."""

    hidden: tuple[int, ...] | str
    gradients: bool


class _Look:
    """Remembers every call of a layer."""

    def __init__(self) -> None:
        self.visits: list[_Visit] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_of(args, kwargs)
        plain = isinstance(hidden, Tensor) and hidden.is_floating_point()
        shape = tuple(hidden.shape) if plain else _name(hidden)
        self.visits.append(_Visit(shape, torch.is_grad_enabled()))


def _name(hidden: Any) -> str:
    return f"{hidden.dtype}" if isinstance(hidden, Tensor) else type(hidden).__name__


class _Push:
    """Adds noise as large as the hidden states to them, where a modality would enter."""

    def __init__(self, stack: LayerStack) -> None:
        self.stack, self.calls = stack, 0

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        turn = self.calls % self.stack.passes
        self.calls += 1
        if turn != self.stack.entry:
            return None
        hidden = hidden_of(args, kwargs)
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        scale = hidden.float().abs().mean() + 1e-3
        pushed = hidden.float() + scale * noise.to(hidden.device)
        return with_hidden(args, kwargs, pushed.to(hidden.dtype))


@contextmanager
def _watching(layers: Sequence[nn.Module], hooks: Sequence[Any]) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True)
        for layer, hook in zip(layers, hooks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(base: nn.Module, example: Mapping[str, Any]) -> Tensor:
    """The logits of a call, which neither depends on the caller's seed nor moves it."""
    try:
        with torch.enable_grad(), torch.random.fork_rng():  # a frozen base keeps no graph
            torch.manual_seed(0)
            call: Any = base._call_impl  # what `base` does, also where it is compiled
            out = call(**example)
    except Exception as error:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` failed on {_described(example)}: "
            f"{type(error).__name__}: {error}",
            hint="give inputs on which it runs: attach(base, example={...})",
        ) from error
    return _outputs(base, out)


def _described(example: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in example)


def _outputs(base: nn.Module, out: Any) -> Tensor:
    values = list(out.values()) if isinstance(out, Mapping) else [getattr(out, "logits", out)]
    found = [out["logits"]] if isinstance(out, Mapping) and "logits" in out else values
    logits = next((value for value in found if isinstance(value, Tensor)), None)
    if logits is None:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` gave {type(out).__name__} without logits",
            hint="a base must be a model with a language modelling head",
        )
    return logits


def _same(reference: Tensor, moved: Tensor) -> bool:
    """Whether nothing moved by more than rounding; masked, huge logits are no measure of that."""
    first, second = reference.float(), moved.float()
    shift = torch.where(first == second, 0.0, first - second).abs()
    return bool((shift <= _STILL * first.abs().median()).all())


def _judge(
    base: nn.Module, stack: LayerStack, seen: Mapping[int, Sequence[_Visit]], rows: int
) -> LayerStack:
    """The stack as the most common kind of call showed it."""
    usual, _ = Counter(tuple(visits) for visits in seen.values()).most_common(1)[0]
    shape = usual[0].hidden
    layout = None if isinstance(shape, str) else layout_of(shape, rows)
    if layout is None or isinstance(shape, str):
        raise UnsupportedBaseError(
            f"the layers of `{type(base).__name__}` at `{stack.path}` take hidden states of "
            f"{shape} in a call of {rows} rows",
            hint="no known layout, such as (batch, length, hidden), has this shape",
        )
    unserved = {
        layer: _difference(seen.get(layer, ()), usual)
        for layer in range(stack.count)
        if tuple(seen.get(layer, ())) != usual
    }
    entry = next((turn for turn, visit in enumerate(usual) if visit.gradients), 0)
    return attrs.evolve(
        stack,
        hidden_size=shape[-1],
        layout=layout,
        passes=len(usual),
        entry=entry,
        unserved=unserved,
    )


def _difference(visits: Sequence[_Visit], usual: Sequence[_Visit]) -> str:
    if not visits:
        return "it did not run"
    if len(visits) != len(usual):
        return f"it ran {len(visits)} times in a call, most layers {len(usual)}"
    return f"its hidden states are {visits[0].hidden}, those of most layers {usual[0].hidden}"
