"""The same of bases that see: what vLLM makes of pictures is as for the plain base.

vLLM's classes of these need torchvision.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from vllm import ModelRegistry
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from safe_framework.serving.vllm.arguments import PREFIX
from safe_framework.serving.vllm.models import ListeningBase
from safe_framework.serving.vllm.samples import beside_pictures

_DECODERS = {
    "Idefics3ForConditionalGeneration": "model.text_model",
    "LlavaForConditionalGeneration": "language_model",
    "LlavaNextForConditionalGeneration": "language_model",
    "Qwen2VLForConditionalGeneration": "language_model",
    "Qwen2_5_VLForConditionalGeneration": "language_model",
    "SmolVLMForConditionalGeneration": "model.text_model",
}
"""Where in vLLM's model of each architecture its decoder is."""

_AS_WRITTEN = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)"): (
            "vision_tower.vision_model."
        )
    }
)
"""Names of a tower's weights as transformers writes them since its version 5, which vLLM's classes
of LLaVA do not know."""


@cache
def _listening(architecture: str) -> Any:
    """The class of a base that sees, made of vLLM's own.

    What prepares its samples stands beside what prepares pictures.
    """
    plain: Any = ModelRegistry.models[architecture].load_model_cls()
    own: dict[str, Any] = {"__module__": __name__, "decoder": _DECODERS[architecture]}
    if architecture.startswith("Llava"):
        own["hf_to_vllm_mapper"] = _AS_WRITTEN | plain.hf_to_vllm_mapper
    made = type(f"{PREFIX}{architecture}", (ListeningBase, plain), own)
    return MULTIMODAL_REGISTRY.register_processor(**beside_pictures(plain._processor_factory))(made)


def __getattr__(name: str) -> Any:
    """``ListeningX``, as vLLM asks for it by its name."""
    if (architecture := name.removeprefix(PREFIX)) not in _DECODERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _listening(architecture)
