"""What a loss may leave out, since nothing that it reads depends on it.

Words behind the last one that counts reach nothing before them. A feed-forward module sees each
position by itself, so it needs no padding, and in the last layer nothing but the words that count.
Texts can stand side by side in a row where a base takes their positions and a mask. Of a base all
this is found out, not believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import has_plain_head
from safe_framework.training.compute.calls import Call
from safe_framework.training.compute.packing import WORTH, Packing, can_pack, packing_of

_LENGTH = 6  # words of the text on which a base is tried


@attrs.frozen(eq=False)
class Shortcuts:
    """What is known of a base.

    Attributes:
        plain: its logits are its output embeddings of something and nothing more, so that they
            need not be made.
        causal: a position depends on none behind it.
        rows_apart: a row depends on no other.
        feed_forwards: of its layers; they see each position by itself.
        last: that of the last layer, behind which nothing mixes positions; None if there is none.
        packs: texts can be packed.
    """

    plain: bool = False
    causal: bool = False
    rows_apart: bool = False
    feed_forwards: tuple[nn.Module, ...] = ()
    last: nn.Module | None = None
    packs: bool = False

    def shortened(self, call: Call) -> Call:
        """The call without the columns that no place depends on."""
        if not (self.causal and call.places.any()):
            return call
        length = int(call.places.any(0).nonzero()[-1]) + 1
        shape = call.places.shape
        own = {key: value for key, value in call.inputs.items() if "__" not in key}
        cut = {key: value[:, :length] for key, value in own.items() if _is(value, shape)}
        return attrs.evolve(call, inputs={**call.inputs, **cut}, places=call.places[:, :length])

    def packing(self, call: Call) -> Packing | None:
        """How to pack what the places of a call depend on; None where it stays as it is."""
        own = {key for key in call.inputs if "__" not in key}
        if not self.packs or own != {"input_ids", "attention_mask"}:
            return None
        needed = self._needed(call.places)
        real = call.inputs["attention_mask"].bool()
        begin_rows = not bool((needed & ~real).any())  # else there is padding on the left
        return packing_of(needed) if begin_rows else None

    def _needed(self, places: Tensor) -> Tensor:
        """Positions on which the places depend, (batch, length)."""
        return places.flip(1).cummax(1).values.flip(1) if self.causal else places | True

    @contextmanager
    def leaving_out(self, places: Tensor) -> Iterator[None]:
        """Within the block, feed-forward modules compute what the places depend on.

        Args:
            places: True where something is read, (batch, length).
        """
        behind, at_last = _Chosen.of(self._needed(places)), _Chosen.of(places)
        with ExitStack() as stack:
            for module in self.feed_forwards:
                stack.enter_context(_narrowed(module, at_last if module is self.last else behind))
            yield


NONE = Shortcuts()
"""Nothing is known."""


@torch.no_grad()
def shortcuts_of(model: SafeModel) -> Shortcuts:
    """Find out what a loss of this model may leave out.

    Args:
        model: in eval mode.
    """
    found = Shortcuts(plain=has_plain_head(model, [0, 0]))
    ids = torch.zeros(2, _LENGTH, dtype=torch.long, device=model.device)
    other = ids.clone()
    other[1, -1] = 1
    try:
        with model.off():
            whole, changed = _logits(model, ids), _logits(model, other)
            if whole.shape[:2] != ids.shape:
                return found
            apart = torch.equal(whole[0], changed[0])
            causal = torch.equal(whole[1, :-1], changed[1, :-1])
            found = attrs.evolve(found, causal=causal, rows_apart=apart)
            modules = _feed_forwards(model, other)
            last = modules.get(len(model.stack.of(model.base)) - 1)
            narrow = attrs.evolve(found, feed_forwards=tuple(modules.values()), last=last)
            found = narrow if _agrees(model, narrow, other, changed) else found
            return attrs.evolve(found, packs=causal and apart and _packs(model))
    except Exception:  # whatever a foreign base raises on this text, nothing is left out
        return found


def _logits(model: SafeModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def _agrees(model: SafeModel, shortcuts: Shortcuts, ids: Tensor, whole: Tensor) -> bool:
    """Whether a call that leaves out what it may gives what a whole one gives."""
    places = torch.zeros_like(ids, dtype=torch.bool)
    places[:, [0, _LENGTH // 2]] = True
    call = shortcuts.shortened(Call({"input_ids": ids}, places))
    with shortcuts.leaving_out(call.places):
        given = _logits(model, call.inputs["input_ids"])[call.places]
    rounding = 64 * torch.finfo(whole.dtype).eps * whole.abs().max()
    return bool((given - whole[places]).abs().max() <= rounding)


def _packs(model: SafeModel) -> bool:
    """Whether texts of different words give side by side what they give in rows of their own."""
    if not can_pack(model):
        return False
    words: Any = model.base.get_input_embeddings()  # type: ignore[operator]  # a method
    ids = torch.arange(2 * _LENGTH, device=model.device).view(2, -1) % len(words.weight)
    needed = torch.arange(_LENGTH, device=ids.device) < torch.tensor([[4], [2]], device=ids.device)
    packing = packing_of(needed)
    assert packing is not None  # six of twelve positions
    other = ids.clone()
    other[0, :4] = ids[1, :4]
    whole = _logits(model, ids)
    try:
        with packing.entered(model):
            given, beside = _logits(model, ids), _logits(model, other)
    except Exception:  # the base takes no positions, or no mask for each pair of them
        return False
    places = packing.places(needed)
    if given.shape[:2] != places.shape:
        return False
    second = packing.text == 1
    alone = torch.equal(given[second], beside[second])  # whatever stands before it
    return alone and _near(packing.in_order(given[places], places), whole[needed])


def _near(given: Tensor, wanted: Tensor) -> bool:
    """Whether two computations differ by no more than rounding, of which bfloat16 has much."""
    rounding = min(64 * torch.finfo(wanted.dtype).eps, 0.05)
    return bool((given - wanted).float().norm() <= rounding * wanted.float().norm())


def _feed_forwards(model: SafeModel, ids: Tensor) -> dict[int, nn.Module]:
    """By layer, its largest module that sees each position by itself, as one run shows it."""
    seen: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep the hidden states of a module that is shown nothing else."""
        if len(args) == 1 and not kwargs and _is(args[0], ids.shape) and _is(out, args[0].shape):
            seen[module] = args[0]

    layers = model.stack.of(model.base)
    modules = [child for layer in layers for child in layer.children()]
    handles = [one.register_forward_hook(look, with_kwargs=True) for one in modules]
    try:
        _logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for place, layer in enumerate(layers):
        fitting = [one for one in layer.children() if one in seen and _matrices(one)]
        largest = max(fitting, key=_matrices, default=None)
        if largest is not None and _sees_each_alone(largest, seen[largest]):
            found[place] = largest
    return found


