"""From a recipe to a model: the parts come from the registries, the core wires them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from safe_framework.config.diagnostics import locate_error
from safe_framework.config.plugins import parts_of
from safe_framework.config.read import read_recipe, read_stored_recipe
from safe_framework.config.schema import ModalitySpec, Recipe
from safe_framework.core.adapter import (
    RECIPE,
    AdapterConfig,
    copy_tensors,
    read_config,
    read_tensors,
    same_encoder,
)
from safe_framework.core.base_identity import compare_bases
from safe_framework.core.compilation import compile_layers
from safe_framework.core.layer_discovery import Side, find_layers
from safe_framework.core.markers.embeddings import inline_tokens
from safe_framework.core.modality import checked_gate
from safe_framework.core.model import SafeModel
from safe_framework.core.passing_weights import PassingWeights
from safe_framework.core.relevance import AUTO, blank_head
from safe_framework.core.segments import untaught
from safe_framework.data.transcripts import Transcripts
from safe_framework.errors import AdapterError, PluginError, SafeError
from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.pretrained.base_model import is_weightless, load_base
from safe_framework.pretrained.probe_cache import checkpoint_key, use_probe_cache
from safe_framework.utils.hashing import content_fingerprints
from safe_framework.utils.in_memory import MEMORY, was_in_memory
from safe_framework.utils.run_folder import adapter_in
from safe_framework.utils.tensors import checked_device


@torch.inference_mode(False)  # else nothing could be trained afterwards
def build(
    recipe: str | Path | Recipe,
    *,
    device: str | torch.device | None = None,
    example: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> SafeModel:
    """Build the model that a recipe describes, its modalities fresh and without effect.

    Args:
        recipe: path of a TOML file, the name of a catalogue recipe, or a recipe already read.
        device: where to put the model; by default where it loads.
        example: keyword arguments on which the base runs, where it runs neither on plain text
            nor on a picture as its processor or config describes one.
        trust_remote_code: let the base's checkpoint run code of its own.

    Raises:
        RecipeError: the recipe is wrong; the message shows every mistake.
        CheckpointError: pretrained weights cannot be found.
        UnsupportedBaseError: the base cannot be served.
    """
    checked = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, with_data=False)
    base, tokenizer, origin = _loaded(checked, trust_remote_code)
    if device is not None:
        base = base.to(checked_device(device))
    with use_probe_cache(base, origin if example is None else None):
        return attach(base, tokenizer, recipe=checked, example=example)


@torch.inference_mode(False)  # else nothing could be trained afterwards
def attach(
    base: nn.Module,
    tokenizer: Any = None,
    *,
    recipe: str | Path | Recipe | None = None,
    layers_path: str | None = None,
    side: Side | None = None,
    example: Mapping[str, Any] | None = None,
    split_rows: bool | None = None,
) -> SafeModel:
    """Wrap a base that is already in memory, and give it a recipe's modalities if there is one.

    Args:
        base: any transformers model with decoder layers; frozen, otherwise left as it is.
        tokenizer: its processor or tokenizer.
        recipe: whose ``[modalities]`` to add; its ``[base]`` is not loaded.
        layers_path: dotted path of the layers to fuse into, where the rule is wrong.
        side: of an encoder-decoder base, which layers a modality enters.
        example: keyword arguments on which the base runs, where it runs neither on plain text
            nor on a picture as its processor or config describes one.
        split_rows: run the rows that carry no modality in a call of their own, where the base
            mixes rows, as mixtures of experts do.

    What is None is as the recipe's ``[base]`` says.

    Raises:
        UnsupportedBaseError: the base cannot be served; the message says what was seen.
    """
    if recipe is None:
        return SafeModel(
            base,
            tokenizer,
            layers_path=layers_path,
            side=side or "decoder",
            example=example,
            split_rows=bool(split_rows),
        )
    checked = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, with_data=False)
    model = SafeModel(
        base,
        tokenizer,
        layers_path=layers_path or checked.base.layers_path,
        side=side or checked.base.side,
        example=example,
        split_rows=checked.base.split_rows if split_rows is None else split_rows,
    )
    model.built_from = checked
    try:
        _add_all(model, checked)
    except BaseException:
        model.detach()  # a base that the caller owns goes back without a hook
        raise
    return model


@torch.inference_mode(False)  # else nothing could be trained afterwards
def load(
    folder: str | Path,
    *more: str | Path,
    base: nn.Module | None = None,
    tokenizer: Any = None,
    model: SafeModel | None = None,
    device: str | torch.device | None = None,
    example: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> SafeModel:
    """Load an adapter that ``save_pretrained`` wrote, on the base that it was made for.

    Args:
        folder: the adapter's, or that of the run which made it.
        *more: adapters of other modalities for the same base.
        base: a base already in memory; loaded as the adapter's recipe says if not given.
        tokenizer: that base's processor or tokenizer.
        model: a model already put together, with modalities of the same names and parts, into
            which the adapters' tensors go; of an adapter without a recipe this is the way.
        device: where to put the model.
        example: keyword arguments on which the base runs, where it runs neither on plain text
            nor on a picture as its processor or config describes one.
        trust_remote_code: let the base's checkpoint run code of its own.
        allow_other_base: load it on a base that differs from the one that it was made for, and
            record that in certificates and in what is saved.

    A base of the same weights in another dtype, under other module names or with rows appended
    to its vocabulary is the same base, and so is one with another pad token; a warning says so.

    Raises:
        AdapterError: a folder is not a whole adapter, was made for another base, or holds a
            modality that another one holds too; or it has no recipe, or its base no name.
    """
    folder, *others = map(adapter_in, (folder, *more))
    if model is not None:
        return _load_into(model, [folder, *others], device, allow_other_base)
    recipe, origin = _recipe_in(folder), None
    if base is None:
        base, tokenizer, origin = _loaded(_with_named_base(recipe, folder), trust_remote_code)
    if device is not None:
        base = base.to(checked_device(device))
    with use_probe_cache(base, origin if example is None else None):
        model = attach(base, tokenizer, recipe=recipe, example=example)
        try:
            load_tensors(model, folder, recipe.modalities, allow_other_base=allow_other_base)
            for other in others:
                _load_beside(model, other, allow_other_base)
        except BaseException:
            model.detach()  # a caller's base keeps no hook of a model that was refused
            raise
    return model


@attrs.frozen(eq=False)
class WeightlessAdapter:
    """An adapter whose base's weights another program holds, before or while it reads them.

    Attributes:
        folder: the adapter's.
        recipe: that builds it.
        base: without its weights.
        processor: its own, or its tokenizer.
    """

    folder: Path
    recipe: Recipe
    base: nn.Module
    processor: Any

    @classmethod
    def of(cls, folder: str | Path) -> WeightlessAdapter:
        """Read what an adapter is; nothing of its base but its config and its tokenizer.

        Raises:
            AdapterError: the folder is no whole adapter, or does not say how its model is made.
        """
        found = adapter_in(folder)
        recipe = _with_named_base(_recipe_in(found), found)
        return cls(found, recipe, *load_base(recipe.base, weights=False))

    def passing(self) -> PassingWeights:
        """What fingerprints the base's weights when they pass."""
        config, spec = read_config(self.folder), self.recipe.base
        layers = {int(n) for one in config.modalities.values() for n in one["layers"]}
        path = find_layers(self.base, spec.layers_path, spec.side)[0]
        return PassingWeights(self.base, config.base, path, layers)

    @torch.inference_mode(False)
    def load(self, passed: PassingWeights | None = None) -> SafeModel:
        """The adapter, whose base cannot be run; its senses can, once its weights have passed.

        Args:
            passed: all of the base's weights; None where another process sees to them, so that
                they are not compared, and samples are prepared here, but not projected or fused.

        Raises:
            AdapterError: as ``load``.
        """
        spec = self.recipe.base
        model = SafeModel(
            self.base,
            self.processor,
            layers_path=spec.layers_path,
            side=spec.side,
            split_rows=spec.split_rows,
        )
        model.built_from = self.recipe
        _add_all(model, self.recipe, device="meta" if passed is None else None)
        load_tensors(model, self.folder, self.recipe.modalities, passed=passed)
        return model


