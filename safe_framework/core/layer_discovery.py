"""What one tiny call of a base shows of its layers, before anything is attached to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.layer_hooks import LayerCall, get_hidden_states, set_hidden_states
from safe_framework.core.special_tokens import ordinary_ids
from safe_framework.errors import UnsupportedBaseError
from safe_framework.pretrained.base_model import is_weightless
from safe_framework.pretrained.probe_cache import cached
from safe_framework.utils.torch_private import uncompiled_call

# Where the layers of a base model are, found by structure alone.


Side = Literal["decoder", "encoder"]

_COUNTS = {
    "decoder": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"),
    "encoder": ("encoder_layers", "num_hidden_layers", "num_layers"),
}
_NAMES = ("layers", "h", "blocks", "block", "layer")
_FOREIGN = ("vision", "visual", "image", "audio", "speech", "video", "protein")


def text_config(model: nn.Module) -> Any:
    """The part of a transformers config that describes the decoder."""
    config: Any = model.config
    get: Callable[..., Any] | None = getattr(config, "get_text_config", None)
    return get(decoder=True) if get is not None else config


def find_layers(
    model: nn.Module, layers_path: str | None = None, side: Side = "decoder"
) -> tuple[str, ...]:
    """The dotted paths of what may be the list of layers of any transformers model, best first.

    They are the outermost lists of modules in the innermost decoder: those as long as the
    config's layer count before others, a vision tower's last, then by usual name, then the
    longest. Which of them a call really runs is for a probe to see.

    Args:
        model: a transformers model.
        layers_path: of the list, for a model where the rule is wrong.
        side: of an encoder-decoder model, which one.

    Raises:
        UnsupportedBaseError: the model holds no list of layers, or not at ``layers_path``.
    """
    if layers_path is not None:
        return (_checked(model, layers_path),)
    stack = _innermost_decoder(model) if side == "decoder" else _text_encoder(model)
    config = text_config(model)
    counts = (getattr(config, name, None) for name in _COUNTS[side])
    count = next((number for number in counts if isinstance(number, int)), None)

    def rank(found: tuple[str, nn.ModuleList]) -> tuple[bool, bool, bool, int]:
        """What makes one list of layers likelier than another: the least is taken."""
        path, layers = found
        foreign = any(word in path for word in _FOREIGN)
        return len(layers) != count, foreign, path.split(".")[-1] not in _NAMES, -len(layers)

    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    ranked = sorted(_outermost_lists(stack), key=rank)
    if not ranked:
        raise UnsupportedBaseError(
            f"`{type(model).__name__}` holds no list of layers",
            hint="name the list by `layers_path` in [base]",
        )
    return tuple(paths[id(layers)] for _, layers in ranked)


def _checked(model: nn.Module, path: str) -> str:
    try:
        found = model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedBaseError(
            f"`{type(model).__name__}` has no module at `layers_path` = `{path}`",
            hint="print(model) shows the paths",
        ) from error
    if not isinstance(found, nn.ModuleList) or not len(found):
        raise UnsupportedBaseError(
            f"`{path}` of `{type(model).__name__}` is a {type(found).__name__}, not a ModuleList",
            hint="`layers_path` must name the list of layers",
        )
    return path


def _outermost_lists(stack: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists = [
        (name, module)
        for name, module in stack.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    names = [name for name, _ in lists]
    return [
        (name, module)
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other in names)
    ]


def _innermost_decoder(model: nn.Module) -> nn.Module:
    """Follow ``get_decoder`` until it stops; some models return an ``lm_head`` called decoder."""
    seen: set[int] = set()
    while hasattr(model, "get_decoder") and id(model) not in seen:
        seen.add(id(model))
        inner: nn.Module | None = model.get_decoder()  # type: ignore[operator]  # a method
        if inner is None or not any(isinstance(m, nn.ModuleList) for m in inner.modules()):
            break
        model = inner
    return model


def _text_encoder(model: nn.Module) -> nn.Module:
    """The encoder that stands beside a decoder."""
    for module in model.modules():
        encoder = getattr(module, "encoder", None)
        if isinstance(encoder, nn.Module) and isinstance(
            getattr(module, "decoder", None), nn.Module
        ):
            return encoder
    raise UnsupportedBaseError(
        f"`{type(model).__name__}` has no encoder beside its decoder",
        hint='leave out `side`, which is then "decoder"',
    )


# How a base lays out the hidden states between its layers.
#
# Most hand on (batch, length, hidden). A few keep several parallel streams of hidden states
# (hyper-connections, arXiv:2409.19606; AltUp, arXiv:2301.13310) or put the length first. A fusion
# adapter is always shown (batch, length, hidden), the mean over streams; its delta goes to all.


@attrs.frozen
class Layout:
    """The meaning of the axes of a hidden state; the last one is always its width.

    Attributes:
        axes: names of the axes, as messages show them.
        batch: axis of the samples.
        length: axis of the text positions.
        streams: axis of the parallel streams, if there are any.
    """

    axes: str
    batch: int = 0
    length: int = 1
    streams: int | None = None

    def to_canonical(self, hidden: Tensor) -> Tensor:
        """What a fusion adapter sees: (batch, length, hidden)."""
        if self.streams is not None:
            hidden = hidden.mean(self.streams)
        return hidden.transpose(0, 1) if self.batch > self.length else hidden

    def from_canonical(self, delta: Tensor) -> Tensor:
        """A delta of (batch, length, hidden) such that it can be added to a hidden state."""
        if self.batch > self.length:
            delta = delta.transpose(0, 1)
        return delta if self.streams is None else delta.unsqueeze(self.streams)


PLAIN = Layout("(batch, length, hidden)")
LENGTH_FIRST = Layout("(length, batch, hidden)", batch=1, length=0)
STREAMS_INSIDE = Layout("(batch, length, streams, hidden)", streams=2)
STREAMS_OUTSIDE = Layout("(streams, batch, length, hidden)", batch=1, length=2, streams=0)


def layout_of(shape: tuple[int, ...], batch: int) -> Layout | None:
    """The layout of a hidden state of ``shape`` in a call of ``batch`` rows, if it is known."""
    by_axes = {3: (PLAIN, LENGTH_FIRST), 4: (STREAMS_INSIDE, STREAMS_OUTSIDE)}
    known = by_axes.get(len(shape), ())
    return next((layout for layout in known if shape[layout.batch] == batch), None)


def layout_named(axes: str) -> Layout:
    """The known layout with these axes."""
    known = (PLAIN, LENGTH_FIRST, STREAMS_INSIDE, STREAMS_OUTSIDE)
    return next(layout for layout in known if layout.axes == axes)


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
        unsupported_layers: why a layer cannot be used, for those that cannot.
    """

    path: str
    count: int
    hidden_size: int
    layout: Layout = PLAIN
    passes: int = 1
    entry: int = 0
    unsupported_layers: Mapping[int, str] = attrs.field(factory=dict)

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
    if decodes_separately(base):
        inputs["decoder_input_ids"] = ids
    return inputs


