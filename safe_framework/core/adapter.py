"""The adapter on disk: a folder without pickles, written whole or not at all.

``adapter_model.safetensors`` holds what training changed and what cannot be rebuilt,
``adapter_config.json`` what it belongs to, ``recipe.toml`` how to build it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
from torch import Tensor

from safe_framework.config.describe import name_of
from safe_framework.core.base_change import change_for_card
from safe_framework.core.base_identity import recorded_weights, same_weights
from safe_framework.core.modality import Modality
from safe_framework.core.relevance import AUTO, checked_settings
from safe_framework.errors import AdapterError
from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.hashing import fingerprint
from safe_framework.utils.run_folder import ADAPTER_CONFIG
from safe_framework.utils.tensors import cpu_copy
from safe_framework.utils.versions import FRAMEWORK_VERSION

FORMAT = 1
WEIGHTS, CONFIG, RECIPE, CARD = (
    "adapter_model.safetensors",
    ADAPTER_CONFIG,
    "recipe.toml",
    "README.md",
)


CERTIFICATE = "certificate.json"
"""What was measured on an adapter's weights."""


@attrs.frozen
class AdapterConfig:
    """What an adapter belongs to.

    Attributes:
        format: version of the folder's layout.
        framework: version of safe-framework that wrote it.
        base: class and fingerprints of the base model.
        modalities: by modality its gate, ``attend``, the encoder's fingerprint, the layers, who
            provides its plugins in which version, and the settings of its relevance head if it has
            one.
        parameters: how many trainable parameters it holds.
        base_change: what stage B changed in the base; None where L1 and L2 hold.
        accepted: how the base differs from one that the adapter was made for before.
    """

    format: int
    framework: str
    base: Mapping[str, str]
    modalities: Mapping[str, Mapping[str, Any]]
    parameters: int
    base_change: Mapping[str, Any] | None = None
    accepted: Sequence[str] = ()


@attrs.frozen(eq=False)
class AdapterState:
    """All that an adapter's folder holds, as :meth:`SafeModel.adapter_state` gives it.

    Attributes:
        tensors: what training changed in the modalities and what cannot be rebuilt.
        config: what the adapter belongs to.
        recipe: the text of the recipe that builds it again; None where none does.
        write_base_change: puts a changed base's tensors into the folder; None without a change.
    """

    tensors: Mapping[str, Tensor]
    config: AdapterConfig
    recipe: str | None = None
    write_base_change: Callable[[Path], None] | None = None


def modality_tensors(modality: Modality) -> dict[str, Tensor]:
    """One modality's tensors that an adapter holds: without what is frozen or can be rebuilt."""
    rebuilt = {f"fusion.{name}" for name in modality.fusion.rebuilt}
    return {
        key: tensor.detach()
        for key, tensor in modality.state_dict().items()
        if key not in rebuilt and (modality.encoder_trains or not key.startswith("encoder."))
    }


def write_adapter(state: AdapterState, folder: Path) -> None:
    """Write an adapter to ``folder``, replacing an adapter that is there.

    Files in it that no adapter has stay.

    Raises:
        AdapterError: ``folder`` holds something that is not an adapter, or cannot be written; or
            there is no modality.
    """
    if not state.config.modalities:
        raise AdapterError(
            "the model has no modality, and an adapter without one cannot be loaded",
            hint="add it before: model.add_modality(...)",
        )
    try:
        folder.resolve()
    except (ValueError, RuntimeError, OSError) as error:  # such as a loop of links
        place = ascii(str(folder))[1:-1]  # which may hold what no terminal shows
        raise AdapterError(
            f"the adapter cannot be saved to `{place}`: {error}",
            hint="choose another folder",
        ) from error
    try:
        if folder.exists() and any(folder.iterdir()) and not _holds_adapter(folder):
            raise AdapterError(
                f"`{folder}` is not empty and holds no adapter of this library",
                hint="choose another folder",
            )
        atomic_folder(
            folder, lambda part: _write_over(state, part, folder), overwrite=True, own=_is_ours
        )
    except OSError as error:
        raise AdapterError(
            f"the adapter cannot be saved to `{folder}`: {error.strerror or error}",
            hint="choose another folder, or make room in it",
        ) from error


def _holds_adapter(folder: Path) -> bool:
    """Whether a folder's config is one that this library wrote: PEFT's has the same name."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "framework", "modalities"} <= config.keys()


def _is_ours(name: str) -> bool:
    """Whether an adapter's folder has a file of this name, or what was measured on its weights."""
    changed = ("base_lora", "base_layers.safetensors")  # by stage B
    return name in (CONFIG, WEIGHTS, RECIPE, CARD, CERTIFICATE, *changed)


