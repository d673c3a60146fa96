"""Properties of a base that let a training step leave computation out, found out by trying.

In a causal base nothing depends on tokens behind the last one that is read. A feed-forward module
computes each position by itself, so it needs no padding, and in the last layer only the positions
that are read. Texts can be packed into one row where a base takes position ids and a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.layer_hooks import registered
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import has_plain_head
from safe_framework.core.padding import per_token_inputs
from safe_framework.core.text_trees import can_mask_pairs
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.training.compute.calls import ForwardCall
from safe_framework.training.compute.packing import (
    WORTHWHILE_SHARE,
    Packing,
    plan_packing,
)
from safe_framework.utils.tensors import TERMS, near

_LENGTH = 6  # tokens of the text on which a base is tried


@attrs.frozen(eq=False)
class BaseProperties:
    """What is known of a base.

    Attributes:
        plain_head: its logits are its output embeddings of hidden states and nothing more, so
            that they need not be computed.
        causal: a position depends on none behind it.
        rows_independent: a row depends on no other.
        feed_forwards: of its layers; they compute each position by itself.
        last_feed_forward: that of the last layer, behind which nothing mixes positions; None if
            there is none.
        packs: texts can be packed.
    """

    plain_head: bool = False
    causal: bool = False
    rows_independent: bool = False
    feed_forwards: tuple[nn.Module, ...] = ()
    last_feed_forward: nn.Module | None = None
    packs: bool = False

    def truncated(self, call: ForwardCall) -> ForwardCall:
        """The call without the columns on which nothing that is read depends."""
        if not (self.causal and call.positions.any()):
            return call
        length = int(call.positions.any(0).nonzero()[-1]) + 1
        own = {key: value for key, value in call.inputs.items() if "__" not in key}
        of_tokens = per_token_inputs(own, call.positions.shape)
        if own.keys() != of_tokens.keys():
            return call  # each picture has its place among the tokens
        cut = {key: value[:, :length] for key, value in of_tokens.items()}
        return attrs.evolve(
            call, inputs={**call.inputs, **cut}, positions=call.positions[:, :length]
        )

    def plan_packing(self, call: ForwardCall) -> Packing | None:
        """How to pack what the positions of a call depend on; None where it stays as it is."""
        own = {key for key in call.inputs if "__" not in key}
        if not self.packs or own != {"input_ids", "attention_mask"}:
            return None
        needed = self._needed(call.positions)
        real = call.inputs["attention_mask"].bool()
        begin_rows = not bool((needed & ~real).any())  # else there is padding on the left
        return plan_packing(needed) if begin_rows else None

    def _needed(self, positions: Tensor) -> Tensor:
        """True where what is read depends on a position, (batch, length)."""
        return positions.flip(1).cummax(1).values.flip(1) if self.causal else positions | True

    @contextmanager
    def computing_only(self, positions: Tensor) -> Iterator[None]:
        """Within the block, feed-forward modules compute only what is needed at the positions.

        Args:
            positions: True where something is read, (batch, length).
        """
        needed, read = _Selection.of(self._needed(positions)), _Selection.of(positions)
        with ExitStack() as stack:
            for module in self.feed_forwards:
                stack.enter_context(
                    _restricted_to(module, read if module is self.last_feed_forward else needed)
                )
            yield


NO_PROPERTIES = BaseProperties()
"""Nothing is known of the base."""


@torch.no_grad()
def find_base_properties(model: SafeModel) -> BaseProperties:
    """Find out which properties this model's base has.

    Args:
        model: in eval mode.
    """
    two = torch.zeros(1, 2, dtype=torch.long)
    text = {"input_ids": two, "attention_mask": torch.ones_like(two)}
    try:
        with base_errors():
            found = BaseProperties(plain_head=has_plain_head(model, text))
    except (UnsupportedBaseError, InjectionError):  # it runs on no text without a picture
        seen = model._example
        return BaseProperties(plain_head=bool(seen) and has_plain_head(model, seen or {}))
    ids = torch.zeros(2, _LENGTH, dtype=torch.long, device=model.device)
    other = ids.clone()
    other[1, -1] = 1
    try:
        with model.off(), base_errors():
            whole, changed = _logits(model, ids), _logits(model, other)
            if whole.shape[:2] != ids.shape:
                return found
            independent = _same_sums(changed[0], whole[0])
            causal = _same_sums(changed[1, :-1], whole[1, :-1])
            found = attrs.evolve(found, causal=causal, rows_independent=independent)
            modules = _feed_forwards(model, other)
            last = modules.get(len(model.stack.of(model.base)) - 1)
            skipping = attrs.evolve(
                found, feed_forwards=tuple(modules.values()), last_feed_forward=last
            )
            found = skipping if _skipping_agrees(model, skipping, other, changed) else found
            return attrs.evolve(found, packs=causal and independent and _packing_agrees(model))
    except (UnsupportedBaseError, InjectionError):  # of this text, so nothing is left out
        return found


def _logits(model: SafeModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def _skipping_agrees(
    model: SafeModel, properties: BaseProperties, ids: Tensor, whole: Tensor
) -> bool:
    """Whether a call that leaves out what it may gives what a whole one gives."""
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, [0, _LENGTH // 2]] = True
    call = properties.truncated(ForwardCall({"input_ids": ids}, positions))
    with properties.computing_only(call.positions):
        given = _logits(model, call.inputs["input_ids"])[call.positions]
    rounding = TERMS * torch.finfo(whole.dtype).eps * whole.abs().max()
    return bool((given - whole[positions]).abs().max() <= rounding)


def _packing_agrees(model: SafeModel) -> bool:
    """Whether texts give packed in one row what they give in rows of their own."""
    if not can_mask_pairs(model):
        return False
    embeddings: Any = model.base.get_input_embeddings()  # type: ignore[operator]  # a method
    ids = torch.arange(2 * _LENGTH, device=model.device).view(2, -1) % len(embeddings.weight)
    needed = torch.arange(_LENGTH, device=ids.device) < torch.tensor([[4], [2]], device=ids.device)
    packing = plan_packing(needed)
    assert packing is not None  # six of twelve positions
    other = ids.clone()
    other[0, :4] = ids[1, :4]
    whole = _logits(model, ids)
    try:
        with packing.applied_to(model), base_errors():
            given, after_other = _logits(model, ids), _logits(model, other)
    except UnsupportedBaseError:  # the base takes no positions, or no mask of pairs
        return False
    positions = packing.pack_mask(needed)
    if given.shape[:2] != positions.shape:
        return False
    second = packing.text == 1
    unaffected = _same_sums(given[second], after_other[second])  # whatever stands before it
    return unaffected and near(packing.unpack_selected(given[positions], positions), whole[needed])


def _same_sums(given: Tensor, wanted: Tensor) -> bool:
    """Whether two computations may have added the same numbers, in whatever order.

    The tokens of other positions can decide the order: experts take as many tokens at a time as
    are sent to them. Lower precisions than float32 are added up in it, and rounded once.
    """
    if torch.equal(given, wanted):
        return True
    own = torch.finfo(wanted.dtype).eps
    rounding = TERMS * min(own, torch.finfo(torch.float32).eps) + own
    return bool((given - wanted).float().norm() <= rounding * wanted.float().norm())


def _feed_forwards(model: SafeModel, ids: Tensor) -> dict[int, nn.Module]:
    """By layer, its largest module that computes each position by itself, found out by one run."""
    inputs: dict[nn.Module, Tensor] = {}

    def note_input(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Keep the hidden states of a module that is given nothing else."""
        if (
            len(args) == 1
            and not kwargs
            and _begins_with(args[0], ids.shape)
            and _begins_with(out, args[0].shape)
        ):
            inputs[module] = args[0]

    layers = model.stack.of(model.base)
    modules = [child for layer in layers for child in layer.children()]
    with registered(*(m.register_forward_hook(note_input, with_kwargs=True) for m in modules)):
        _logits(model, ids)
    found = {}
    for number, layer in enumerate(layers):
        fitting = [one for one in layer.children() if one in inputs and _matrix_size(one)]
        largest = max(fitting, key=_matrix_size, default=None)
        if largest is not None and _is_positionwise(largest, inputs[largest]):
            found[number] = largest
    return found


