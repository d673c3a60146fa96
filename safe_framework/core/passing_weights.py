"""A base's weights that pass one by one on their way into another program's model.

An adapter belongs to certain weights, and some of its tensors are made of them. Where another
program holds the base, as vLLM does, its weights are read for that program alone: here each is
fingerprinted as it passes, under the name, in the type and in the shape that it has in
transformers' model, and what the adapter is made of is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.base_identity import compared_types, rows_kept
from safe_framework.utils.hashing import (
    content_digests,
    joined_contents,
    joined_digests,
    tensor_digest,
)

_READ_OF_A_LAYER = ("self_attn", "input_layernorm")
"""What fusion adapters may be made of, as ``base_facts`` tells them of a layer."""


class PassingWeights:
    """Fingerprints a base's weights as they pass.

    Args:
        base: in transformers, loaded without its weights. What is kept of them is put into it.
        recorded: what an adapter's base is known by.
        path: of its list of layers.
        layers: those that an adapter is fused into, of which it may be made.
    """

    def __init__(
        self, base: nn.Module, recorded: Mapping[str, str], path: str, layers: Iterable[int]
    ) -> None:
        self._base, self._name_of = base, _renaming(base)
        self._state: dict[str, Tensor] = base.state_dict(keep_vars=True)
        self._sharing: dict[int, list[str]] = {}  # weights that modules share have several names
        for name, tensor in self._state.items():
            self._sharing.setdefault(id(tensor), []).append(name)
        self._types, self._cut = compared_types(recorded, base), rows_kept(recorded, base)
        self._kept = tuple(f"{path}.{n}.{part}." for n in layers for part in _READ_OF_A_LAYER)
        self._exact: dict[str, bytes] = {}
        self._contents: dict[str, Sequence[bytes]] = {}
        self._strange = False

    def watched(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, each of which is fingerprinted while whoever asked for it uses it.

        Args:
            weights: whole, under the names that they have in the checkpoint.
        """
        with ThreadPoolExecutor(1) as thread:
            for name, tensor in weights:
                work = self._work(name, tensor)
                done = thread.submit(work) if work else None
                yield name, tensor
                if done is not None:
                    done.result()

    @property
    def complete(self) -> bool:
        """Whether all weights have passed, each as it is in transformers' model."""
        return not self._strange and self._exact.keys() == self._state.keys()

    @property
    def fingerprint(self) -> str:
        """What ``fingerprint`` gives of the base in transformers."""
        return joined_digests(self._exact)

    def contents(
        self,
        module: nn.Module,
        types: Sequence[torch.dtype],
        cut: Callable[[str, Tensor], Tensor] | None,
    ) -> dict[torch.dtype, str]:
        """What ``content_fingerprints`` gives of it, in the types in which it is compared."""
        assert module is self._base
        assert list(types) == self._types
        return joined_contents(types, list(self._contents.values()))

    def _work(self, name: str, tensor: Tensor) -> Callable[[], None] | None:
        """What is to be done about a weight, in any thread; None where it is none of the base's."""
        own = self._name_of(name)
        if own is None:
            self._strange = True
        wanted = None if own is None else self._state.get(own)
        if own is None or wanted is None:
            return None
        if wanted.shape != tensor.shape:
            self._strange = True
            return None
        with torch.no_grad():  # and in this thread: casts fail in one of a process that was forked
            found = tensor.detach().cpu().to(wanted.dtype)
            if own.startswith(self._kept):
                self._keep(own, found.clone())
            names = self._sharing[id(wanted)]
            part = found if self._cut is None else self._cut(names[0], found)
            parts = [part.to(dtype) if part.is_floating_point() else part for dtype in self._types]

        def fingerprinted() -> None:
            """Each name in a digest of its own; numbers once."""
            for alias in names:
                if alias == own or alias not in self._exact:
                    self._exact[alias] = tensor_digest(alias, found)
            if parts:
                self._contents[names[0]] = [content_digests(one, [one.dtype])[0] for one in parts]

        return fingerprinted

    def _keep(self, name: str, values: Tensor) -> None:
        """Put a weight into transformers' model."""
        path, _, leaf = name.rpartition(".")
        module = self._base.get_submodule(path)
        if isinstance(getattr(module, leaf), nn.Parameter):
            setattr(module, leaf, nn.Parameter(values, requires_grad=False))
        else:
            setattr(module, leaf, values)


def _renaming(base: nn.Module) -> Callable[[str], str | None]:
    """What gives the name of a checkpoint's weight in transformers' model.

    It gives None for weights of which several become one there, or one becomes several.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    known: dict[str, Any] = base.state_dict()
    prefix: str = base.base_model_prefix  # type: ignore[assignment]  # of nn.Module
    mapping = get_model_conversion_mapping(base)  # type: ignore[arg-type]  # transformers' model
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]

    def renamed(name: str) -> str | None:
        """As transformers does it when it loads."""
        own, converted = rename_source_key(name, renamings, converters, prefix, known)
        if own not in known and name in known:
            own, converted = rename_source_key(name, [], [], prefix, known)
        return None if converted is not None and own in known else own

    return renamed
