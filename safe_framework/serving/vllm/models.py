"""The bases that vLLM serves with an adapter: its own classes, which take samples as well.

vLLM sees a base whose prompts may carry samples that take no place in the text. Its embeddings, its
layers and its weights are those of the plain base. ``ListeningX`` is made of vLLM's class of the
architecture ``X`` when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config import set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY

from safe_framework.core.modality import Modality
from safe_framework.errors import SafeError
from safe_framework.serving.vllm.adapter import (
    PassingBase,
    load_adapter,
    load_beside_its_base,
)
from safe_framework.serving.vllm.arguments import PREFIX
from safe_framework.serving.vllm.layer_form import attending_to_itself
from safe_framework.serving.vllm.listening import ListeningLayers
from safe_framework.serving.vllm.samples import (
    KIND,
    AdapterDummies,
    AdapterInfo,
    AdapterProcessor,
)
from safe_framework.utils.tensors import is_bfloat16_fast

_TRIED = 5
"""Tokens of the pass in which it is seen how layers hand on hidden states."""


class ListeningBase:
    """What is added to each of vLLM's classes.

    Attributes:
        decoder: where in the model its decoder is; empty where that is all of it.
        compared: whether its weights have passed.
    """

    decoder: ClassVar[str] = ""
    compared = False

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing stands in the text for a sample; for a picture, what the base has there."""
        if modality == KIND:
            return None
        plain: Any = super()
        found: str | None = plain.get_placeholder_str(modality, i)
        return found

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """As the base's own, while it is seen whether the adapter was made for these weights."""
        plain: Any = super()
        inner: Any = self
        passing = PassingBase(inner.config.safe_adapter)
        loaded = plain.load_weights(passing.watched(weights))
        passing.finish()
        self.compared = True
        return loaded

    def listen(self) -> ListeningModel:
        """Let the fused layers listen to the adapter's samples.

        Raises:
            SafeError: the adapter is not this base's, or it is not known how samples enter.
        """
        inner: Any = self
        folder = inner.config.safe_adapter
        if not self.compared:  # vLLM was told to make weights up, or read parts of them alone
            load_beside_its_base(folder)
        decoder = attrgetter(self.decoder)(inner) if self.decoder else inner
        return ListeningModel(folder, inner, layers_in(decoder, inner.config))


def layers_in(decoder: nn.Module, config: Any) -> nn.ModuleList:
    """The decoder's layers: the outermost list of as many modules as the config says.

    Args:
        decoder: vLLM's.
        config: of the base.

    Raises:
        SafeError: there is none.
    """
    count = config.get_text_config().num_hidden_layers
    lists = [one for one in decoder.modules() if isinstance(one, nn.ModuleList)]
    found = next((one for one in lists if len(one) == count), None)
    if found is None:
        raise SafeError(f"vLLM's `{type(decoder).__name__}` has no list of {count} layers")
    return found


class ListeningModel:
    """The adapter of a base in vLLM.

    Args:
        folder: the adapter's.
        base: vLLM's model.
        layers: of its decoder.

    Attributes:
        modalities: that its samples are of, by name, in the order in which they act.
        base: as given.
        layers: the decoder's, of which some listen.

    Raises:
        SafeError: a layer is given nothing that is known.
    """

    def __init__(self, folder: str, base: nn.Module, layers: nn.ModuleList) -> None:
        model = load_adapter(folder)
        self.modalities: dict[str, Modality] = {
            name: model.modality(name) for name in model.modalities
        }
        self.base = base
        _encode_as(next(base.parameters()).dtype, self.modalities.values())
        heads = [one.relevance for one in self.modalities.values() if one.relevance is not None]
        self.layers = ListeningLayers(
            [*layers],
            [layer for one in self.modalities.values() for layer in one.fusion.layers],
            [head.layer for head in heads],
        )

    def try_out(self, config: Any, dimensions: int = 0) -> None:
        """See in one pass of a few tokens how the layers hand on hidden states.

        Args:
            config: vLLM's, of the whole engine.
            dimensions: in which the base counts positions; 0 where they are plain numbers.

        Raises:
            SafeError: it is not known where samples enter.
        """
        known = config.compilation_config.static_forward_context.values()
        for one in known:
            if isinstance(one, AttentionLayerBase) and not isinstance(one, Attention):
                raise SafeError(
                    f"vLLM's `{type(one).__name__}` keeps what it has read in a way of which "
                    "nothing is known",
                    hint="serve it by `safe serve --engine transformers`",
                )
        with (
            torch.inference_mode(),
            set_current_vllm_config(config),
            set_forward_context(None, config, num_tokens=_TRIED, skip_compiled=True),
            attending_to_itself(),
            self.layers.trial(),
        ):
            places = torch.arange(_TRIED)
            self.run(places, places.expand(dimensions, -1) if dimensions else places)

    def run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """What the base gives in vLLM's current forward context, (tokens, hidden).

        Args:
            ids: of tokens, (tokens,).
            positions: of them in their texts, (tokens,), or (dimensions, tokens).
        """
        found: Tensor = self.base(
            input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None
        )
        return found


def _encode_as(dtype: torch.dtype, modalities: Iterable[Modality]) -> None:
    """Let encoders compute in the engine's type, where that is bfloat16 and the device fast at it.

    Projectors and fusion stay as they were trained.
    """
    for one in modalities:
        device = next(one.projector.parameters()).device
        if dtype is torch.bfloat16 and is_bfloat16_fast(device):
            one.encoder.to(dtype)


def _reading(kind: Any) -> Any:
    """A class whose base takes text alone, once vLLM knows what prepares its samples."""
    return MULTIMODAL_REGISTRY.register_processor(
        AdapterProcessor, info=AdapterInfo, dummy_inputs=AdapterDummies
    )(kind)


@cache
def _listening(architecture: str) -> Any:
    """The class of a base of text, made of vLLM's own."""
    plain: Any = ModelRegistry.models[architecture].load_model_cls()
    kinds = (ListeningBase, plain, SupportsMultiModal)
    return _reading(type(f"{PREFIX}{architecture}", kinds, {"__module__": __name__}))


def __getattr__(name: str) -> Any:
    """``ListeningX``, as vLLM asks for it by its name."""
    architecture = name.removeprefix(PREFIX)
    if architecture == name or architecture not in ModelRegistry.models:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _listening(architecture)
