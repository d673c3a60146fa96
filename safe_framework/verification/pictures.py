"""Benches whose rows hold pictures, for a base that sees.

The pictures are made up, or those of the recipe's own rows, and go through the base's own
processor. A base that has none is given pixels of the shape that its config names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.base_model import input_device
from safe_framework.core.model import SafeModel
from safe_framework.core.special_tokens import special_ids
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained.base_processor import sees, takes_images
from safe_framework.utils.optional_imports import require
from safe_framework.verification.bench import Bench, padded_batches
from safe_framework.verification.calls import (
    FORWARD,
    LENGTH,
    ROWS,
    Batch,
    count_rows,
    decoder_tokens,
    made_up_samples,
    random_tokens,
)

SIDE, PATCH = 112, 14
"""Pixels of a side of a made-up picture, and of a patch of one colour in it."""
_QUESTION, _MORE = "What is this?", " Say what you see, and what else there is."
_LABEL = "with pictures"
_PIXELS, _WHY = "pixel_values", "pictures need Pillow"


@attrs.frozen(eq=False)
class PictureBench:
    """A bench with pictures in its rows.

    Attributes:
        bench: the rows.
        others: its plain batch with other pictures.
        pictured: the rows that hold a picture.
        rows: what is in them, for a certificate.
    """

    bench: Bench
    others: Batch
    pictured: tuple[int, ...]
    rows: str


@attrs.frozen(eq=False)
class PictureBenches:
    """What the laws are asked of beside plain text.

    Attributes:
        main: every law is asked of it.
        more: their calls are compared with the base's.
        note: what could not be asked, and why; empty if all could.
    """

    main: PictureBench
    more: Sequence[PictureBench] = ()
    note: str = ""

    @property
    def all(self) -> list[PictureBench]:
        """The main one and the others."""
        return [self.main, *self.more]


def made_up_picture(seed: int) -> Any:
    """A Pillow image of patches of random colours, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    count = SIDE // PATCH
    colours = torch.randint(256, (count, count, 3), generator=generator, dtype=torch.uint8)
    pixels = colours.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return require("PIL.Image", "image", _WHY).fromarray(pixels.numpy())


def picture_benches(model: SafeModel) -> PictureBenches | str | None:
    """Benches with pictures, or why none could be made; None for a base that does not see."""
    if takes_images(model.base_processor):
        return _by_processor(model)
    if not sees(model.base.config):
        return None
    return _by_config(model)


def given_pictures(bench: Bench) -> PictureBench | None:
    """The bench itself, where the caller's inputs hold pixels."""
    plain = bench.batches["plain"]
    others = {
        key: value.flip(-1)
        for key, value in plain.items()
        if key.startswith(_PIXELS) and isinstance(value, Tensor) and value.is_floating_point()
    }
    if not others:
        return None
    return PictureBench(bench, {**plain, **others}, tuple(range(bench.rows)), "as given")


# By the base's own processor


def _by_processor(model: SafeModel) -> PictureBenches | str:
    """Rows of every kind in one batch, a picture in each row, and rows of the recipe."""
    try:
        each = _checked(_made_up(model, [True, True], heard=(1,), label="a picture in each row"))
    except SafeError as error:
        return error.message
    own, unread = _of_recipe(model)
    rows = [True, False, False, True]
    try:
        mixed = _checked(_made_up(model, rows, heard=(2, 3), label=_LABEL))
    except SafeError as error:
        apart = f"rows with a picture were asked apart from those without: {error.message}"
        main = attrs.evolve(each, bench=attrs.evolve(each.bench, label=_LABEL))
        return PictureBenches(main, own, "; ".join(filter(None, (apart, unread))))
    return PictureBenches(mixed, [each, *own], unread)


def _checked(made: PictureBench) -> PictureBench:
    """The bench, on which the base runs.

    Raises:
        SafeError: it does not.
    """
    if error := made.bench.run_unwrapped(FORWARD).error:
        raise SafeError(f"the base refuses made-up pictures: {error}")
    return made


def _made_up(
    model: SafeModel, pictured: Sequence[bool], heard: tuple[int, ...], label: str
) -> PictureBench:
    """A bench of one question, beside a made-up picture in some rows."""

    def shown(first: int) -> list[list[Any]]:
        """A picture in each of these rows, seeded from ``first`` on."""
        return [[made_up_picture(first + row)] if here else [] for row, here in enumerate(pictured)]

    count = len(pictured)
    same, longer = [_QUESTION] * count, [_QUESTION] + [_QUESTION + _MORE] * (count - 1)
    batches = {
        "plain": _processed(model, same, shown(0), "left"),
        "left": _processed(model, longer, shown(0), "left"),
        "right": _processed(model, longer, shown(0), "right"),
        "single": _processed(model, same[:1], shown(0)[:1], "left"),
    }
    return PictureBench(
        bench=Bench(
            model,
            batches,
            _samples(model, count),
            heard=heard,
            unscored=special_ids(model.base.config),
            label=label,
        ),
        others=_processed(model, same, shown(100), "left"),
        pictured=tuple(row for row, here in enumerate(pictured) if here),
        rows=_kinds(pictured, heard),
    )


def _kinds(pictured: Sequence[bool], heard: tuple[int, ...]) -> str:
    """What is in the rows, in words."""
    words = {
        (True, True): "picture and sample",
        (True, False): "picture alone",
        (False, True): "sample alone",
        (False, False): "text alone",
    }
    return ", ".join(words[here, row in heard] for row, here in enumerate(pictured))


def _processed(
    model: SafeModel, texts: Sequence[str], pictures: Sequence[Sequence[Any]], side: str
) -> dict[str, Any]:
    """Texts with their pictures as the base's own processor gives them, where the base is.

    Raises:
        SafeError: the processor refuses them.
    """
    device, shown = input_device(model.base), [list(own) for own in pictures]
    try:
        made = model.processor(text=list(texts), images=shown, padding_side=side)
    except Exception as error:  # each processor has errors of its own
        raise SafeError(f"the base's processor refuses the pictures: {_line(error)}") from error
    batch = {
        key: _moved(value, model.base, device)
        for key, value in made.items()
        if key != "labels"  # PaliGemma's own; a call has labels where it is to have a loss
    }
    return batch | decoder_tokens(model.base, len(texts), device)


def _moved(value: Any, base: nn.Module, device: torch.device) -> Any:
    """A tensor where the base is, and in its type of numbers if it holds such."""
    if not isinstance(value, Tensor):
        return value
    kinds = (p.dtype for p in base.parameters() if p.is_floating_point())
    return value.to(device, next(kinds)) if value.is_floating_point() else value.to(device)


def _samples(model: SafeModel, rows: int) -> dict[str, Tensor]:
    """Made-up frames of every modality, for each row."""
    device, found = input_device(model.base), dict[str, Tensor]()
    for name in model.modalities:
        found |= made_up_samples(name, model.modality(name), rows, device)
    return found


# Rows of the recipe


_RecipeRow = tuple[str, Sequence[Any], Mapping[str, Sample]]
"""A text, its pictures, and its samples."""


def _of_recipe(model: SafeModel) -> tuple[list[PictureBench], str]:
    """A bench of rows of the recipe that hold pictures, and why there is none if there should."""
    recipe = model.built_from
    if recipe is None or recipe.data is None:
        return [], ""
    try:
        rows = _recipe_rows(model)
        return [_checked(_bench_of_rows(model, rows))] if rows else [], ""
    except SafeError as error:
        return [], f"rows of the recipe were not asked: {error.message}"


