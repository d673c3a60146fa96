"""``SafeModel.forward`` with the inputs of its base and its modalities in its signature.

A Trainer of transformers keeps the columns of a dataset that it finds in the signature of
``model.forward``, and drops all others: with ``**inputs`` alone it would drop them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, cast

from safe_framework.core.compilation import run_eagerly
from safe_framework.interfaces.types import FRAMES, FRAMES_MASK, FROM, PRESENT

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

_OF_MODALITIES = (PRESENT, FROM, FRAMES, FRAMES_MASK)
"""Keys that every modality may have, whatever its encoder prepares."""


class BoundForward:
    """The method of one model.

    Args:
        model: that is called.
        method: as it was defined.
    """

    def __init__(self, model: SafeModel, method: Callable[..., Any]) -> None:
        self.__self__, self.__wrapped__, self.__doc__ = model, method, method.__doc__

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the model."""
        return run_eagerly(self.__wrapped__, (self.__self__, *args), inputs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The method's own, with the base's inputs and the columns that the processor makes."""
        own = inspect.signature(self.__wrapped__)
        _, *others = own.parameters.values()  # `self` comes first
        taken = {one.name for one in others}
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in dict.fromkeys(_columns(self.__self__))
            if name not in taken
        ]
        rest = [one for one in others if one.kind is inspect.Parameter.VAR_KEYWORD]
        before = [one for one in others if one not in rest]
        return own.replace(parameters=[*before, *added, *rest])


def _columns(model: SafeModel) -> Iterator[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in inspect.signature(model.base.forward).parameters.items():
        if parameter.kind in kinds:
            yield name
    for modality in model.modalities:
        yield from (f"{modality}__{key}" for key in _OF_MODALITIES)
    yield from sorted(model.processor.columns)


class NamedInputs:
    """A decorator of ``forward``; of the class it is the plain function.

    Args:
        method: ``SafeModel.forward``.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        update_wrapper(self, method)  # type: ignore[arg-type]  # so that its docstring is found

    def __get__(self, model: SafeModel | None, owner: type | None = None) -> Callable[..., Any]:
        """The method of a model."""
        return self.method if model is None else BoundForward(model, self.method)


def named_inputs(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same ``forward``, whose signature on a model names what that model takes."""
    return cast(Callable[..., Any], NamedInputs(method))
