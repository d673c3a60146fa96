"""Which types of model transformers has, and a tiny random model of any of them.

Weights are redrawn such that every layer and every token matters.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import attrs

from safe_framework.errors import SafeError
from tests.zoo.models.exceptions import CHANGES, REPLACED
from tests.zoo.models.inputs import text_inputs, with_image
from tests.zoo.models.shrink import shrink

if TYPE_CHECKING:
    from torch import Tensor, nn


TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
"""The tasks, each with the name of the mapping that has its types."""


def types() -> list[tuple[str, str]]:
    """Every (task, model type) of the installed transformers, in a fixed order.

    A type of two tasks is named under both, unless one class serves them; then the later of
    causal, image_text, seq2seq names it.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for task in TASKS:
        for model_type, name in class_names(task).items():
            found[model_type, name] = (task, model_type)
    return sorted(found.values())


def class_names(task: str) -> dict[str, str]:
    """The name of the class that serves each model type of a task."""
    from transformers.models.auto import modeling_auto

    mapping: dict[str, Any] = getattr(modeling_auto, TASKS[task])
    return {kind: name if isinstance(name, str) else name[0] for kind, name in mapping.items()}


_MATRIX, _VECTOR = 0.15, 0.05


def randomise(model: nn.Module, seed: int) -> None:
    """Redraw every matrix and table, and shift every vector: a gate that starts at 0 opens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(_MATRIX * noise)
            else:
                parameter.add_(_VECTOR * noise)


_LARGEST = 5_000_000
"""Parameters that a tiny model may have."""


class CannotBuild(SafeError):  # noqa: N818  # reads as what happened
    """A type that has no tiny model here; the message names the original error."""


@attrs.frozen(eq=False)
class TinyBase:
    """A tiny model and the inputs of one call.

    Attributes:
        task: "causal", "image_text" or "seq2seq".
        model_type: its name in transformers.
        model: random weights, float32, in evaluation mode.
        inputs: keyword arguments of one forward with two rows.
    """

    task: str
    model_type: str
    model: nn.Module
    inputs: dict[str, Tensor]


def tiny(task: str, model_type: str, *, seed: int = 0) -> TinyBase:
    """A tiny random model of one type, and inputs for it.

    Raises:
        CannotBuild: transformers cannot make one here; the message says why.
    """
    try:
        model = _model(task, model_type, seed)
        return TinyBase(task, model_type, model, _inputs(model, seed))
    except Exception as error:
        raise CannotBuild(
            f"no tiny `{model_type}` for {task}: {type(error).__name__}: {error}"
        ) from error


def generates(model: nn.Module) -> bool:
    """Whether ``generate`` is there for the model, by transformers' own word."""
    can: Any = getattr(model, "can_generate", None)
    return bool(can is not None and can())


def _inputs(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Inputs with an image where that runs, else with text alone."""
    taken = set(inspect.signature(model.forward).parameters)
    text = text_inputs(model, 2, 6, seed=seed)
    text = {name: value for name, value in text.items() if name in taken or "kwargs" in taken}
    for inputs in with_image(model, text):
        if _runs(model, inputs) is None:
            return inputs
    if (error := _runs(model, text)) is not None:
        raise error
    return text


def _runs(model: nn.Module, inputs: dict[str, Tensor]) -> Exception | None:
    """The error of one forward, if any."""
    import torch

    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        return error
    return None


def _model(task: str, model_type: str, seed: int) -> nn.Module:
    import torch
    import transformers

    kind = getattr(transformers, class_names(task)[model_type])
    config = tiny_config(model_type, kind)
    with torch.device("meta"):
        count = sum(p.numel() for p in kind(config).parameters())
    if count > _LARGEST:
        raise ValueError(f"its tiny config still has {count:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = kind(tiny_config(model_type, kind))
    model = model.float()
    randomise(model, seed)
    return model.eval()


def tiny_config(model_type: str, kind: Any) -> Any:
    """The tiny config that a model class takes."""
    from transformers import CONFIG_MAPPING

    whole = CONFIG_MAPPING[model_type]()
    if not isinstance(whole, kind.config_class):
        part = whole.get_text_config(decoder=True)
        whole = part if isinstance(part, kind.config_class) else whole
    fields = _changed(shrink(whole.to_dict()))
    return _replaced(type(whole).from_dict(fields))


def _replaced(config: Any) -> Any:
    """The config with a tower of transformers' own where it has one of another library."""
    from transformers import CONFIG_MAPPING

    for name, part in list(vars(config).items()):
        if tower := REPLACED.get(getattr(part, "model_type", "")):
            vars(config)[name] = CONFIG_MAPPING[tower["model_type"]](**tower)
    return config


def _changed(fields: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _changed(v) if isinstance(v, dict) else v for k, v in fields.items()}
    return nested | CHANGES.get(str(fields.get("model_type")), {})
