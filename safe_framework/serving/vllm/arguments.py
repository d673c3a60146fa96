"""From an adapter's folder to what vLLM is told, and what it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_framework.config.read import read_stored_recipe
from safe_framework.config.schema import BaseSpec, ModalitySpec
from safe_framework.core.adapter import CONFIG, RECIPE, WEIGHTS, AdapterConfig, read_config
from safe_framework.errors import AdapterError
from safe_framework.pretrained.location import resolve, revision_of
from safe_framework.utils.in_memory import was_in_memory
from safe_framework.utils.run_folder import adapter_in

PREFIX = "Listening"
"""Before vLLM's name of an architecture: the same, and an adapter is heard there."""

SEEING = (
    "Idefics3ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
"""The bases that see and are served, by transformers' names."""

_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Types of decoders in those of LLaVA's kind, which have one of any type."""

WORKER = "safe_framework.serving.vllm.worker.ListeningWorker"

_ELSEWHERE = "serve it by `safe serve --engine transformers`"

_MEMORY = ("gpu_memory_utilization", "kv_cache_memory_bytes")
_MOST_MEMORY = 0.92  # of all, which is vLLM's own default
_OF_FREE = 0.9

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts of a layer."""


def find_adapter(model: str) -> Path | None:
    """The adapter's folder that vLLM's ``model`` names, if it names one or its run."""
    folder = adapter_in(model)
    return folder.resolve() if (folder / CONFIG).is_file() else None


def engine_arguments(folder: Path, dtype: str = "auto") -> dict[str, Any]:
    """What vLLM is told so that it serves an adapter on its base.

    Args:
        folder: the adapter's.
        dtype: of the base, as the command line has it.

    Raises:
        AdapterError: the adapter asks for what this engine does not do; the message names it.
    """
    config = read_config(folder)
    base = _checked(folder, config)
    place, revision = resolve(base.model), base.revision or revision_of(base.model)
    outline = _outline(place, revision)
    (name,) = outline.get("architectures") or ["none"]
    if not reads_text(name) and name not in SEEING:
        hint = f"bases of text, or {', '.join(SEEING)}; or {_ELSEWHERE}"
        raise _refused(folder, f"its base is a `{name}`", hint)
    decoder = outline.get("text_config", {}).get("model_type", "llama")
    if name.startswith("Llava") and decoder not in _DECODERS:
        hint = f"decoders: {', '.join(_DECODERS)}; or {_ELSEWHERE}"
        raise _refused(folder, f"its base is a `{name}` on a decoder of type `{decoder}`", hint)
    if outline.get("quantization_config"):
        raise _refused(folder, "its base is quantised")
    if any((outline.get(key) or 0) > 1 for key in _EXPERTS):
        raise _refused(folder, "its base is a mixture of experts, of which no test holds the laws")
    own = base.dtype if base.dtype != "auto" else _dtype(outline)
    return {
        "model": place,
        "tokenizer": place,
        "revision": revision,
        "tokenizer_revision": revision,
        "dtype": own if dtype == "auto" else dtype,
        "hf_overrides": {
            "architectures": [f"{PREFIX}{name}"],
            "safe_adapter": str(folder),
            "safe_fingerprint": fingerprint(folder),
            "safe_sees": name in SEEING,
        },
        "worker_cls": WORKER,
    }


def memory_arguments(given: Mapping[str, Any], free: int, total: int) -> dict[str, float]:
    """How much of the machine's memory vLLM may take: most of what is free.

    By itself it wants 0.92 of all memory, and does not start where anything else has more than the
    rest. On processors as well, `gpu_memory_utilization` is the share of all.

    Args:
        given: the options of vLLM's engine; one that says how much it may take decides.
        free: bytes.
        total: bytes of all memory.

    Example:
        >>> memory_arguments({}, free=6, total=12)
        {'gpu_memory_utilization': 0.45}
        >>> memory_arguments({"kv_cache_memory_bytes": 1 << 30}, free=6, total=12)
        {}
    """
    if any(given.get(name) is not None for name in _MEMORY):
        return {}
    return {_MEMORY[0]: round(min(_MOST_MEMORY, _OF_FREE * free / total), 3)}


def reads_text(architecture: str) -> bool:
    """Whether a base of this architecture continues texts, and sees nothing."""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def fingerprint(folder: Path) -> str:
    """What tells an adapter from every other: of its tensors, its config and its recipe."""
    digest = hashlib.sha256()
    for name in (CONFIG, RECIPE, WEIGHTS):
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _checked(folder: Path, config: AdapterConfig) -> BaseSpec:
    """The base of an adapter that can be served.

    Raises:
        AdapterError: it cannot.
    """
    if config.base_change is not None:
        raise _refused(folder, "stage B changed its base")
    if not (folder / RECIPE).is_file():
        raise _refused(folder, f"it has no `{RECIPE}`, which says where its base is", "")
    recipe = read_stored_recipe(folder / RECIPE, folder)
    if was_in_memory(recipe.base.model):
        raise _refused(folder, "its base was in memory", "train it on a checkpoint")
    if recipe.base.gguf_file is not None:
        raise _refused(folder, "its base is read from a GGUF file")
    for name, spec in recipe.modalities.items():
        _check_modality(folder, name, spec, config.modalities[name])
    return recipe.base


def _check_modality(
    folder: Path, name: str, spec: ModalitySpec, recorded: Mapping[str, Any]
) -> None:
    if spec.markers or spec.inline:
        raise _refused(folder, f"`{name}` has markers in the text")
    if spec.transcript or not spec.features:
        raise _refused(folder, f"what was said in a sample of `{name}` is put into the prompt")
    if recorded.get("attend", "all") not in ("answer", "all"):
        raise _refused(folder, f"`{name}` acts `{recorded['attend']}` its place in the text")


def _outline(place: str, revision: str | None) -> Mapping[str, Any]:
    """The base's config, as it is written."""
    from transformers import PretrainedConfig

    found, _ = PretrainedConfig.get_config_dict(place, revision=revision)
    return found


def _dtype(outline: Mapping[str, Any]) -> str:
    """The type in which transformers loads a checkpoint that says no other."""
    found = outline.get("dtype") or outline.get("torch_dtype") or "float32"
    return str(found).removeprefix("torch.")


def _refused(folder: Path, why: str, hint: str = _ELSEWHERE) -> AdapterError:
    return AdapterError(f"vLLM cannot serve `{folder}`: {why}", hint=hint)


def check_arguments(given: Any) -> None:
    """Refuse what would have to be passed over, since the adapter says it.

    Args:
        given: vLLM's own arguments.

    Raises:
        AdapterError: one of them is there; the message names it.
    """
    own = {"--worker-cls": given.worker_cls != "auto", "--hf-overrides": bool(given.hf_overrides)}
    for name in ("tokenizer", "revision", "tokenizer_revision"):
        own[f"--{name.replace('_', '-')}"] = getattr(given, name) is not None
    if found := [name for name, there in own.items() if there]:
        raise AdapterError(
            f"{', '.join(found)} cannot be given: the adapter's recipe says what its base is",
            hint="leave it out",
        )


def check_engine(config: Any) -> None:
    """Refuse what vLLM would do in ways in which nobody has seen an adapter heard.

    Args:
        config: vLLM's, of the whole engine.

    Raises:
        AdapterError: it asks for one of them; the message names the option.
    """
    parallel, compilation = config.parallel_config, config.compilation_config
    asked = {
        "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
        "--data-parallel-size": parallel.data_parallel_size > 1,
        "--speculative-config": config.speculative_config is not None,
        "--enable-lora": config.lora_config is not None,
        "--quantization": config.quant_config is not None,
        "--ec-transfer-config": getattr(config, "ec_transfer_config", None) is not None,
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "--enable-prompt-embeds": config.model_config.enable_prompt_embeds,
        "--enable-mm-embeds": config.model_config.multimodal_config.enable_mm_embeds,
        "CUDA graphs": bool(compilation.cudagraph_mode.value),
        "piecewise compilation": compilation.mode == _PIECEWISE,
        "VLLM_USE_V2_MODEL_RUNNER": config.use_v2_model_runner,
        "a device other than the CPU": config.device_config.device_type != "cpu",
    }
    if found := [name for name, wanted in asked.items() if wanted]:
        raise AdapterError(
            f"an adapter cannot be served with {', '.join(found)}: it was never heard there",
            hint="leave it out, or serve by `safe serve --engine transformers`",
        )


_PIECEWISE = 3
"""vLLM's number of the compilation that it does for GPUs."""
