"""How well a base answers about held-out scenes, and how much of its language it kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.nn import functional

from safe_framework.core.output_head import logits_at
from safe_framework.evaluation.metrics import Estimate, bootstrap
from safe_framework.experimental.vision_language.compose import FeatureModel
from safe_framework.experimental.vision_language.packed_rows import (
    QuestionPrompt,
    Row,
    Segment,
    pack,
)
from safe_framework.experimental.vision_language.scene_training import (
    SeenScenes,
    fast_arithmetic,
    read_texts,
)
from safe_framework.experimental.vision_language.scenes import KINDS, ask
from safe_framework.training.sampling import generator
from safe_framework.utils.progress import WorkProgress

_BATCH_SIZE = 16  # scenes, each with all of its questions
Exact = Mapping[str, Estimate]
"""A kind of question to the share of its answers that are exactly right."""


@attrs.frozen
class SceneScores:
    """Shares of exact answers, by kind of question, with 95 % intervals over questions.

    Attributes:
        scenes: how many held-out scenes were asked about in each way; about the first half of
            them in the last two.
        seen_wordings: asked in wordings that training knows.
        unseen_wordings: asked in others.
        another_picture: in known wordings, shown another scene's picture: what can be guessed.
        text_loss: mean loss of a token of the texts of ``texts_test``; None without such texts.
        text_loss_before: the same of the language model as it was.
    """

    scenes: int
    seen_wordings: Exact
    unseen_wordings: Exact
    another_picture: Exact
    text_loss: float | None = None
    text_loss_before: float | None = None


def score_scenes(
    model: Any,
    prompt: QuestionPrompt,
    seen: SeenScenes,
    seed: int,
    progress: WorkProgress,
    label: str,
) -> SceneScores:
    """Ask a base every kind of question about held-out scenes.

    Args:
        model: composed, and trained.
        prompt: around a question.
        seen: the scenes.
        seed: of the questions, and of the intervals.
        progress: the bars.
        label: of the scenes, such as "test".
    """
    half = seen.some(len(seen.scenes) // 2 + len(seen.scenes) % 2)
    order = torch.randperm(len(half.scenes), generator=generator(seed))
    others = torch.empty_like(half.features)
    others[order] = half.features[order.roll(1)]
    other = SeenScenes(half.scenes, others)

    def share(name: str, shown: SeenScenes, *, unseen: bool = False) -> Exact:
        """The exact answers of one way of asking."""
        return _exact(model, prompt, shown, seed, unseen, progress, f"asking, {label}, {name}")

    return SceneScores(
        len(seen.scenes),
        share("seen wordings", seen),
        share("unseen wordings", half, unseen=True),
        share("another picture", other),
    )


@torch.no_grad()
def _exact(
    model: Any,
    prompt: QuestionPrompt,
    seen: SeenScenes,
    seed: int,
    unseen: bool,
    progress: WorkProgress,
    label: str,
) -> Exact:
    """A greedy answer is right where each of its tokens is the likeliest after those before it."""
    hits: dict[str, list[bool]] = defaultdict(list)
    wrapped, pad = FeatureModel(model), prompt.tokenizer.pad_token_id
    for start in range(0, len(seen.scenes), _BATCH_SIZE):
        some = range(start, min(start + _BATCH_SIZE, len(seen.scenes)))
        asked = [ask(seen.scenes[at], f"{seed} held out {at}", unseen=unseen) for at in some]
        packed = pack([prompt.row(questions) for questions in asked], pad, model.dtype)
        features = seen.features[start : some.stop].float().to(model.device)
        inputs = {name: value.to(model.device) for name, value in packed.inputs.items()}
        with fast_arithmetic(model):
            logits = logits_at(wrapped, model, inputs | {"features": features}, packed.positions)
        right = (logits.argmax(-1).cpu() == packed.targets).tolist()
        starts = [0, *packed.ends[:-1]]
        kinds = [one.kind for questions in asked for one in questions]
        for kind, first, last in zip(kinds, starts, packed.ends, strict=True):
            hits[kind].append(all(right[first:last]))
        progress(label, some.stop, len(seen.scenes))
    return {kind: bootstrap(hits[kind], seed=seed) for kind in KINDS if kind in hits}


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, path: Path, prompt: str) -> float:
    """Mean loss of a token of a file's texts, and of its questions in the prompt."""
    total, count = 0.0, 0
    for ids in read_texts(path, tokenizer, prompt):
        packed = pack([Row((), (Segment(ids[:1], ids[1:]),))], 0, model.dtype)
        inputs = {name: value.to(model.device) for name, value in packed.inputs.items()}
        logits = logits_at(model, model, inputs, packed.positions).float().cpu()
        total += float(functional.cross_entropy(logits, packed.targets, reduction="sum"))
        count += len(packed.targets)
    return total / count


def score_lines(scores: SceneScores) -> Iterator[str]:
    """A table: a line for each kind of question, and one for the texts."""
    ways = {
        "seen wordings": scores.seen_wordings,
        "unseen wordings": scores.unseen_wordings,
        "another picture": scores.another_picture,
    }
    yield _line(f"{scores.scenes} held-out scenes", ways)
    for kind in scores.seen_wordings:
        yield _line(kind, [_cell(found[kind]) for found in ways.values()])
    if scores.text_loss is not None and scores.text_loss_before is not None:
        change = scores.text_loss / scores.text_loss_before - 1
        now, before = f"{scores.text_loss:.3f}", f"{scores.text_loss_before:.3f}"
        yield f"loss of texts {now}, before {before} ({change:+.1%})"


def _line(first: str, cells: Iterable[str]) -> str:
    return "  ".join([f"{first:<24}", *(f"{cell:>21}" for cell in cells)])


def _cell(share: Estimate) -> str:
    return f"{share.value:.1%} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
