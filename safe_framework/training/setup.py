"""Builds what training works with: rows and their frames, retention, the caches of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from safe_framework.config.plugins import regularizers
from safe_framework.config.schema import Recipe
from safe_framework.core.class_readout import ClassReadout
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.data.examples import Example
from safe_framework.data.frame_cache import CachedSample, FrameCache, RawSampleStore
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError
from safe_framework.interfaces.types import Sample
from safe_framework.pretrained.location import cache_folder
from safe_framework.training import distributed
from safe_framework.training.batches import AnswerCollator, TokenizedExample, token_ids, tokenize
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    SampleStores,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework.utils.progress import WorkProgress


def frame_stores(model: SafeModel, recipe: Recipe) -> SampleStores:
    """Where each modality's frames are kept; its samples, if they are encoded in each step.

    They are where its encoder trains, and where the recipe's ``cache`` leaves frames out.
    """
    found: dict[str, FrameCache | RawSampleStore] = {}
    for name, spec in recipe.modalities.items():
        modality, folder = model.modality(name), cache_folder() / "frames"
        if modality.encoder_trains or "frames" not in recipe.training.cache:
            found[name] = RawSampleStore(modality.encoder)
        else:
            found[name] = modality.frame_cache(folder, spec.encoder.options)
    return found


def activation_caches(
    model: SafeModel, recipe: Recipe, examples: Sequence[TokenizedExample], pad: int
) -> ActivationCaches:
    """What a recipe lets training keep of the frozen base; nothing without speed-ups."""
    dims = {name: encoder.dim for name, encoder in model.encoders.items()}
    batch = AnswerCollator(dims, pad)([e for e in examples if e.frames][:2] or examples[:2])
    ClassReadout.taken(batch)
    given = {key: batch[key] for key in batch if key not in ("labels", "answers")}
    spec = recipe.training
    keep = spec.cache if spec.speedups == "on" else ()
    return ActivationCaches(
        model, keep, on_device(given, model.device), pad, spec.cache_gib * 2**30
    )


def encode_examples(
    model: SafeModel,
    examples: Sequence[Example],
    stores: SampleStores,
    progress: WorkProgress,
) -> list[TokenizedExample]:
    """Token ids and frames of every example."""
    frames: list[dict[str, CachedSample]] = [{} for _ in examples]
    for name, store in stores.items():
        having = [i for i, example in enumerate(examples) if name in example.samples]
        samples = [examples[i].samples[name] for i in having]
        places = [examples[i].place for i in having]
        encoded: Sequence[CachedSample] = distributed.encode_shared(
            store, samples, progress, places
        )
        for i, one in zip(having, encoded, strict=True):
            frames[i][name] = one
    markers = model.processor.markers
    return [tokenize(model.tokenizer, e, f, markers) for e, f in zip(examples, frames, strict=True)]


def make_retention(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    stores: SampleStores,
    pad: int,
    data: RecipeData | None = None,
    caches: ActivationCaches | None = None,
    *,
    held_out: Collection[str] = (),
) -> CounterfactualRetention | None:
    """The retention part of a recipe's loss, without the texts ``held_out``; None if it has none.

    Raises:
        DataError: its methods want texts or foreign samples that the recipe does not name.
    """
    methods = [
        WeightedRegularizer(weight, method, spec.options)
        for (weight, method), spec in zip(regularizers(recipe), recipe.retention, strict=True)
    ]
    if not methods:
        return None
    wanted = {kind for entry in methods for kind in entry.method.counterfactual}
    held = data or (RecipeData(recipe) if recipe.data else None)
    if wanted and (held is None or "retention" not in held.sources):
        raise DataError(
            "[[retention]] needs text of the base's own domain",
            hint='add `retention = "texts.jsonl"` to [data]',
        )
    samples = {
        name: [e.samples[name] for e in examples if name in e.samples] for name in model.modalities
    }
    spec, markers, names = recipe.training, model.processor.markers, list(model.modalities)
    rows = held.texts("retention") if wanted and held else []
    texts = [row.text for row in rows if row.text not in held_out]
    foreign = _foreign(model, held) if "foreign" in wanted and held else {}
    return CounterfactualRetention(
        model,
        methods,
        [token_ids(model.tokenizer, text, (), markers) for text in texts],
        distractor_pools(sorted(wanted), samples, stores, spec.seed, foreign),
        kinds=[k for e in methods if e.method.every_step for k in e.method.counterfactual],
        batch_size=spec.retention_batch_size,
        seed=spec.seed,
        pad=pad,
        marked=[token_ids(model.tokenizer, text, names, markers) for text in texts],
        caches=caches,
        group_by_length=spec.group_by_length,
    )


def _foreign(model: SafeModel, data: RecipeData) -> dict[str, list[Sample]]:
    if "foreign" not in data.sources:
        return {}
    return {
        name: data.samples("foreign", name, model.modality(name).encoder)
        for name in model.modalities
    }
