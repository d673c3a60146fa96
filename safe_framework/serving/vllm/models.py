"""The bases that vLLM serves with an adapter: vLLM's own classes, which take samples as well.

vLLM sees a base whose prompts may carry sound that takes no place in the text. Its embeddings, its
layers and its weights are those of the plain base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY

from safe_framework.core.modality import Modality
from safe_framework.serving.vllm.adapter import load_adapter, only_modality
from safe_framework.serving.vllm.listening import ListeningLayers
from safe_framework.serving.vllm.samples import AdapterDummies, AdapterInfo, AdapterProcessor


class ListeningBase:
    """What is added to each of vLLM's classes."""

    listens: ListeningModel | None = None

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing stands in the text for a sample."""
        return None

    def listen(self) -> ListeningModel:
        """Load the adapter, and let the fused layers listen to its samples."""
        inner: Any = self
        found = ListeningModel(inner.config.safe_adapter, inner.model.layers)
        self.listens = found
        return found


class ListeningModel:
    """The adapter of a base in vLLM.

    Args:
        folder: the adapter's.
        layers: the base's decoder layers.

    Attributes:
        modality: that its samples are of.
        layers: the base's, of which some listen.
    """

    def __init__(self, folder: str, layers: Sequence[nn.Module]) -> None:
        self.modality: Modality = only_modality(load_adapter(folder))
        head = self.modality.relevance
        self.layers = ListeningLayers(
            layers, self.modality.fusion.layers, None if head is None else head.layer
        )


_register = MULTIMODAL_REGISTRY.register_processor(
    AdapterProcessor, info=AdapterInfo, dummy_inputs=AdapterDummies
)


@_register
class ListeningLlama(ListeningBase, LlamaForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Llama, SmolLM2 and others of their architecture."""


@_register
class ListeningQwen2(ListeningBase, Qwen2ForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Qwen 2 and 2.5."""


@_register
class ListeningQwen3(ListeningBase, Qwen3ForCausalLM, SupportsMultiModal):  # type: ignore[misc]  # vLLM is not typed
    """Qwen 3."""
