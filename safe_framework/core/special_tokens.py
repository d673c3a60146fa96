"""Which token ids a base gives a meaning of its own, and which are ordinary words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

from torch import nn

from safe_framework.errors import UnsupportedBaseError

_ENDINGS = ("token_id", "token_index", "token_ids")


def special_ids(config: Any) -> frozenset[int]:
    """Every id that a transformers config, or a config inside it, names: pad, end, image, ..."""
    return frozenset(_named_ids(config.to_dict() if hasattr(config, "to_dict") else vars(config)))


def ordinary_ids(base: nn.Module, count: int) -> list[int]:
    """The ids of ``count`` ordinary words of ``base``, the same ones every time.

    Raises:
        UnsupportedBaseError: the vocabulary is smaller than that.
    """
    special, size = special_ids(base.config), vocabulary_size(base)
    start = size // 3  # the first ids are often special without being named
    words = (word for word in chain(range(start, size), range(start)) if word not in special)
    ids = list(islice(words, count))
    if len(ids) < count:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` has {len(ids)} ordinary token ids, fewer than {count}",
            hint="a base must read text",
        )
    return ids


def vocabulary_size(base: nn.Module) -> int:
    """Rows of the table of input embeddings: every smaller id is a token of the base."""
    reads: Any = base
    try:
        return int(reads.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        get = getattr(reads.config, "get_text_config", None)
        return int((get(decoder=True) if get is not None else reads.config).vocab_size)


def _named_ids(values: Any, key: str = "") -> Iterator[int]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _named_ids(value, str(name))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _named_ids(value, key)
    elif isinstance(values, int) and key.endswith(_ENDINGS):
        yield values