def _write_over(state: AdapterState, new: Path, old: Path) -> None:
    """Write an adapter, with the certificate of the one that it replaces where that is the same."""
    _write(state, new)
    made = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    same = (old / CERTIFICATE).is_file() and all(
        (old / name).is_file() and _content(old / name) == _content(new / name)
        for name in made
        if name != Path(CARD)
    )
    if same:
        shutil.copy2(old / CERTIFICATE, new)


def _content(file: Path) -> object:
    """What a file of an adapter holds, but for what was measured on it."""
    if file.name != CONFIG:
        return file.read_bytes()
    config = json.loads(file.read_text("utf-8"))
    (config.get("base_change") or {}).pop("drift", None)
    return config


def _write(state: AdapterState, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {key: cpu_copy(value) for key, value in state.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if state.write_base_change is not None:
        state.write_base_change(folder)
    if state.recipe is not None:
        (folder / RECIPE).write_text(state.recipe, "utf-8")
    (folder / CARD).write_text(_card(state.config), "utf-8")
    config = attrs.asdict(state.config)
    if state.config.base_change is None:
        del config["base_change"]
    if not state.config.accepted:
        del config["accepted"]
    # Last: without it nothing takes the folder for an adapter, so none loads that is half written.
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def adapter_config(
    base: Mapping[str, str],
    modalities: Sequence[Modality],
    parameters: int,
    base_change: Mapping[str, Any] | None,
    accepted: Sequence[str],
) -> AdapterConfig:
    """What an adapter of this version says it belongs to.

    Args:
        base: what ``recorded_base`` gave.
        modalities: that it holds.
        parameters: how many trainable parameters it holds.
        base_change: what ``BaseChange.adapter_facts`` gave; None where the base was not changed.
        accepted: how the base differs from one that the adapter was made for before.
    """
    return AdapterConfig(
        format=FORMAT,
        framework=FRAMEWORK_VERSION,
        base=base,
        modalities={modality.name: _modality_identity(modality) for modality in modalities},
        parameters=parameters,
        base_change=base_change,
        accepted=tuple(accepted),
    )


def _modality_identity(modality: Modality) -> dict[str, Any]:
    return {
        "gate": modality.gate,
        "attend": modality.attend,
        **({} if modality.relevance is None else {"relevance": modality.relevance.settings()}),
        **_encoder_identity(modality),
        "layers": list(modality.fusion.layers),
        "plugins": {
            kind: attrs.asdict(name)
            for kind in ("encoder", "projector", "fusion")
            if (name := name_of(getattr(modality, kind), kind)).installed
        },
    }


def _encoder_identity(modality: Modality) -> dict[str, Any]:
    """What tells a frozen encoder from another; one that trains is in the adapter, whole."""
    if modality.encoder_trains:
        return {"encoder": ""}
    exact = fingerprint(modality.encoder)
    return {"encoder": exact, "encoder_weights": recorded_weights(modality.encoder, exact)}


def same_encoder(recorded: Mapping[str, Any], modality: Modality) -> bool:
    """Whether a modality's frozen encoder is the one that an adapter recorded.

    Its weights may be of another type, as those of a model that was cast.
    """
    if modality.encoder_trains or not recorded["encoder"]:
        return modality.encoder_trains and not recorded["encoder"]
    if recorded["encoder"] == fingerprint(modality.encoder):
        return True
    return same_weights(recorded.get("encoder_weights", {}), modality.encoder) is not None


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
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(folder, CONFIG, error) from error
    if raw.get("format") != FORMAT:
        raise AdapterError(
            f"`{folder}` has adapter format {raw.get('format')}, this version reads {FORMAT}",
            hint="update safe-framework",
        )
    try:
        config = AdapterConfig(**raw)
        _check_types(config)
    except TypeError as error:
        raise _unreadable(folder, CONFIG, error) from error
    return config


def _items(table: Any) -> list[tuple[Any, Any]]:
    """What a table holds.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(table, Mapping):
        raise TypeError(f"{table!r:.80} is no table")
    return list(table.items())


def _check_types(config: AdapterConfig) -> None:
    """Refuse a config of the right keys whose values are not those that are written.

    Raises:
        TypeError: one is not; the message names it.
    """
    base, modalities = config.base, config.modalities
    if not (isinstance(base, Mapping) and {"class", "model"} <= base.keys()):
        raise TypeError("its `base` does not name a class and a model")
    if not all(isinstance(value, str) for value in base.values()):
        raise TypeError("its `base` holds something else than texts")
    if not (isinstance(modalities, Mapping) and modalities):
        raise TypeError("its `modalities` names none")
    for name, identity in modalities.items():
        if not (isinstance(identity, Mapping) and isinstance(identity.get("encoder"), str)):
            raise TypeError(f"it does not say the encoder of `{name}`")
        gate: Any = identity.get("gate")
        if "relevance" in identity:
            checked_settings(name, identity["relevance"])
        if gate != AUTO and (type(gate) not in (int, float) or not 0 <= gate <= 1):
            raise TypeError(f'the gate of `{name}` is neither between 0 and 1 nor "{AUTO}"')
        for kind, plugin in _items(identity.get("plugins", {})):
            told = dict(_items(plugin))
            facts = [told.get(key) for key in ("use", "distribution", "version")]
            if kind not in REGISTRIES or not all(isinstance(fact, str) for fact in facts):
                raise TypeError(f"it does not say the plugins of `{name}`")
    if not isinstance(config.base_change, Mapping | None):
        raise TypeError("its `base_change` is no table")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors.

    Raises:
        AdapterError: they cannot be read.
    """
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


def copy_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor], path: Path) -> None:
    """Copy every tensor of ``source`` into its namesake in ``target``, in place.

    Raises:
        AdapterError: the two do not hold the same names and shapes.
    """
    check_tensors(target, source, path)
    for key, tensor in target.items():
        tensor.copy_(source[key])


class LoadedKeys(NamedTuple):
    """What ``load_state_dict`` reports.

    Attributes:
        missing_keys: of the adapter, that the state does not have.
        unexpected_keys: of the state, that the adapter does not have.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_state(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], *, strict: bool
) -> LoadedKeys:
    """Copy the tensors of ``source`` that ``target`` has into it, in place.

    Args:
        target: the adapter's.
        source: of a checkpoint.
        strict: refuse names that are missing or unknown.

    Raises:
        AdapterError: a tensor is of another shape, or names differ and ``strict`` is True.
    """
    report = LoadedKeys(
        [key for key in target if key not in source], [key for key in source if key not in target]
    )
    shared = [key for key in target if key in source]
    shaped = [key for key in shared if target[key].shape != source[key].shape]
    unknown = [*report.missing_keys, *report.unexpected_keys] if strict else []
    if differing := [*shaped, *unknown]:
        raise AdapterError(
            f"the state does not fit the model: {', '.join(differing[:5])} differ",
            hint="load it into a model with the same modalities",
        )
    for key in shared:
        target[key].copy_(source[key])
    return report


def check_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of other names or shapes than the model's.

    Args:
        target: the model's.
        source: those that were read.
        path: of the file that they were read from.

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
            f"`{path}` does not fit the model: {', '.join(differing[:5])} differ",
            hint="load it with the recipe that it was trained with",
        )


def _card(config: AdapterConfig) -> str:
    names = ", ".join(config.modalities)
    base = config.base["model"] or config.base["class"]
    return (
        f"---\nlibrary_name: safe-framework\ntags: [safe-framework, {names}]\n---\n"
        f"# {names} for {base}\n\n"
        f"An adapter of {config.parameters:,} trainable parameters that gives `{base}` the "
        f"sense {names}. {_what_holds(config)}{_what_was_accepted(config)}\n\n"
        '```python\nimport safe_framework\n\nmodel = safe_framework.load("this/folder")\n```\n'
    )


def _what_holds(config: AdapterConfig) -> str:
    if config.base_change is not None:
        return change_for_card(config.base_change)
    return (
        "With the sense absent or its gate at 0, outputs are bit for bit the base model's."
        f"{''.join(_what_was_shown(one) for one in config.modalities.values())}"
    )


def _what_was_shown(modality: Mapping[str, Any]) -> str:
    """What a calibration of its gate showed, for people to read."""
    statement = (modality.get("relevance") or {}).get("statement") or {}
    told = [str(statement[key]) for key in ("sentence", "limits") if key in statement]
    return f"\n\n{' '.join(told)}" if told else ""


def _what_was_accepted(config: AdapterConfig) -> str:
    if not config.accepted:
        return ""
    return f"\n\nThe base is not the one that it was first made for: {'; '.join(config.accepted)}."
