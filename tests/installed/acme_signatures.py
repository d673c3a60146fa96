"""Constructors in many styles; the names say whether their source is enough to read them."""

import collections.abc
import typing
from dataclasses import dataclass
from typing import Any, List, Literal, Optional, Union  # noqa: UP035  # old style, as some write

from safe_framework.interfaces.retention import RetentionRegularizer

Mode = Literal["fast", "slow"]
MODE: Mode = "slow"
LAYERS = (1, 2)


class ReadableModern(RetentionRegularizer):
    def __init__(self, wired: int, *, a: int, b: float | None = None, c: Mode = MODE) -> None: ...


class ReadableOld(RetentionRegularizer):
    def __init__(
        self,
        *,
        a: Optional[int] = None,  # noqa: UP045  # old style, as some write
        b: Union[int, str] = -1,  # noqa: UP007  # old style, as some write
        c: collections.abc.Sequence[int] = LAYERS,
        d: "float" = 1.5,
        e: Any = None,
        f: typing.Literal["x", 1, True] = "x",
        g: tuple[int, float] = (1, 2.0),
        h: dict[str, list[int]] = {},  # noqa: B006  # a default like any other
    ) -> None: ...


class ReadableInherits(ReadableModern):
    """Takes its base's options."""


class ReadableEmpty(RetentionRegularizer):
    """Takes nothing."""


class ReadableKeywords(RetentionRegularizer):
    def __init__(self, *wired: int, a: bool = True, **rest: int) -> None: ...


@dataclass(kw_only=True)
class DynamicDecorated(RetentionRegularizer):
    rank: int = 8


class DynamicDefault(RetentionRegularizer):
    def __init__(self, *, rank: int = len("four") * 2) -> None: ...


class DynamicBase(type("Made", (RetentionRegularizer,), {})):
    """Its base cannot be read."""


class DynamicAnnotation(RetentionRegularizer):
    def __init__(self, *, names: List["str"] = ()) -> None: ...  # noqa: UP006  # a name not known


class Unannotated(RetentionRegularizer):
    def __init__(self, *, rank=8) -> None: ...


class Unresolved(RetentionRegularizer):
    def __init__(self, *, rank: "Nowhere" = 8) -> None: ...  # noqa: F821  # it must not resolve