def _bench_of_rows(model: SafeModel, rows: Sequence[_RecipeRow]) -> PictureBench:
    texts, pictures = [text for text, _, _ in rows], [own for _, own, _ in rows]
    invert = require("PIL.ImageOps", "image", _WHY).invert
    others = [[invert(one) for one in own] for own in pictures]
    left = _processed(model, texts, pictures, "left")
    bench = Bench(
        model,
        {
            "plain": left,
            "left": left,
            "right": _processed(model, texts, pictures, "right"),
            "single": _processed(model, texts[:1], pictures[:1], "left"),
        },
        _samples_of(model, [samples for _, _, samples in rows]),
        heard=(len(rows) - 1,),
        unscored=special_ids(model.base.config),
        label="rows of the recipe",
    )
    return PictureBench(
        bench,
        _processed(model, texts, others, "left"),
        tuple(range(len(rows))),
        f"{len(rows)} of the recipe",
    )


def _recipe_rows(model: SafeModel) -> list[_RecipeRow]:
    """The recipe's rows with pictures that were not trained on: text, pictures and samples."""
    assert model.built_from is not None
    data = RecipeData(model.built_from)
    tested = [row for row in data.examples("test", model.encoders) if row.images][:ROWS]
    texts = [row for row in data.texts("retention_test") if row.images][: ROWS - len(tested)]
    found = [
        *((row.prompt, row.images, row.samples) for row in tested),
        *((row.text, row.images, {}) for row in texts),
    ]
    return [(text, [one.open() for one in images], samples) for text, images, samples in found]


def _samples_of(model: SafeModel, given: Sequence[Mapping[str, Sample]]) -> dict[str, Tensor]:
    """The rows' own samples of the modalities that every row has; made-up ones of the others."""
    found: dict[str, Tensor] = {}
    device = input_device(model.base)
    for name in model.modalities:
        samples = [row.get(name) for row in given]
        if any(sample is None for sample in samples):
            found |= made_up_samples(name, model.modality(name), len(given), device)
        else:
            made = model.processor.modality(name, samples)
            found |= {key: value.to(device) for key, value in made.items()}
    return found


# From the config, where there is no processor


def _by_config(model: SafeModel) -> PictureBenches | str:
    """Rows of pixels of the shape that the config names, and a placeholder for each of them."""
    try:
        plain = _pixels(model.base)
    except (
        AttributeError,
        IndexError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        return (  # a base of another shape
            "the base has no image processor, and its config does not say how to make pixels: "
            f"{_line(error)}"
        )
    bench = Bench(
        model,
        padded_batches(model.base, plain),
        _samples(model, count_rows(plain)),
        heard=(count_rows(plain) - 1,),
        unscored=special_ids(model.base.config),
        label=_LABEL,
    )
    if refused := bench.run_unwrapped(FORWARD).error:
        return f"the base has no image processor, and refuses made-up pixels: {refused}"
    note = "the base has no image processor: pixels of the shape that its config names"
    others = {**plain, _PIXELS: plain[_PIXELS].flip(-1)}
    made = PictureBench(bench, others, tuple(range(bench.rows)), _kinds([True, True], (1,)))
    return PictureBenches(made, note=note)


@torch.no_grad()
def _pixels(base: Any) -> dict[str, Tensor]:
    """Pixels, a placeholder token for each of their features, and ordinary tokens."""
    config, device = base.config, input_device(base)
    vision = config.vision_config
    side, channels = vision.image_size, getattr(vision, "num_channels", 3)
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    generator = torch.Generator().manual_seed(4)
    pixels = _moved(torch.randn(ROWS, channels, height, width, generator=generator), base, device)
    named = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
    placeholder = next(found for found in named if type(found) is int)
    features = base.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    count = sum(one.reshape(-1, one.shape[-1]).shape[0] for one in features) // ROWS
    seen = torch.full((ROWS, count), placeholder, device=device)
    words = random_tokens(base, (ROWS, LENGTH), seed=1).to(device)
    ids = torch.cat([seen, words], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), _PIXELS: pixels}
    return batch | decoder_tokens(base, ROWS, device)


def _line(error: BaseException) -> str:
    """The first line of what was raised, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