def decodes_separately(base: nn.Module) -> bool:
    """Whether the text to be continued goes to a decoder of its own, beside an encoder's text."""
    config = base.config
    configs = (config, getattr(config, "text_config", None))
    return any(getattr(found, "is_encoder_decoder", False) for found in configs)


def in_encoder(base: nn.Module, layers: nn.ModuleList) -> bool:
    """Whether these layers are an encoder's, beside whose text a decoder has its own."""
    return decodes_separately(base) and any(
        module is layers for module in _text_encoder(base).modules()
    )


def probe_layers(base: nn.Module, paths: Sequence[str], example: Mapping[str, Any]) -> LayerStack:
    """Run ``base`` once and see which layers can be served.

    Args:
        base: a transformers model.
        paths: of lists of layers; the first of them that runs is taken.
        example: keyword arguments of the call.

    Raises:
        UnsupportedBaseError: the base did not run, no layer was called, or their hidden states
            are of an unknown kind; the message says what was seen.
    """
    if is_weightless(base):  # it cannot run; whoever trained on it has seen it run
        return LayerStack(paths[0], len(_layers(base, paths[0])), text_config(base).hidden_size)
    question = f"layers of {', '.join(paths)} on {', '.join(example)}"
    return _unpacked(cached(base, question, lambda: _packed(_probed(base, paths, example))))


