"""vLLM's entry point: from here on ``vllm serve FOLDER`` takes an adapter's folder for a model."""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

_READING, _SEEING = (f"safe_framework.serving.vllm.{name}" for name in ("models", "seeing_models"))


def register() -> None:
    """Tell vLLM of the models, and have it look whether a model's name is an adapter's folder.

    vLLM calls this in each of its processes, whether or not an adapter is served there.
    """
    from vllm import ModelRegistry
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from safe_framework.serving.vllm.arguments import PREFIX, SEEING, reads_text

    known = frozenset(ModelRegistry.get_supported_archs())
    for plain in known:
        name = f"{PREFIX}{plain}"
        ours = plain.startswith(PREFIX) or name in known
        if not ours and (reads_text(plain) or plain in SEEING):
            module = _SEEING if plain in SEEING else _READING
            ModelRegistry.register_model(name, f"{module}:{name}")
            if plain in MODELS_CONFIG_MAP:
                MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[plain]
    create: Any = EngineArgs.create_engine_config
    if not hasattr(create, "__wrapped__"):
        setattr(EngineArgs, "create_engine_config", _of_adapters(create))  # noqa: B010  # for mypy


def _of_adapters(create: Any) -> Any:
    """What makes vLLM's config, of an adapter's folder too."""

    @wraps(create)
    def created(arguments: Any, *args: Any, **kwargs: Any) -> Any:
        """The config, once it is known that the adapter can be served by it."""
        from safe_framework.serving.vllm.arguments import (
            check_arguments,
            check_engine,
            engine_arguments,
            find_adapter,
        )
        from safe_framework.serving.vllm.versions import check_versions

        folder = find_adapter(arguments.model)
        if folder is None:
            return create(arguments, *args, **kwargs)
        check_versions()
        check_arguments(arguments)
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # whose insides are other ones
        arguments.served_model_name = arguments.served_model_name or [arguments.model]
        for name, value in engine_arguments(folder, arguments.dtype).items():
            setattr(arguments, name, value)
        config = create(arguments, *args, **kwargs)
        check_engine(config)
        return config

    return created
