"""The base model, and its processor or tokenizer, that a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import base_outline
from safe_framework.pretrained.base_processor import load_processor
from safe_framework.pretrained.location import composed_folder, resolve, revision_of
from safe_framework.pretrained.quantised import refuse_missing_library
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio
from safe_framework.utils.quiet import quietly

if TYPE_CHECKING:
    from torch import nn

    from safe_framework.config.schema import BaseSpec


_WEIGHTLESS: WeakSet[nn.Module] = WeakSet()


def load_base(
    spec: BaseSpec, *, trust_remote_code: bool = False, weights: bool = True
) -> tuple[nn.Module, Any]:
    """The model that ``[base]`` of a recipe names, and its own processor or tokenizer.

    Args:
        spec: a hub id, a folder or the name of a card, and how to load it.
        trust_remote_code: let the checkpoint run code of its own; off, and no recipe can
            turn it on.
        weights: read them; without, the model lies on the meta device and cannot be run.

    Raises:
        CheckpointError: there is no such base, or it is quantised and cannot be loaded here.
    """
    set_aside_broken_torchaudio()
    if spec.compose is not None and not composed_folder(spec.model).is_dir():
        raise CheckpointError(
            f"`{spec.model}`, which [base.compose] describes, has not been made",
            hint="safe compose RECIPE",
        )
    place, common = resolve(spec.model), _common(spec)
    options: dict[str, Any] = {"dtype": spec.dtype, "trust_remote_code": trust_remote_code}
    if spec.attn_implementation:
        options["attn_implementation"] = spec.attn_implementation
    if not weights:
        options["device_map"] = "meta"
    with quietly():
        config = _config(place, common, trust_remote_code)
        processor = load_processor(place, config, common, trust_remote_code=trust_remote_code)
        quantised = refuse_missing_library(spec.model, config)
        try:
            base = _model_class(config).from_pretrained(place, **common, **options)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            if quantised is None:
                raise
            why = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"`{spec.model}` is quantised ({quantised}), and cannot be loaded here: {why}",
                hint=quantised.hint,
            ) from error
        if not weights:
            _WEIGHTLESS.add(base)
        return base, processor


def is_weightless(base: nn.Module) -> bool:
    """Whether ``load_base`` made this base without its weights, which another program holds."""
    return base in _WEIGHTLESS


def load_base_processor(spec: BaseSpec, *, trust_remote_code: bool = False) -> Any:
    """The processor or tokenizer alone of what ``load_base`` loads."""
    set_aside_broken_torchaudio()
    place, common = resolve(spec.model), _common(spec)
    with quietly():
        config = _config(place, common, trust_remote_code)
        return load_processor(place, config, common, trust_remote_code=trust_remote_code)


def takes_pictures(spec: BaseSpec) -> bool:
    """Whether the base is given pictures; its config is fetched for it, its weights are not.

    Raises:
        OSError: its config cannot be had.
        CheckpointError: there is no such base.
    """
    known = base_outline.takes_pictures(spec)
    if known is not None:
        return known
    from transformers import PretrainedConfig

    with quietly():
        config, _ = PretrainedConfig.get_config_dict(resolve(spec.model), **_common(spec))
    return base_outline.BaseOutline(config).sees


def load_context_length(spec: BaseSpec, *, trust_remote_code: bool = False) -> int | None:
    """The ``context_length`` of a base, of which the config alone is fetched."""
    with quietly():
        return context_length(_config(resolve(spec.model), _common(spec), trust_remote_code))


def context_length(config: Any) -> int | None:
    """How many positions a base of this config was made for; None where it has no such limit."""
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _config(place: str, common: dict[str, str], trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **common)


def _common(spec: BaseSpec) -> dict[str, str]:
    """What every part of a checkpoint is loaded with."""
    revision = spec.revision or revision_of(spec.model)
    found = {"revision": revision} if revision else {}
    return {**found, "gguf_file": spec.gguf_file} if spec.gguf_file else found


def _model_class(config: Any) -> Any:
    """The auto class that maps a checkpoint's type: image-text first, causal last."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not causal and kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM
