"""The adapter on disk: a folder without pickles, written whole or not at all.

``adapter_model.safetensors`` holds what training changed and what cannot be rebuilt,
``adapter_config.json`` what it belongs to, ``recipe.toml`` how to build it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor, nn

from safe_framework.core.base_change import named, original
from safe_framework.core.layer_discovery import text_config
from safe_framework.core.modality import Modality
from safe_framework.errors import AdapterError
from safe_framework.pretrained.probe_cache import recalled
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.hashing import fingerprint, text_fingerprint, tokenizer_fingerprint
from safe_framework.utils.tensors import cpu_copy
from safe_framework.utils.versions import FRAMEWORK_VERSION

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


FORMAT = 1
WEIGHTS, CONFIG, RECIPE, CARD = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "recipe.toml",
    "README.md",
)


@attrs.frozen
class AdapterConfig:
    """What an adapter belongs to.

    Attributes:
        format: version of the folder's layout.
        framework: version of safe-framework that wrote it.
        base: class and fingerprints of the base model.
        modalities: gate and encoder fingerprint by modality.
        parameters: how many trainable parameters it holds.
        base_change: what stage B changed in the base; None where L1 and L2 hold.
    """

    format: int
    framework: str
    base: Mapping[str, str]
    modalities: Mapping[str, Mapping[str, Any]]
    parameters: int
    base_change: Mapping[str, Any] | None = None


def adapter_tensors(model: SafeModel) -> dict[str, Tensor]:
    """What an adapter must hold: all but the base, frozen encoders and what can be rebuilt.

    Where stage B changes the base, what it changes is among them.
    """
    changed = named(model.base_change, model.base)
    return sense_tensors(model) | {key: tensor.detach() for key, tensor in changed.items()}


def sense_tensors(model: SafeModel) -> dict[str, Tensor]:
    """The modalities' part of ``adapter_tensors``."""
    found: dict[str, Tensor] = {}
    for name in model.modalities:
        for key, tensor in modality_tensors(model.modality(name)).items():
            found[f"{name}.{key}"] = tensor
    return found


def modality_tensors(modality: Modality) -> dict[str, Tensor]:
    """One modality's part of ``sense_tensors``."""
    rebuilt = {f"fusion.{name}" for name in modality.fusion.rebuilt}
    return {
        key: tensor.detach()
        for key, tensor in modality.state_dict().items()
        if key not in rebuilt and (modality.encoder_trains or not key.startswith("encoder."))
    }


def save_adapter(model: SafeModel, folder: Path, *, writes: bool = True) -> Path:
    """Write ``model``'s adapter to ``folder``, replacing an adapter that is there.

    Args:
        model: with the modalities.
        folder: of the adapter.
        writes: whether this process does; others help to read a base whose layers are shared out.

    Raises:
        AdapterError: ``folder`` holds something that is not an adapter.
    """
    config = attrs.asdict(_config_of(model))
    if model.base_change is None:
        del config["base_change"]
    if not writes:
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise AdapterError(
            f"`{folder}` is not empty and holds no adapter", hint="choose another folder"
        )
    atomic_folder(folder, lambda temporary: _write(model, config, temporary), overwrite=True)
    return folder