def _load_into(
    model: SafeModel,
    folders: Sequence[Path],
    device: str | torch.device | None,
    allow_other_base: bool,
) -> SafeModel:
    """The caller's model with the tensors of each adapter."""
    if device is not None:
        model.to(checked_device(device))
    for folder in folders:
        names = read_config(folder).modalities
        if lacking := [name for name in names if name not in model.modalities]:
            raise AdapterError(
                f"`{folder}` holds modality `{lacking[0]}`, which the model does not have",
                hint=f"add it before: model.add_modality({lacking[0]!r}, ...)",
            )
        load_tensors(model, folder, names, allow_other_base=allow_other_base)
    return model


def _with_named_base(recipe: Recipe, folder: str | Path) -> Recipe:
    """The recipe, if it says where its base is.

    Raises:
        AdapterError: the base was in memory.
    """
    if was_in_memory(recipe.base.model):
        raise AdapterError(
            f"the base of `{folder}` was a `{recipe.base.model.removeprefix(MEMORY)}` in memory, "
            "which does not say where it was loaded from",
            hint="give it: load(folder, base=..., tokenizer=...)",
        )
    return recipe


def compile(model: SafeModel, **options: Any) -> SafeModel:
    """Compile the base of ``model`` in place; its module tree and weights stay.

    The first call of each kind compiles. Copies and pickles of the model are not compiled, and
    ``detach`` gives the base back uncompiled.

    Args:
        model: with modalities or without; modalities may still be added and removed.
        **options: of ``torch.compile``.

    Returns:
        The same model.
    """
    compile_layers(model.base, model.stack.of(model.base), **options)
    return model