def _is_positionwise(module: nn.Module, hidden: Tensor) -> bool:
    """Whether a change of the first position of all, or of the last, changes nothing elsewhere."""
    before = module(hidden).flatten(0, 1)
    for changed, others in ((0, slice(1, None)), (-1, slice(-1))):
        other = hidden.flatten(0, 1).clone()
        other[changed] = 1 - other[changed]
        after = module(other.view_as(hidden)).flatten(0, 1)
        if not torch.equal(after[others], before[others]):
            return False
    return True


def _matrix_size(module: nn.Module) -> int:
    """How many elements a module's matrices have."""
    return sum(one.numel() for one in module.parameters() if one.ndim > 1)


def _begins_with(value: Any, shape: torch.Size) -> bool:
    """Whether this is a tensor whose shape begins with this one."""
    return isinstance(value, Tensor) and value.shape[: len(shape)] == shape


@attrs.frozen(eq=False)
class _Selection:
    """Selected positions of a call.

    Attributes:
        shape: of the call, (batch, length).
        at: the positions, row after row.
    """

    shape: torch.Size
    at: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> _Selection | None:
        """Where a mask is True; None where that is almost everywhere."""
        at = mask.flatten().nonzero().squeeze(-1)
        return cls(mask.shape, at) if len(at) <= WORTHWHILE_SHARE * mask.numel() else None


@contextmanager
def _restricted_to(module: nn.Module, selection: _Selection | None) -> Iterator[None]:
    """Within the block, the module computes these positions as one row, and gives 0 elsewhere."""
    if selection is None:
        yield
        return
    shape, at, selected = selection.shape, selection.at, list[bool]()

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The selected positions, where the module is given all."""
        selected.append(args[0].shape[:2] == shape)
        if not selected[-1]:
            return None
        hidden: Tensor = args[0].flatten(0, 1)
        return (hidden.index_select(0, at.to(hidden.device)).unsqueeze(0),)

    def scatter(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """What was computed, at its positions."""
        if not selected.pop():
            return None
        rows = out.new_zeros(shape.numel(), out.shape[-1])
        return rows.index_copy_(0, at.to(out.device), out[0]).view(*shape, -1)

    with registered(
        module.register_forward_pre_hook(select), module.register_forward_hook(scatter)
    ):
        yield