def _write(model: SafeModel, config: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {key: cpu_copy(value) for key, value in sense_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if model.base_change is not None:
        model.base_change.write(model.base, folder)
    if model.recipe is not None and set(model.recipe.modalities) == set(model.modalities):
        (folder / RECIPE).write_text(model.recipe.text, "utf-8")
    (folder / CARD).write_text(_card(model, config), "utf-8")
    # Last: without it nothing takes the folder for an adapter, so none loads that is half written.
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _config_of(model: SafeModel) -> AdapterConfig:
    from safe_framework.experimental.base_finetuning.attach import change_facts

    return AdapterConfig(
        format=FORMAT,
        framework=FRAMEWORK_VERSION,
        base=base_identity(model),
        modalities={name: _modality_identity(model.modality(name)) for name in model.modalities},
        parameters=sum(p.numel() for p in model.trainable_parameters().values()),
        base_change=change_facts(model),
    )


def _modality_identity(modality: Modality) -> dict[str, Any]:
    return {
        "gate": modality.gate,
        "encoder": _encoder_identity(modality),
        "layers": list(modality.fusion.layers),
    }


def _encoder_identity(modality: Modality) -> str:
    """What tells a frozen encoder from another; one that trains is in the adapter, whole."""
    return "" if modality.encoder_trains else fingerprint(modality.encoder)


def base_identity(model: SafeModel) -> dict[str, str]:
    """What tells one base from another: class, weights, config and tokenizer.

    The weights are those that it had before any change.
    """
    config = text_config(model.base)
    facts = {name: getattr(config, name, None) for name in _READS_WEIGHTS}
    with original(model):
        weights = recalled(
            model.base, f"weights {model.seal.glance}", lambda: fingerprint(model.base)
        )
    words = recalled(model.base, "tokenizer", lambda: tokenizer_fingerprint(model.tokenizer))
    return {
        "class": type(model.base).__name__,
        "model": model.recipe.base.model if model.recipe else "",
        "weights": weights,
        "config": text_fingerprint(facts),
        "tokenizer": words,
    }


# What changes a base's outputs where its weights stay the same.
_READS_WEIGHTS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
)


def read_config(folder: Path) -> AdapterConfig:
    """The adapter's config.

    Raises:
        AdapterError: the folder is not a whole adapter, cannot be read, or is of a newer
            format.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(
                f"`{folder}` is not an adapter: it has no `{name}`",
                hint="give the folder that `save_pretrained` wrote",
            )
    try:
        raw = dict(json.loads((folder / CONFIG).read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise _unreadable(folder, CONFIG, error) from error
    if raw.get("format") != FORMAT:
        raise AdapterError(
            f"`{folder}` has adapter format {raw.get('format')}, this version reads {FORMAT}",
            hint="update safe-framework",
        )
    try:
        return AdapterConfig(**raw)
    except TypeError as error:
        raise _unreadable(folder, CONFIG, error) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise _unreadable(folder, WEIGHTS, error) from error


def _unreadable(folder: Path, name: str, error: Exception) -> AdapterError:
    return AdapterError(
        f"`{name}` of `{folder}` cannot be read: {error}", hint="copy or save the adapter again"
    )


def load_tensors(model: SafeModel, folder: Path, names: Collection[str] | None = None) -> None:
    """Put the adapter's tensors into a model built from its recipe.

    Args:
        model: on the adapter's base.
        folder: the adapter.
        names: of the modalities that it holds, if the model has others beside them.

    Raises:
        AdapterError: the base or an encoder is another one, or tensors are missing, unknown
            or of another shape; the message says what differs.
    """
    from safe_framework.experimental.base_finetuning.attach import restore_change

    config = read_config(folder)
    _check_identity(model, config, folder)
    target = {
        key: tensor
        for key, tensor in sense_tensors(model).items()
        if names is None or key.partition(".")[0] in names
    }
    copy_tensors(target, _read_tensors(folder), folder)
    restore_change(model, config.base_change, folder)
    model.seal.identity = config.base
    for name, identity in config.modalities.items():
        model.set_gate(identity["gate"], name)


def copy_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor], place: Path) -> None:
    """Copy every tensor of ``source`` into its namesake in ``target``, in place.

    Raises:
        AdapterError: the two do not hold the same names and shapes.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in target.items()}
    found = {key: tuple(tensor.shape) for key, tensor in source.items()}
    if expected != found:
        differing = sorted(
            key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
        )
        raise AdapterError(
            f"`{place}` does not fit the model: {', '.join(differing[:5])} differ",
            hint="load it with the recipe that it was trained with",
        )
    for key, tensor in target.items():
        tensor.copy_(source[key])


def _check_identity(model: SafeModel, config: AdapterConfig, folder: Path) -> None:
    now = base_identity(model)
    differing = [
        part
        for part in ("class", "weights", "config", "tokenizer")
        if now[part] != config.base[part] and now[part]
    ]
    if differing:
        raise AdapterError(
            f"`{folder}` was made for another base "
            f"(`{config.base['model'] or config.base['class']}`): {' and '.join(differing)} differ",
            hint="load it on the base that it was trained on",
        )
    for name, identity in config.modalities.items():
        if _encoder_identity(model.modality(name)) != identity["encoder"]:
            raise AdapterError(
                f"the encoder of modality `{name}` is not the one that `{folder}` was trained with",
                hint="use the same checkpoint and options of the encoder",
            )


def _kept(config: Mapping[str, Any]) -> str:
    from safe_framework.evaluation.base_drift import for_the_card

    if changed := config.get("base_change"):
        return for_the_card(changed)
    return "With the sense absent or its gate at 0, outputs are bit for bit the base model's."


def _card(model: SafeModel, config: Mapping[str, Any]) -> str:
    senses = ", ".join(config["modalities"])
    base = config["base"]["model"] or config["base"]["class"]
    return (
        f"---\nlibrary_name: safe-framework\ntags: [safe-framework, {senses}]\n---\n"
        f"# {senses} for {base}\n\n"
        f"An adapter of {config['parameters']:,} trainable parameters that gives `{base}` the "
        f"sense {senses}. {_kept(config)}\n\n"
        '```python\nimport safe_framework\n\nmodel = safe_framework.load("this/folder")\n```\n'
    )


# What of a model training changes, by name and in numbers.


def trainable_parameters(model: SafeModel) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; those of a changed base are among them."""
    changed = named(model.base_change, model.base)
    return {
        name: parameter
        for name, parameter in (*model.modalities.named_parameters(), *changed.items())
        if parameter.requires_grad or name in changed
    }


def trainable_summary(model: SafeModel) -> str:
    """How many parameters are trainable, in PEFT's form."""
    trainable = sum(p.numel() for p in trainable_parameters(model).values())
    total = sum(p.numel() for p in model.parameters())
    share = 100 * trainable / total
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"
