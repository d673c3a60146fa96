"""Many short texts in one call of a base, each beginning that several of them share only once.

Texts in order of their ids grow into a few trees, one in each row of the call. A token stands at
the position that it has in its texts and attends to those before it in them alone, as in tree
attention (Miao et al. 2024, arXiv:2305.09781). So a base that takes position ids and a mask of
pairs computes for each text what it computes in a row of its own: fewer tokens, hardly any padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import PLAIN
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptRow
from safe_framework.utils.torch_private import compiled_call

WIDTH = 192  # tokens of a tree: more share more, and attention compares every pair of them
TREES = 4  # in a call
# Options that bound how far back a layer attends: our mask would replace theirs.
_WINDOW_OPTIONS = ("sliding_window", "attention_chunk_size")

Ids = tuple[int, ...]


def can_mask_pairs(model: SafeModel) -> bool:
    """Whether no known property of a model keeps its base from a mask of pairs."""
    modalities = [model.modality(name) for name in model.modalities]
    configs: list[Any] = [model.base.config, model.base.config.get_text_config()]  # type: ignore[union-attr, operator]
    windows = (getattr(config, name, None) for config in configs for name in _WINDOW_OPTIONS)
    return (
        not model.split_rows
        and model.stack.passes == 1
        and model.stack.layout is PLAIN
        and compiled_call(model.base) is None
        and not any(modality.marked for modality in modalities)
        and not any(windows)
    )


@attrs.frozen(eq=False)
class TextTrees:
    """Texts as the rows of one call.

    Attributes:
        ids: of the tokens, 0 where there is none, (trees, width).
        depths: at which position of its texts a token stands, (trees, width).
        seen: True where the first token attends to the second, (trees, width, width).
        paths: of each text, in the order given, where its tokens are among all, (length,).
    """

    ids: Tensor
    depths: Tensor
    seen: Tensor
    paths: Sequence[Tensor]

    @classmethod
    def of(cls, texts: Sequence[Ids]) -> TextTrees:
        """The trees of texts, none of which is empty."""
        order = sorted(range(len(texts)), key=texts.__getitem__)
        grown = [_Tree.of(own) for own in _in_trees([texts[number] for number in order])]
        width = max(len(tree.ids) for tree in grown)
        ids, depths = torch.zeros(2, len(grown), width, dtype=torch.long)
        seen = torch.eye(width, dtype=torch.bool).repeat(len(grown), 1, 1)
        paths = list[Tensor]()
        for row, tree in enumerate(grown):
            count = len(tree.ids)
            ids[row, :count], depths[row, :count] = torch.tensor([tree.ids, tree.depths])
            for path in tree.paths:
                at = torch.tensor(path)
                seen[row, at[:, None], at] = torch.ones(len(at), len(at), dtype=torch.bool).tril()
                paths.append(row * width + at)
        placed = dict(zip(order, paths, strict=True))
        return cls(ids, depths, seen, [placed[number] for number in range(len(texts))])

    def inputs(self, dtype: torch.dtype, device: torch.device, columns: int) -> dict[str, Any]:
        """Of a call of a base, but for a cache.

        Args:
            dtype: of the base.
            device: of the base.
            columns: that lie in a cache, which every token attends to.
        """
        seen = nn.functional.pad(self.seen, (columns, 0), value=True).unsqueeze(1)
        hidden = torch.finfo(dtype).min
        return {
            "input_ids": self.ids.to(device),
            "position_ids": (self.depths + columns).to(device),
            "attention_mask": torch.zeros_like(seen, dtype=dtype)
            .masked_fill(~seen, hidden)
            .to(device),
        }

    def of_texts(self, values: Tensor) -> list[Tensor]:
        """What was computed of each text's tokens, each (length, ...).

        Args:
            values: of the call, (trees, width, ...).
        """
        flat = values.flatten(0, 1)
        return [flat.index_select(0, path.to(flat.device)) for path in self.paths]


def in_calls(rows: Iterable[PromptRow], begin: int = 0) -> list[list[PromptRow]]:
    """Rows of text in the groups that ``TextTrees`` read at a time.

    Args:
        rows: without pictures, in any order.
        begin: the first of their tokens that is read with them.
    """
    ordered = sorted(rows, key=lambda row: row.ids)
    left, trees = iter(ordered), _in_trees([row.ids[begin:] for row in ordered])
    parts = [list(itertools.islice(left, len(tree))) for tree in trees]
    calls = [parts[i : i + TREES] for i in range(0, len(parts), TREES)]
    return [list(itertools.chain.from_iterable(call)) for call in calls]


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts have in common before they differ."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _in_trees(texts: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Sorted texts, as many at a time as a tree holds."""
    width = max([WIDTH, *map(len, texts)])
    tree, size = list[Ids](), 0
    for text in texts:
        more = len(text) - alike(tree[-1] if tree else (), text)
        if size + more > width:
            yield tree
            tree, size, more = [], 0, len(text)
        tree.append(text)
        size += more
    if tree:
        yield tree


@attrs.frozen(eq=False)
class _Tree:
    """The tokens of sorted texts, and the places of each text's."""

    ids: list[int]
    depths: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, texts: Sequence[Ids]) -> _Tree:
        """The tree of some texts in order."""
        ids, depths, paths = list[int](), list[int](), list[list[int]]()
        before: Ids = ()
        for text in texts:
            shared = alike(before, text)
            own = range(len(ids), len(ids) + len(text) - shared)
            paths.append([*(paths[-1][:shared] if paths else ()), *own])
            ids += text[shared:]
            depths += range(shared, len(text))
            before = text
        return cls(ids, depths, paths)
