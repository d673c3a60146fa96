"""The bases of text that vLLM serves with an adapter: its own classes, which take samples as well.

vLLM sees a base whose prompts may carry samples that take no place in the text. Its embeddings, its
layers and its weights are those of the plain base.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY

from safe_framework.core.modality import Modality
from safe_framework.serving.vllm.adapter import load_adapter
from safe_framework.serving.vllm.listening import ListeningLayers
from safe_framework.serving.vllm.samples import (
    KIND,
    AdapterDummies,
    AdapterInfo,
    AdapterProcessor,
)


class ListeningBase:
    """What is added to each of vLLM's classes.

    Attributes:
        decoder: where in the model its decoder is, which has ``layers`` and ``norm``.
    """

    decoder: ClassVar[str] = "model"

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing stands in the text for a sample; for a picture, what the base has there."""
        if modality == KIND:
            return None
        plain: Any = super()
        found: str | None = plain.get_placeholder_str(modality, i)
        return found

    def listen(self) -> ListeningModel:
        """Load the adapter, and let the fused layers listen to its samples."""
        inner: Any = self
        return ListeningModel(inner.config.safe_adapter, attrgetter(self.decoder)(inner))


class ListeningModel:
    """The adapter of a base in vLLM.

    Args:
        folder: the adapter's.
        decoder: of the base, which has ``layers`` and ``norm``.

    Attributes:
        modalities: that its samples are of, by name, in the order in which they act.
        decoder: as given.
        layers: the decoder's, of which some listen.
    """

    def __init__(self, folder: str, decoder: Any) -> None:
        model = load_adapter(folder)
        self.modalities: dict[str, Modality] = {
            name: model.modality(name) for name in model.modalities
        }
        self.decoder = decoder
        heads = [one.relevance for one in self.modalities.values() if one.relevance is not None]
        self.layers = ListeningLayers(
            decoder.layers,
            [layer for one in self.modalities.values() for layer in one.fusion.layers],
            [head.layer for head in heads],
        )


def _reading(kind: Any) -> Any:
    """A class whose base takes text alone, once vLLM knows what prepares its samples."""
    return MULTIMODAL_REGISTRY.register_processor(
        AdapterProcessor, info=AdapterInfo, dummy_inputs=AdapterDummies
    )(kind)


@_reading
class ListeningLlama(ListeningBase, LlamaForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Llama, SmolLM2 and others of their architecture."""


@_reading
class ListeningMistral(ListeningBase, MistralForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Mistral."""


@_reading
class ListeningQwen2(ListeningBase, Qwen2ForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Qwen 2 and 2.5."""


@_reading
class ListeningQwen3(ListeningBase, Qwen3ForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Qwen 3."""