def _packed(stack: LayerStack) -> dict[str, Any]:
    """A stack as JSON can hold it, which has no numbers for keys."""
    packed = attrs.asdict(stack) | {"layout": stack.layout.axes}
    return packed | {"unsupported_layers": list(stack.unsupported_layers.items())}


def _unpacked(packed: Mapping[str, Any]) -> LayerStack:
    layout = layout_named(packed["layout"])
    unsupported = dict(packed["unsupported_layers"])
    return LayerStack(**{**packed, "layout": layout, "unsupported_layers": unsupported})


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


def check_layers_reach_output(
    base: nn.Module, stack: LayerStack, wanted: Sequence[int], example: Mapping[str, Any]
) -> None:
    """Push the input of each layer in ``wanted`` and see that the base's outputs move.

    Raises:
        UnsupportedBaseError: a layer cannot be served, or what is added to its input is lost.
    """
    for layer in wanted:
        if layer in stack.unsupported_layers:
            raise UnsupportedBaseError(
                f"layer {layer} of `{type(base).__name__}` cannot be fused: "
                f"{stack.unsupported_layers[layer]}",
                hint=f"choose other `layers`; {_supported(stack)} can be used",
            )
    if is_weightless(base):
        return
    question = f"arrival at {list(wanted)} of {stack.path}"
    cached(base, question, lambda: _check_pushes(base, stack, wanted, example))


def positions_read(base: nn.Module, stack: LayerStack, example: Mapping[str, Any]) -> int:
    """How many positions the layers are given of the example's text; a base may add its own."""

    def seen() -> int:
        """The length of the first hidden states that come by."""
        looks = [_Look() for _ in stack.of(base)]
        with _watching(list(stack.of(base)), looks):
            _run(base, example)
        first = next(look.visits[0].hidden for look in looks if look.visits)
        return int(first[stack.layout.length])

    if is_weightless(base):
        return int(example["input_ids"].shape[1])
    found: int = cached(base, f"positions at {stack.path} on {_described(example)}", seen)
    return found


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


def _supported(stack: LayerStack) -> str:
    supported = (n for n in range(stack.count) if n not in stack.unsupported_layers)
    return ", ".join(map(str, supported))


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
        hidden = get_hidden_states(args, kwargs)
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
        hidden = get_hidden_states(args, kwargs)
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        scale = hidden.float().abs().mean() + 1e-3
        pushed = hidden.float() + scale * noise.to(hidden.device)
        return set_hidden_states(args, kwargs, pushed.to(hidden.dtype))


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
        # A frozen base keeps no graph.
        with torch.enable_grad(), torch.random.fork_rng(), base_errors():
            torch.manual_seed(0)
            out = uncompiled_call(base)(**example)  # what it does, also where it is compiled
    except UnsupportedBaseError as error:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` failed on {_described(example)}: {error.message}",
            hint="give its processor, or inputs on which it runs: attach(base, example={...})",
        ) from error.__cause__
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
        unsupported_layers=unserved,
    )


def _difference(visits: Sequence[_Visit], usual: Sequence[_Visit]) -> str:
    if not visits:
        return "it did not run"
    if len(visits) != len(usual):
        return f"it ran {len(visits)} times in a call, most layers {len(usual)}"
    return f"its hidden states are {visits[0].hidden}, those of most layers {usual[0].hidden}"
