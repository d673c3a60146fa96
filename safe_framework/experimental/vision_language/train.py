"""Train the projector of a composed base on captions, once, and score it on held-out pictures.

Everything but the projector stays frozen.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from safe_framework.config.schema import ComposeSpec, Recipe, TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import attention_mask, pad_right
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.metrics import Estimate, bootstrap, word_f1
from safe_framework.experimental.vision_language.compose import (
    FeatureModel,
    call_on_features,
    compose,
    projector_of,
    standardise,
)
from safe_framework.experimental.vision_language.pictures import CaptionedPicture, read_captioned
from safe_framework.experimental.vision_language.scene_base import (
    CARD,
    card,
    make_scene_base,
    remove_training_folder,
)
from safe_framework.experimental.vision_language.scene_scores import SceneScores, score_lines
from safe_framework.interfaces.types import IGNORED, Frames, Tokens, all_real
from safe_framework.pretrained import quietly
from safe_framework.pretrained.location import composed_folder
from safe_framework.training.alignment import Alignment, AlignmentStage, align
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.objective import answer_loss, check_finite
from safe_framework.training.sampling import shuffled_slice
from safe_framework.training.trainer import training_arguments
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.progress import WorkProgress

NOTE = "composed.json"
_RESCALE_SAMPLE = 4096
CHOICES = 10
_BATCH_SIZE = 10
_MAX_CAPTION_TOKENS = 16
_STOP_WORDS = frozenset("a an the of in on is and with to for".split())  # noqa: SIM905  # reads better


@attrs.frozen
class Captioning:
    """Means over held-out pictures, with 95 % bootstrap intervals.

    Attributes:
        chosen: the picture's own caption is the likeliest of several, by the mean log-likelihood
            of their tokens.
        exact: the greedy caption is the picture's own but for case and punctuation.
        words: F1 of the greedy caption's words against the own caption's, small words left out.
    """

    chosen: Estimate
    exact: Estimate
    words: Estimate


@attrs.frozen
class Scores:
    """How a composed base captions held-out pictures, and how without seeing them.

    Attributes:
        pictures: how many there are.
        choices: captions among which one is chosen: the picture's own, and other pictures'.
        seeing: shown each picture.
        shuffled: shown another picture, of another caption.
        blind: shown none: the language model alone, after the prompt without ``<image>``.
    """

    pictures: int
    choices: int
    seeing: Captioning
    shuffled: Captioning
    blind: Captioning


def compose_recipe(
    recipe: Recipe, progress: WorkProgress, output: Path | None = None
) -> tuple[Path, Scores | SceneScores | None]:
    """Compose the base that a recipe's ``[base.compose]`` describes, and write it.

    Args:
        recipe: which has that table.
        progress: the bars.
        output: the folder to write; by default the recipe's ``[base] model``: a path, or the name
            of a folder in the user's cache.

    Returns:
        The folder, an ordinary checkpoint, and how well it captions held-out pictures, or answers
        about held-out scenes, if the table asks for some.

    Raises:
        SafeError: there is no such table, or the folder is there already.
        UnsupportedBaseError: the parts cannot be put together.
        DataError: captions or pictures cannot be read.
    """
    spec, folder = recipe.base.compose, output or composed_folder(recipe.base.model)
    if spec is None:
        raise SafeError(
            f"`{recipe.source}` has no [base.compose]",
            hint="add it, with `vision` and `language`, or use [base] model as it is",
        )
    if folder.exists():
        raise SafeError(
            f"`{folder}` exists already", hint="remove it to compose it anew, or use --output"
        )
    if spec.scenes is not None:
        return _compose_on_scenes(recipe, spec, folder, progress)
    if spec.train is None:
        raise DataError(
            "[base.compose] names no captioned pictures to train on",
            hint='add `train = "captions.jsonl"`, rows of `image` and `caption`',
        )
    model, processor = compose(
        spec.vision, spec.language, image_size=spec.image_size, layer=spec.layer, seed=spec.seed
    )
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # transformers' decorator hides the method's own type
    start = time.perf_counter()
    rows = read_captioned(recipe.folder / spec.train, model, processor, progress)
    train_projector(model, processor.tokenizer, rows, spec, progress)
    spent = time.perf_counter() - start
    scores = None
    if spec.test is not None:
        held_out = read_captioned(recipe.folder / spec.test, model, processor, progress)
        scores = score(model, processor.tokenizer, held_out, spec.prompt, spec.seed, progress)
    note = {"compose": attrs.asdict(spec), "training_seconds": spent}
    write_checkpoint(
        folder, model, processor, note | ({"scores": attrs.asdict(scores)} if scores else {})
    )
    return folder, scores


def _compose_on_scenes(
    recipe: Recipe, spec: ComposeSpec, folder: Path, progress: WorkProgress
) -> tuple[Path, SceneScores | None]:
    model, processor, note, scores = make_scene_base(recipe, spec, folder, progress)
    table = "\n".join(score_lines(scores)) if scores else ""
    files = {CARD: card(spec, table)}
    write_checkpoint(folder, model, processor, {"compose": attrs.asdict(spec)} | note, files)
    remove_training_folder(spec, folder)
    return folder, scores


def train_projector(
    model: Any,
    tokenizer: Any,
    rows: Sequence[CaptionedPicture],
    spec: ComposeSpec,
    progress: WorkProgress,
) -> None:
    """Train ``model``'s projector in place, in float32; then it is frozen like the rest."""
    training = TrainingSpec(
        max_steps=spec.max_steps,
        batch_size=spec.batch_size,
        warmup_steps=spec.warmup_steps,
        projector_learning_rate=spec.learning_rate,
        align_steps=spec.align_steps,
        align_learning_rate=spec.learning_rate,
        seed=spec.seed,
    )
    projector = projector_of(model).float().requires_grad_(True)
    _initialise(projector, model, tokenizer, rows, training, progress)
    collate = CaptionCollator(tokenizer, spec.prompt, model.config.image_token_id)
    with tempfile.TemporaryDirectory(prefix="safe-compose-") as scratch:
        trainer = CaptionTrainer(model, rows, collate, training, Path(scratch))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressReport(progress))
        trainer.train()
    projector.requires_grad_(False).to(model.dtype)
    model.eval()


def _initialise(
    projector: nn.Module,
    model: Any,
    tokenizer: Any,
    rows: Sequence[CaptionedPicture],
    spec: TrainingSpec,
    progress: WorkProgress,
) -> None:
    """Before the language model is run: standardise the input, align with captions, rescale."""
    values = torch.stack([row.features for row in rows]).to(model.device).float()
    embeddings = model.get_input_embeddings().weight.detach().float()
    standardise(projector, values.flatten(0, 1))
    if spec.align_steps:
        captions = [row.caption for row in rows]
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            alignment = Alignment(SafeModel(model, tokenizer), captions)
            projector.requires_grad_(True)  # SafeModel froze it with the rest
            frames = Frames(values, all_real(values))
            projector_adapter = _ProjectorAdapter(projector)
            stage = AlignmentStage(
                projector_adapter, frames.rows, {projector_adapter: spec.align_learning_rate}
            )
            align(stage, alignment, captions, spec, progress)
    rescale(projector, values.flatten(0, 1), embeddings)


class _ProjectorAdapter(nn.Module):
    """LLaVA's projector with the interface of ours."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, frames: Frames) -> Tokens:
        """Frames through the base's own projector."""
        return Tokens(self.projector(frames.values), frames.mask)


@torch.no_grad()
def rescale(projector: Any, features: Tensor, embeddings: Tensor) -> None:
    """Write into the second layer that tokens have the root mean square of the word embeddings."""
    second = projector.linear_2
    size = _root_mean_square(embeddings) / _root_mean_square(projector(features[:_RESCALE_SAMPLE]))
    second.weight.mul_(size)
    second.bias.mul_(size)


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


class CaptionCollator:
    """Pads pictures' prompts and captions; only captions are learned.

    Args:
        tokenizer: of the composed base.
        prompt: the text before a caption, with ``<image>`` where the picture is.
        image: the id of ``<image>``.
    """

    def __init__(self, tokenizer: Any, prompt: str, image: int) -> None:
        self.tokenizer, self.image = tokenizer, image
        self.prompt: list[int] = tokenizer(prompt)["input_ids"]

    def prompt_ids(self, tokens: int) -> list[int]:
        """The prompt, with an id for each of a picture's tokens."""
        expanded = [[token] * (tokens if token == self.image else 1) for token in self.prompt]
        return [token for ids in expanded for token in ids]

    def caption_ids(self, caption: str) -> list[int]:
        """A caption's tokens and the end of the text."""
        ids: list[int] = self.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def __call__(self, rows: Sequence[CaptionedPicture]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` and ``features`` (batch, tokens, dim)."""
        prompts = [self.prompt_ids(len(row.features)) for row in rows]
        captions = [self.caption_ids(row.caption) for row in rows]
        pairs = list(zip(prompts, captions, strict=True))
        ids = [[*prompt, *caption] for prompt, caption in pairs]
        labels = [[*[IGNORED] * len(prompt), *caption] for prompt, caption in pairs]
        return {
            "input_ids": pad_right(ids, self.tokenizer.pad_token_id),
            "attention_mask": attention_mask(ids),
            "labels": pad_right(labels, IGNORED),
            "features": torch.stack([row.features for row in rows]),
        }


class CaptionTrainer(Trainer):
    """The Hugging Face Trainer on the loss of captions, for a projector alone."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[CaptionedPicture],
        collate: CaptionCollator,
        spec: TrainingSpec,
        folder: Path,
    ) -> None:
        self.spec = spec
        args = training_arguments(spec, folder).set_save("no")
        count = spec.max_steps * args.train_batch_size * args.world_size
        order = shuffled_slice(spec.seed, 0, count, len(rows))
        dataset = [rows[index] for index in order]
        super().__init__(model=model, args=args, train_dataset=dataset, data_collator=collate)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the captions' tokens."""
        model.eval()  # the Trainer turns dropout on; the frozen parts are to stay as they are
        loss = answer_loss(FeatureModel(model), model, inputs)
        return check_finite(loss, "caption loss", self.state.global_step)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on the projector; no decay, since it is trained once and for a short time."""
        if self.optimizer is None:
            projector = projector_of(self.model)
            rate = self.spec.projector_learning_rate
            self.optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
        return self.optimizer


def write_checkpoint(
    folder: Path,
    model: Any,
    processor: Any,
    note: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all, with a note and further files of text."""

    def fill(temporary: Path) -> None:
        """Write its files."""
        with quietly():
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
        for name, text in {NOTE: json.dumps(note, indent=2) + "\n", **(files or {})}.items():
            (temporary / name).write_text(text, "utf-8")

    atomic_folder(folder, fill, overwrite=False)


def score(
    model: Any,
    tokenizer: Any,
    rows: Sequence[CaptionedPicture],
    prompt: str,
    seed: int,
    progress: WorkProgress,
) -> Scores:
    """Caption held-out pictures, and choose among their captions.

    Args:
        model: composed.
        tokenizer: its own.
        rows: at least two pictures.
        prompt: the text before a caption.
        seed: of the captions to choose among, and of the intervals.
        progress: the bars.
    """
    collate = CaptionCollator(tokenizer, prompt, model.config.image_token_id)
    generator = torch.Generator().manual_seed(seed)
    choices = [_choices(rows, number, generator) for number in range(len(rows))]
    own: Sequence[Tensor] = [row.features for row in rows]
    shown: dict[str, Sequence[Tensor | None]] = {
        "seeing": own,
        "shuffled": [own[_other_picture(rows, number)] for number in range(len(rows))],
        "blind": [None] * len(rows),
    }
    found: dict[str, Captioning] = {}
    for name, pictures in shown.items():
        captions, chosen = list[str](), list[bool]()
        for start in range(0, len(rows), _BATCH_SIZE):
            some = slice(start, start + _BATCH_SIZE)
            prompted = PromptedPictures(model, collate, pictures[some])
            captions += prompted.captions()
            chosen += [index == 0 for index in prompted.likeliest(choices[some])]
            progress(f"captioning, {name}", len(captions), len(rows))
        found[name] = _captioning(captions, chosen, rows, seed)
    return Scores(len(rows), len(choices[0]), **found)


class PromptedPictures:
    """Prompts with pictures, whose keys and values are computed once.

    Args:
        model: composed.
        collate: knows the prompt.
        pictures: features of each, (tokens, dim); or None for all of them.
    """

    def __init__(self, model: Any, collate: Any, pictures: Sequence[Tensor | None]) -> None:
        self.model, self.collate, self.count = model, collate, len(pictures)
        seen = [picture for picture in pictures if picture is not None]
        ids = collate.prompt_ids(len(seen[0]) if seen else 0)
        texts: dict[str, Any] = {"use_cache": True}
        with torch.no_grad():
            if seen:
                texts["input_ids"] = torch.tensor([ids] * len(seen)).to(model.device)
                out = call_on_features(model, torch.stack(seen).to(model.device), **texts)
            else:
                blank = ids or [_empty_prompt_id(collate.tokenizer)]
                out = model(input_ids=torch.tensor([blank] * self.count).to(model.device), **texts)
        self.cache, self.next = out.past_key_values, out.logits[:, -1].float()

    @torch.no_grad()
    def captions(self) -> list[str]:
        """The model's caption of each, greedily decoded."""
        end = self.collate.tokenizer.eos_token_id
        cache, tokens = deepcopy(self.cache), [self.next.argmax(-1)]
        done = tokens[0] == end
        while len(tokens) < _MAX_CAPTION_TOKENS and not done.all():
            out = self.model(input_ids=tokens[-1][:, None], past_key_values=cache, use_cache=True)
            tokens.append(out.logits[:, -1].argmax(-1))
            done |= tokens[-1] == end
        rows = torch.stack(tokens, 1).tolist()
        ends = [row.index(end) if end in row else len(row) for row in rows]
        texts = [row[:stop] for row, stop in zip(rows, ends, strict=True)]
        decoded = self.collate.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    @torch.no_grad()
    def likeliest(self, choices: Sequence[Sequence[str]]) -> list[int]:
        """The index of the likeliest caption of each; all have the same number of choices."""
        many = len(choices[0])
        ids = [self.collate.caption_ids(caption) for some in choices for caption in some]
        labels = pad_right(ids, IGNORED).to(self.model.device)  # (pictures * many, length)
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(many)
        after = self.model(
            input_ids=labels[:, :-1].clamp_min(0), past_key_values=cache, use_cache=True
        ).logits
        first = self.next.repeat_interleave(many, 0).unsqueeze(1)
        log_probabilities = torch.cat([first, after.float()], 1).log_softmax(-1)
        each = log_probabilities.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)
        real = labels != IGNORED
        mean = (each * real).sum(1) / real.sum(1)
        best: list[int] = mean.reshape(self.count, many).argmax(1).tolist()
        return best


def _captioning(
    captions: Sequence[str], chosen: Sequence[bool], rows: Sequence[CaptionedPicture], seed: int
) -> Captioning:
    pairs = [(text, row.caption) for text, row in zip(captions, rows, strict=True)]
    return Captioning(
        chosen=bootstrap(chosen, seed=seed),
        exact=bootstrap([_normalise(text) == _normalise(own) for text, own in pairs], seed=seed),
        words=bootstrap([_content_f1(text, own) for text, own in pairs], seed=seed),
    )


def _empty_prompt_id(tokenizer: Any) -> int:
    """The token of a prompt that is empty without its picture."""
    begin = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if begin is None else begin)


def _choices(
    rows: Sequence[CaptionedPicture], number: int, generator: torch.Generator
) -> list[str]:
    """The row's own caption first, then other captions, each once."""
    own = rows[number].caption
    others = sorted({row.caption for row in rows} - {own})
    order = torch.randperm(len(others), generator=generator)[: CHOICES - 1].tolist()
    return [own, *(others[index] for index in order)]


def _other_picture(rows: Sequence[CaptionedPicture], number: int) -> int:
    """The index of the next picture that has another caption."""
    order = [*range(number + 1, len(rows)), *range(number)]
    others = [index for index in order if rows[index].caption != rows[number].caption]
    found: int = (others or order)[0]
    return found


def _normalise(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _content_f1(caption: str, own: str) -> float:
    return word_f1(caption, own, words=_content_words, both_empty=0.0)


def _content_words(text: str) -> list[str]:
    return [word for word in _normalise(text).split() if word not in _STOP_WORDS]