def _loaded(recipe: Recipe, trust_remote_code: bool) -> tuple[nn.Module, Any, str | None]:
    """A recipe's base and tokenizer, and their origin if the files stood still meanwhile."""
    before = None if trust_remote_code else checkpoint_key(recipe.base)
    base, tokenizer = load_base(recipe.base, trust_remote_code=trust_remote_code)
    still = before is not None and before == checkpoint_key(recipe.base)
    return base, tokenizer, before if still else None


def _recipe_in(folder: Path) -> Recipe:
    config = read_config(folder)
    if not (folder / RECIPE).is_file():
        raise AdapterError(
            f"`{folder}` has no `{RECIPE}`: it was saved without saying how its model is made",
            hint="put the same model together, then load into it: load(folder, model=model)",
        )
    for name, identity in config.modalities.items():
        for kind, plugin in identity.get("plugins", {}).items():
            try:
                REGISTRIES[kind].point(plugin["use"])
            except PluginError as error:
                raise AdapterError(
                    f"`{folder}` needs {error.message} for modality `{name}`",
                    hint=f"pip install {plugin['distribution']}=={plugin['version']}",
                ) from error
    return read_stored_recipe(folder / RECIPE, folder)


def _load_beside(model: SafeModel, folder: Path, allow_other_base: bool) -> None:
    recipe = _recipe_in(folder)
    if taken := [name for name in recipe.modalities if name in model.modalities]:
        raise AdapterError(
            f"`{folder}` holds modality `{taken[0]}`, which another adapter holds too",
            hint="train one of them under another name",
        )
    if model.base_change is not None or read_config(folder).base_change is not None:
        raise AdapterError(
            f"`{folder}` cannot stand beside another adapter: stage B changed the base of one",
            hint="load it alone, or train the senses together",
        )
    _add_all(model, recipe)
    load_tensors(model, folder, recipe.modalities, allow_other_base=allow_other_base)


def _add_all(model: SafeModel, recipe: Recipe, device: str | None = None) -> None:
    with torch.random.fork_rng(devices=[]):  # building must not move the caller's seed
        torch.manual_seed(recipe.training.seed)
        for name, spec in recipe.modalities.items():
            _add(model, recipe, name, spec, device)