def _sees_each_alone(module: nn.Module, hidden: Tensor) -> bool:
    """Whether a change of the first position of all, or of the last, changes nothing elsewhere."""
    before = module(hidden).flatten(0, 1)
    for changed, others in ((0, slice(1, None)), (-1, slice(-1))):
        other = hidden.flatten(0, 1).clone()
        other[changed] = 1 - other[changed]
        after = module(other.view_as(hidden)).flatten(0, 1)
        if not torch.equal(after[others], before[others]):
            return False
    return True


def _matrices(module: nn.Module) -> int:
    """How many numbers are in a module's matrices."""
    return sum(one.numel() for one in module.parameters() if one.ndim > 1)


def _is(value: Any, shape: torch.Size) -> bool:
    """Whether this is a tensor whose axes begin with these."""
    return isinstance(value, Tensor) and value.shape[: len(shape)] == shape


@attrs.frozen(eq=False)
class _Chosen:
    """Some positions of a call.

    Attributes:
        shape: of the call, (batch, length).
        at: the positions, row after row.
    """

    shape: torch.Size
    at: Tensor

    @classmethod
    def of(cls, keep: Tensor) -> _Chosen | None:
        """Where a mask is True; None where that is nearly everywhere."""
        at = keep.flatten().nonzero().squeeze(-1)
        return cls(keep.shape, at) if len(at) <= WORTH * keep.numel() else None


@contextmanager
def _narrowed(module: nn.Module, chosen: _Chosen | None) -> Iterator[None]:
    """Within the block, the module is shown these positions as one row, and gives 0 elsewhere."""
    if chosen is None:
        yield
        return
    shape, at, shown = chosen.shape, chosen.at, list[bool]()

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The chosen positions, where the call is of all."""
        shown.append(args[0].shape[:2] == shape)
        if not shown[-1]:
            return None
        hidden: Tensor = args[0].flatten(0, 1)
        return (hidden.index_select(0, at.to(hidden.device)).unsqueeze(0),)

    def put(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """What was given, where it belongs."""
        if not shown.pop():
            return None
        rows = out.new_zeros(shape.numel(), out.shape[-1])
        return rows.index_copy_(0, at.to(out.device), out[0]).view(*shape, -1)

    handles = [module.register_forward_pre_hook(pick), module.register_forward_hook(put)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
