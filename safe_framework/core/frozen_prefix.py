"""The frozen prefix: layers below the first fused one, computed once for each text.

Cross-attention adds no position, and nothing below the first fused layer trains. So what enters
that layer is the same at every step and with every sample. It is stored, and a step starts there:
the layers below are replaced, while the base still makes its own masks and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from safe_framework.core.base_errors import base_errors
from safe_framework.core.layer_discovery import PLAIN
from safe_framework.core.layer_hooks import (
    LayerCall,
    Replacement,
    get_hidden_states,
    patch_forward,
    registered,
    restore_forward,
    use_replacements,
)
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import PREFIX, run_until
from safe_framework.core.padding import pad_to_length
from safe_framework.core.prompt_rows import always_sees
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.utils.tensors import bitwise_equal

_FEATURES = "mm_encoder_outputs"  # what a base takes instead of pictures that it has looked at


class FrozenPrefix:
    """Lets calls of a model start at a layer, from hidden states that are known.

    Args:
        model: whose layers below ``layer`` are replaced within ``start_from``.
        layer: at which calls start, from 1.
    """

    def __init__(self, model: SafeModel, layer: int) -> None:
        self.model, self.layer = model, layer
        self._layers = list(model.stack.of(model.base)[:layer])
        self._forwards = [patch_forward(one) for one in self._layers]
        self._gives_tuple: list[bool] = []

    @contextmanager
    def start_from(self, hidden: Tensor, *, always: bool = False) -> Iterator[None]:
        """Within the block, a call with an active modality starts with these hidden states.

        Args:
            hidden: what enters the layer, for the texts of the call, (batch, length, hidden);
                padded or cut on the right to the call's length.
            always: whether a call without one does so too, whose pictures are not at hand.
        """
        last = self.layer - 1
        replacements: dict[Any, Replacement] = {}
        layers = zip(self._forwards, self._gives_tuple, strict=True)
        for number, (forward, as_tuple) in enumerate(layers):
            replacements[forward] = _pass_through(hidden if number == last else None, as_tuple)
        hooks = []
        if always and always_sees(self.model.base):
            hook = _StandInFeatures(self.model)
            hooks.append(self.model.base.register_forward_pre_hook(hook, with_kwargs=True))
        with use_replacements(replacements, always=always), registered(*hooks):
            yield

    @torch.no_grad()
    def matches_whole_call(
        self,
        batch: Mapping[str, Any],
        shortened: Mapping[str, Any] | None = None,
        other: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Whether a call that starts at the layer gives, bit for bit, what a whole one gives.

        It does not where layers pass on more than hidden states, as T5's position biases, or
        where layers further up look at pictures.

        Args:
            batch: of texts with samples, on the model's device.
            shortened: what a call that starts at the layer is given of it; all of it if None.
            other: the base's own inputs of another call, made in between, so that no layer has
                these texts cached; the same texts in another order if None.
        """
        given = batch if shortened is None else shortened
        self._gives_tuple = self._tuple_outputs(batch)
        own = {name: value for name, value in batch.items() if "__" not in name}
        hidden = run_until(self.model, own, layer=self.layer).get(PREFIX)
        if hidden is None or len(self._gives_tuple) != self.layer:
            return False
        whole = self.model(**batch).logits
        run_until(self.model, other or {name: value.flip(0) for name, value in own.items()})
        try:
            with self.start_from(hidden, always=shortened is not None), base_errors():
                shortened_logits = self.model(**given).logits
        except (UnsupportedBaseError, InjectionError):  # there is no usable prefix
            return False
        return bitwise_equal(whole, shortened_logits)

    def close(self) -> None:
        """Give the layers the attributes that they had."""
        if not self.model.is_gradient_checkpointing:
            for layer in self._layers:
                restore_forward(layer)

    def _tuple_outputs(self, batch: Mapping[str, Any]) -> list[bool]:
        """Whether each layer below gives a tuple, found out by one run."""
        seen: list[bool] = []

        def note_output(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            """Note whether the layer gives a tuple."""
            seen.append(isinstance(out, tuple))

        with registered(*(layer.register_forward_hook(note_output) for layer in self._layers)):
            self.model(**batch)
        return seen


class _StandInFeatures:
    """A pre-hook on a base that asks for pictures in every call: zeros in place of what it saw.

    They enter the layers that are replaced, so that no image tower has to run.

    Args:
        model: whose base it is.
    """

    def __init__(self, model: SafeModel) -> None:
        self.size, self.dtype = model.stack.hidden_size, next(model.base.parameters()).dtype

    def __call__(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        if "pixel_values" in kwargs:
            return None
        ids: Tensor = kwargs["input_ids"]
        seen = ids.new_zeros(ids.numel(), self.size, dtype=self.dtype)
        made = SimpleNamespace(pooler_output=seen, qformer_outputs=None, vision_outputs=None)
        return args, {**kwargs, "pixel_values": None, _FEATURES: {"image": made}}


def first_fused_layer(model: SafeModel) -> int:
    """The layer up to which a text's hidden states depend on nothing that trains.

    0 where the base is fine-tuned, where a modality puts vectors of its own into the text, where
    layers run several times in a call, or where hidden states are not laid out as usual.
    """
    modalities = [model.modality(name) for name in model.modalities]
    marked = any(modality.marked for modality in modalities)
    changed = model.base_change is not None
    if (
        changed
        or marked
        or not modalities
        or model.stack.passes != 1
        or model.stack.layout is not PLAIN
    ):
        return 0
    return min(layer for modality in modalities for layer in modality.fusion.layers)


def _pass_through(hidden: Tensor | None, as_tuple: bool) -> Replacement:
    """A layer's forward that gives its input, or ``hidden`` if that is known."""

    def forward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replaces the layer's own."""
        out = given = get_hidden_states(args, kwargs)
        if hidden is not None:
            out = pad_to_length(hidden, given.shape[1])
        return (out,) if as_tuple else out

    return forward
