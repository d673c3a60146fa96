"""Where the layers of a base model are, found by structure alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from safe_framework.errors import UnsupportedBaseError

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
