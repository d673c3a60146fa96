"""Builds what training works with: rows and their frames, retention, the caches of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import attrs

from safe_framework.config.plugins import regularizers
from safe_framework.config.schema import Recipe
from safe_framework.core.class_readout import ClassReadout
from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.markers.text import NOTHING_SAID, Said
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow
from safe_framework.data.augmentation import Variation
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.frame_cache import CachedSamples, FrameCache, RawSampleStore
from safe_framework.data.preview import no_retention_texts
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.tasks import NO_SAMPLES
from safe_framework.data.text_length import check_length
from safe_framework.errors import DataError, SafeError, SampleError
from safe_framework.interfaces.samples import Sample, Several, each_of
from safe_framework.pretrained.base_model import context_length
from safe_framework.pretrained.location import cache_folder
from safe_framework.training import distributed
from safe_framework.training.batches import AnswerCollator, TokenizedExample, tokenize
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    SampleStores,
    WeightedRegularizer,
    distractor_pools,
)
from safe_framework.utils.in_memory import was_in_memory
from safe_framework.utils.progress import WorkProgress

Variations = Mapping[str, Sequence[Variation]]
"""The variants of each modality whose training samples are varied."""

NOT_VARIED: Variations = MappingProxyType({})


def frame_stores(model: SafeModel, recipe: Recipe) -> SampleStores:
    """Where each modality's frames are kept; its samples, if they are encoded in each step.

    They are where its encoder trains or is no installed plugin, and where the recipe's ``cache``
    leaves frames out.
    """
    found: dict[str, FrameCache | RawSampleStore] = {}
    for name, spec in recipe.modalities.items():
        modality, folder = model.modality(name), cache_folder() / "frames"
        if modality.transcripts is not None and "frames" in recipe.training.cache:
            modality.transcripts.folder = cache_folder() / "transcripts"
        changes = modality.encoder_trains or was_in_memory(spec.encoder.use)  # its code may
        if changes or "frames" not in recipe.training.cache:
            found[name] = RawSampleStore(modality.encoder)
        else:
            found[name] = modality.frame_cache(folder, spec.encoder.options)
    return found


def activation_caches(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[TokenizedExample],
    pad: int,
    prompts: PromptEncoder | None = None,
) -> ActivationCaches:
    """What a recipe lets training keep of the frozen base; nothing without speed-ups."""
    dims = {name: encoder.dim for name, encoder in model.encoders.items()}
    prompts = prompts or PromptEncoder.of(model)
    shown = [e for e in examples if e.frames][:2] or examples[:2]
    texts = [attrs.evolve(e, prompt=_without_pictures(prompts, e.prompt)) for e in shown]
    batch = AnswerCollator(dims, pad, prompts, attends=model.attends)(texts)
    ClassReadout.taken(batch)
    given = {key: batch[key] for key in batch if key not in ("labels", "answers")}
    spec = recipe.training
    keep = spec.cache if spec.speedups == "on" and not decodes_separately(model.base) else ()
    return ActivationCaches(
        model, keep, on_device(given, model.device), pad, spec.cache_gib * 2**30, prompts
    )


def _without_pictures(prompts: PromptEncoder, prompt: PromptRow) -> PromptRow:
    """The prompt, or where it has pictures a plain text of ordinary words instead."""
    if not prompt.images or prompts.always_sees:
        return prompt
    return prompts.prompt("a text without pictures")


def encode_examples(
    model: SafeModel,
    examples: Sequence[Example],
    stores: SampleStores,
    progress: WorkProgress,
    prompts: PromptEncoder | None = None,
    variations: Variations = NOT_VARIED,
) -> list[TokenizedExample]:
    """Token ids, pictures and frames of every example.

    Args:
        model: whose encoders, tokenizer and processor are used.
        examples: of the task.
        stores: of the frames.
        progress: the bars.
        prompts: makes the rows; the model's own if None.
        variations: of the modalities whose samples are varied, as ``variations_of`` gives them.
    """
    frames = _frames(examples, stores, progress)
    varied = []
    for number in range(max(map(len, variations.values()), default=0)):
        present = {name: each[number] for name, each in variations.items() if number < len(each)}
        varied.append(_frames(examples, stores, progress, present))
    variants = [
        tuple({**own, **others[i]} for others in varied if others[i])
        for i, own in enumerate(frames)
    ]
    prompts, made = prompts or PromptEncoder.of(model), list[TokenizedExample]()
    pictures = sum(bool(example.images) for example in examples)
    context = context_length(model.base.config)
    said = _said(prompts, examples, progress)
    for example, own, others, words in zip(examples, frames, variants, said, strict=True):
        made.append(tokenize(prompts, example, own, others, words))
        row = made[-1].row
        check_length(example.place, max(len(row.ids), len(row)), context)
        if example.images:
            progress("reading pictures", sum(bool(e.prompt.images) for e in made), pictures)
    return made


def _said(
    prompts: PromptEncoder, examples: Sequence[Example], progress: WorkProgress
) -> list[Said]:
    """What was said in each example's samples; also where these are varied."""
    found, processor = list[Said](), prompts.processor
    for example in examples:
        try:
            own = NOTHING_SAID if processor is None else processor.said(example.samples)
        except SampleError as error:
            raise DataError(f"{example.place}: {error.message}", hint=error.hint) from error
        found.append(own)
        if own:
            progress("transcribing samples", len(found), len(examples))
    return found