def _add(
    model: SafeModel, recipe: Recipe, name: str, spec: ModalitySpec, device: str | None
) -> None:
    encoder, projector, fusion = parts_of(recipe, name, spec, model.facts(), device=device)
    if spec.inline:
        try:
            inline_tokens(projector)
        except SafeError as error:
            raise locate_error(recipe, ("modalities", name), error, f"`{name}`") from error
    transcripts = None
    if spec.written is not None:
        try:
            transcripts = Transcripts(name, encoder, spec.written)
        except SafeError as error:
            raise locate_error(recipe, ("modalities", name), error, f"`{name}`") from error
    model.add_modality(
        name,
        encoder=encoder,
        projector=projector,
        fusion=fusion,
        gate=1.0 if spec.gate.value == AUTO else spec.gate.value,  # a head is fitted later
        attend=spec.attend,
        markers=spec.markers,
        inline=spec.inline,
        transcript=transcripts or False,
        features=spec.features,
    )
    model.modality(name).built_from = recipe


def load_tensors(
    model: SafeModel,
    folder: Path,
    names: Collection[str] | None = None,
    *,
    allow_other_base: bool = False,
    passed: PassingWeights | None = None,
) -> None:
    """Put the adapter's tensors into a model built from its recipe.

    Args:
        model: on the adapter's base.
        folder: the adapter.
        names: of the modalities that it holds, if the model has others beside them.
        allow_other_base: take a base that differs from the adapter's, and record how.
        passed: the weights of a base that was loaded without them.

    Raises:
        AdapterError: the base or an encoder is another one, or tensors are missing, unknown
            or of another shape; the message says what differs.
    """
    config = read_config(folder)
    identity = model.base_identity()
    if is_weightless(model.base):
        del identity["weights"]
    if passed is not None:
        identity["weights"] = passed.fingerprint
    accepted = _accepted_differences(
        model, config, folder, identity, passed, allow_other_base=allow_other_base
    )
    stored = read_tensors(folder)
    for name, recorded in config.modalities.items():
        settings = recorded.get("relevance")
        head = None if settings is None else blank_head(name, settings, stored, folder)
        model.set_relevance(name, head)
    target = {
        key: tensor
        for key, tensor in model.modality_tensors().items()
        if names is None or key.partition(".")[0] in names
    }
    copy_tensors(target, untaught(target) | stored, folder)
    model.restore_base_change(config.base_change, folder)
    known = (*model.base_snapshot.accepted, *config.accepted, *accepted)
    model.base_snapshot.accepted = tuple(dict.fromkeys(known))
    model.base_snapshot.identity = identity
    for name, recorded in config.modalities.items():
        model.modality(name).gate = checked_gate(recorded["gate"])
        model.modality(name).attend = recorded.get("attend", "all")  # older ones act everywhere


def _accepted_differences(
    model: SafeModel,
    config: AdapterConfig,
    folder: Path,
    identity: Mapping[str, str],
    passed: PassingWeights | None,
    *,
    allow_other_base: bool,
) -> tuple[str, ...]:
    """How the base differs from the adapter's, where that is harmless or allowed.

    Raises:
        AdapterError: it differs otherwise, or an encoder does.
    """
    contents = content_fingerprints if passed is None else passed.contents
    found = compare_bases(config.base, model.base, model.base_processor, identity, contents)
    called = f"`{config.base['model'] or config.base['class']}`"
    harmful = " and ".join(found.harmful).replace("_", " ")
    if harmful and not allow_other_base:
        raise AdapterError(
            f"`{folder}` was made for another base ({called}): {harmful} differ",
            hint="load it on the base that it was trained on; to use it on this one all the same, "
            "pass `allow_other_base=True`, which certificates and cards will say",
        )
    for name, recorded in config.modalities.items():
        if not same_encoder(recorded, model.modality(name)):
            raise AdapterError(
                f"the encoder of modality `{name}` is not the one that `{folder}` was trained with",
                hint="use the same checkpoint and options of the encoder",
            )
    differing = (
        *found.harmless,
        *((f"{harmful} differ, by `allow_other_base`",) if harmful else ()),
    )
    if differing:
        warnings.warn(
            f"`{folder}` is loaded on a base that is not quite the one that it was made for "
            f"({called}): {'; '.join(differing)}",
            stacklevel=_CALLER,
        )
    return differing


_CALLER = 4
"""Frames from a warning here to who called ``load``."""
