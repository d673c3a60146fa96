"""The same of bases that see: what vLLM makes of pictures is as for the plain base.

vLLM's classes of these need torchvision.
"""

from __future__ import annotations

import re
from typing import Any

from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.smolvlm import SmolVLMForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from safe_framework.serving.vllm.models import ListeningBase
from safe_framework.serving.vllm.samples import beside_pictures


def _seeing(kind: Any) -> Any:
    """A class whose base sees: what prepares its samples stands beside what prepares pictures."""
    return MULTIMODAL_REGISTRY.register_processor(**beside_pictures(kind._processor_factory))(kind)


_AS_WRITTEN = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)"): (
            "vision_tower.vision_model."
        )
    }
)
"""Names of a tower's weights as transformers writes them since its version 5, which vLLM's classes
of LLaVA do not know."""


@_seeing
class ListeningLlava(ListeningBase, LlavaForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """LLaVA, on a decoder of one of the types that are served by themselves."""

    decoder = "language_model.model"
    hf_to_vllm_mapper = _AS_WRITTEN | LlavaForConditionalGeneration.hf_to_vllm_mapper


@_seeing
class ListeningLlavaNext(ListeningBase, LlavaNextForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """LLaVA-NeXT, on such a decoder."""

    decoder = "language_model.model"
    hf_to_vllm_mapper = _AS_WRITTEN | LlavaNextForConditionalGeneration.hf_to_vllm_mapper


@_seeing
class ListeningQwen2VL(ListeningBase, Qwen2VLForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """Qwen2-VL."""

    decoder = "language_model.model"


@_seeing
class ListeningQwen25VL(ListeningBase, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """Qwen2.5-VL."""

    decoder = "language_model.model"


@_seeing
class ListeningIdefics3(ListeningBase, Idefics3ForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """Idefics3."""

    decoder = "model.text_model"


@_seeing
class ListeningSmolVLM(ListeningBase, SmolVLMForConditionalGeneration):  # type: ignore[misc]  # vLLM is not typed
    """SmolVLM."""

    decoder = "model.text_model"