def _frames(
    examples: Sequence[Example],
    stores: SampleStores,
    progress: WorkProgress,
    variations: Mapping[str, Variation] | None = None,
) -> list[dict[str, CachedSamples]]:
    """The frames of each example's samples, or of a variant of those that are varied."""
    frames: list[dict[str, CachedSamples]] = [{} for _ in examples]
    for name in stores if variations is None else variations:
        having = [i for i, example in enumerate(examples) if name in example.samples]
        encoded = distributed.encode_rows(
            stores[name],
            [examples[i].samples[name] for i in having],
            progress,
            [examples[i].place for i in having],
            None if variations is None else variations[name],
        )
        for i, one in zip(having, encoded, strict=True):
            frames[i][name] = one
    return frames


def variations_of(model: SafeModel, recipe: Recipe) -> Variations:
    """The variants in which the recipe wants the training samples of each modality."""
    return {
        name: [
            Variation(spec.augment, model.modality(name).encoder, recipe.training.seed, number)
            for number in range(1, spec.augment.variants + 1)
        ]
        for name, spec in recipe.modalities.items()
        if spec.augment is not None
    }


def make_retention(
    model: SafeModel,
    recipe: Recipe,
    examples: Sequence[Example],
    stores: SampleStores,
    pad: int,
    data: RecipeData | None = None,
    caches: ActivationCaches | None = None,
    *,
    held_out: Collection[TextRow] = (),
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
        raise no_retention_texts()
    spec = recipe.training
    prompts = caches.prompts if caches else PromptEncoder.of(model)
    texts = held.texts("retention") if wanted and held else []
    context = context_length(model.base.config)
    texts = [row for row in texts if row not in held_out]
    foreign = _foreign(model, held) if "foreign" in wanted and held else {}
    return CounterfactualRetention(
        model,
        methods,
        [whole_row(prompts, row, context=context) for row in texts],
        distractor_pools(sorted(wanted), task_samples(model, examples), stores, spec.seed, foreign),
        kinds=[k for e in methods if e.method.every_step for k in e.method.counterfactual],
        batch_size=spec.retention_batch_size,
        seed=spec.seed,
        pad=pad,
        marked=[
            whole_row(prompts, row, dict.fromkeys(_marked(model), 1), context) for row in texts
        ],
        caches=caches,
        group_by_length=spec.group_by_length,
    )


def task_samples(
    model: SafeModel, examples: Sequence[Example]
) -> dict[str, list[Sample | Several[Sample]]]:
    """What distractors are made from: by modality the samples of each row that has some.

    Of a modality with markers single ones, since a text beside a distractor is marked once.
    """
    found: dict[str, list[Sample | Several[Sample]]] = {}
    for name in model.modalities:
        rows = [e.samples[name] for e in examples if name in e.samples]
        single = name in _marked(model)
        found[name] = [one for row in rows for one in (each_of(row) if single else (row,))]
    return found


def _marked(model: SafeModel) -> list[str]:
    """The modalities that have markers."""
    return [name for name in model.modalities if model.modality(name).marked]


def whole_row(
    prompts: PromptEncoder,
    row: TextRow,
    present: Mapping[str, int] = NO_SAMPLES,
    context: int | None = None,
) -> PromptRow:
    """The row of a text that the base is to predict, with markers of samples that are not its own.

    Args:
        prompts: makes it.
        row: the text.
        present: how many samples of each modality with markers are beside it.
        context: how many tokens the base reads; None for any number.

    Raises:
        DataError: its pictures cannot be used, or it has more tokens than the base's ``context``;
            the message gives its place.
    """
    markers = prompts.markers
    text = row.text if markers is None else markers.keep_fitting(row.text, present)
    try:
        found = prompts.whole_text(text, row.images, present)
    except SafeError as error:
        raise DataError(f"{row.place}: {error.message}", hint=error.hint) from error
    check_length(row.place, max(len(found.ids), len(found)), context)
    return found


def _foreign(model: SafeModel, data: RecipeData) -> dict[str, list[Sample]]:
    if "foreign" not in data.sources:
        return {}
    return {
        name: data.samples("foreign", name, model.modality(name).encoder)
        for name in model.modalities
    }
