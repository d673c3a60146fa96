"""A base that answers questions about scenes of emoji: made, scored and written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from safe_framework.config.schema import ComposeSpec, Recipe
from safe_framework.experimental.vision_language.compose import compose
from safe_framework.experimental.vision_language.packed_rows import QuestionPrompt
from safe_framework.experimental.vision_language.scene_scores import (
    SceneScores,
    score_scenes,
    text_loss,
)
from safe_framework.experimental.vision_language.scene_training import (
    see,
    train_on_scenes,
    without_notes_of_peft,
)
from safe_framework.experimental.vision_language.scenes import Split, SpriteSets, scenes
from safe_framework.pretrained import quietly
from safe_framework.pretrained.cards import read_card
from safe_framework.pretrained.sprite_sets import read_sprite_set, sprite_folder
from safe_framework.utils import catalogue
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.progress import WorkProgress

CARD = "README.md"


def make_scene_base(
    recipe: Recipe, spec: ComposeSpec, folder: Path, progress: WorkProgress
) -> tuple[Any, Any, dict[str, Any], SceneScores | None]:
    """Compose, train and score a base; a killed call goes on where the next one begins.

    Args:
        recipe: whose folder files are relative to.
        spec: its ``[base.compose]``, with scenes.
        folder: where the base will be written; what is kept until then lies beside it.
        progress: the bars.

    Returns:
        The model, its processor, what is to be noted of how it was made, and its scores.
    """
    assert spec.scenes is not None
    texts, held_out = (
        None if name is None else recipe.folder / name
        for name in (spec.scenes.texts, spec.scenes.texts_test)
    )
    sprites = SpriteSets([sprite_folder(name) for name in spec.scenes.sprites])
    kept, start = _training_folder(spec, folder), time.perf_counter()
    kept.mkdir(parents=True, exist_ok=True)
    model, processor = _composed(spec)
    checkpoint = train_on_scenes(model, processor, sprites, texts, spec, kept, progress)
    spent = time.perf_counter() - start
    model, processor = _composed(spec)
    plain = spec.prompt.replace("<image>", "")
    before = text_loss(model, processor.tokenizer, held_out, plain) if held_out else None
    model = _merged(model, checkpoint)
    after = text_loss(model, processor.tokenizer, held_out, plain) if held_out else None
    prompt = QuestionPrompt(processor.tokenizer, spec.prompt, model.config.image_seq_length)
    found: dict[str, SceneScores] = {}
    counts: Mapping[Split, int] = {
        "validation": spec.scenes.validation,
        "test": spec.scenes.test,
    }
    for split, count in counts.items():
        if count:
            shown = list(scenes(count, spec.seed, split, styles=len(sprites)))
            seen = see(model, processor, sprites, shown, progress, f"{split} scenes")
            scores = score_scenes(model, prompt, seen, spec.seed, progress, split)
            found[split] = attrs.evolve(scores, text_loss=after, text_loss_before=before)
    note = {
        "training_seconds": spent,
        "scores": {split: attrs.asdict(scores) for split, scores in found.items()},
    }
    return model, processor, note, found.get("test") or found.get("validation")


def remove_training_folder(spec: ComposeSpec, folder: Path) -> None:
    """Delete what was kept to go on from, once the base is written."""
    shutil.rmtree(_training_folder(spec, folder), ignore_errors=True)


def _training_folder(spec: ComposeSpec, folder: Path) -> Path:
    """Beside the base, and of these settings alone: with others nothing can be gone on from."""
    key = text_fingerprint(repr(attrs.asdict(spec)))[:8]
    return folder.with_name(f".{folder.name}-training-{key}")


def _composed(spec: ComposeSpec) -> tuple[Any, Any]:
    model, processor = compose(
        spec.vision, spec.language, image_size=spec.image_size, layer=spec.layer, seed=spec.seed
    )
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # transformers' decorator hides the method's own type
    return model, processor


def _merged(model: Any, checkpoint: Path) -> Any:
    """The composed base with its updates added to its weights, and its projector replaced."""
    from peft import PeftModel

    with quietly(), without_notes_of_peft():
        updated = PeftModel.from_pretrained(model, str(checkpoint))
        merged: Any = updated.merge_and_unload()
    return merged.eval().requires_grad_(False)


def card(spec: ComposeSpec, table: str) -> str:
    """The model card: what the base is, what it answers, and whose its parts are."""
    return "\n".join(
        [
            "# A small base that sees",
            "",
            f"A LLaVA of `{spec.vision}` and `{spec.language}`, made by `safe compose`. It answers",
            "short questions about pictures of one or two emoji on a coloured ground, and knows",
            "little of any other picture.",
            "",
            *(["```text", table, "```", ""] if table else []),
            "## Made of",
            "",
            "| part | licence | from |",
            "|---|---|---|",
            *_sources(spec),
            "",
        ]
    )


def _sources(spec: ComposeSpec) -> Iterator[str]:
    cards = catalogue.cards()
    for name in (spec.vision, spec.language):
        if name in cards:
            known = read_card(cards[name])
            yield f"| {known.summary} | {known.licence} | {known.page} |"
        else:
            yield f"| `{name}` | see its own card | |"
    assert spec.scenes is not None
    for name in spec.scenes.sprites:
        if found := read_sprite_set(name):
            yield f"| pictures: {found.credit} | {found.licence} | {found.source} |"
        else:
            yield f"| pictures: `{name}` | see there | |"
