"""Train a composed base on scenes of emoji, so that it answers questions about pictures.

Three stages: the image encoder looks at every scene once; patches are drawn to the words for what
they show (:mod:`~safe_framework.experimental.vision_language.scene_alignment`); the projector and
low-rank updates of the language model (LoRA, arXiv:2106.09685) learn to answer, beside texts on
which the language model is held to what it says by itself (distillation, arXiv:1503.02531). The
updates are merged at the end.

Whatever a stage has made is kept in a folder, from which a killed run goes on.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from safe_framework.config.schema import ComposeSpec, ScenesSpec
from safe_framework.core.output_head import hidden_at, logits_at
from safe_framework.data.readers import read_rows
from safe_framework.experimental.vision_language.compose import (
    FeatureModel,
    image_features,
    projector_of,
    standardise,
)
from safe_framework.experimental.vision_language.packed_rows import (
    PackedRows,
    QuestionPrompt,
    Row,
    Segment,
    pack,
)
from safe_framework.experimental.vision_language.scene_alignment import align_patches
from safe_framework.experimental.vision_language.scenes import Scene, SpriteSets, ask, scenes
from safe_framework.pretrained import quietly
from safe_framework.training.callbacks import ProgressReport
from safe_framework.training.objective import check_finite
from safe_framework.training.sampling import generator, shuffled_slice
from safe_framework.training.trainer import latest_complete, mark_complete
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import is_bfloat16_fast

_LOOKED_AT = 32  # scenes at once
_SAMPLE = 256  # scenes, to standardise by
_CONTINUED = 32  # texts at once, and how many tokens the language model adds to each
_LONGEST_TEXT = 96  # tokens
_TEXT_TOKENS = 160  # a step


@attrs.frozen(eq=False)
class SeenScenes:
    """Scenes, and what the image encoder gives of them.

    Attributes:
        scenes: as many as there are features.
        features: what enters the projector, (scenes, patches, dim), in 16 bits.
    """

    scenes: Sequence[Scene]
    features: Tensor

    def some(self, count: int) -> SeenScenes:
        """The first ones."""
        return SeenScenes(self.scenes[:count], self.features[:count])


def see(
    model: Any,
    processor: Any,
    sprites: SpriteSets,
    shown: Sequence[Scene],
    progress: WorkProgress,
    label: str,
) -> SeenScenes:
    """Draw scenes, and look at them with the composed base's image encoder."""
    side = _side(processor.image_processor)
    tower, found = model.model.vision_tower, list[Tensor]()
    for start in range(0, len(shown), _LOOKED_AT):
        drawn = [sprites.draw(scene, side) for scene in shown[start : start + _LOOKED_AT]]
        pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
        with torch.no_grad(), fast_arithmetic(model):
            seen = image_features(model, pixels.to(tower.device, tower.dtype))
        found.append(seen.half().cpu())
        progress(f"looking at {label}", min(start + _LOOKED_AT, len(shown)), len(shown))
    return SeenScenes(shown, torch.cat(found))


def _side(image_processor: Any) -> int:
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    return int(size["height"])


def fast_arithmetic(model: Any) -> torch.autocast:
    """Products in bfloat16, where that is fast."""
    kind: str = model.device.type
    return torch.autocast(kind, torch.bfloat16, enabled=is_bfloat16_fast(model.device))


@attrs.frozen(eq=False)
class KeptTexts:
    """Texts on which the language model is to stay as it is.

    Attributes:
        segments: one for each text.
        hidden: what entered the language model's head before training: (scored, hidden) each.
    """

    segments: Sequence[Segment]
    hidden: Sequence[Tensor]


def read_texts(path: Path, tokenizer: Any, prompt: str) -> list[list[int]]:
    """The ids of a file's rows: of each ``text``, and of each ``question`` in the prompt.

    Args:
        path: JSONL or any other kind of rows.
        tokenizer: of the base.
        prompt: around a question, without a picture.
    """
    found = []
    for _, row in read_rows(path):
        text = row["text"] if "text" in row else prompt.replace("{question}", row["question"])
        found.append(tokenizer(text)["input_ids"][:_LONGEST_TEXT])
    return [ids for ids in found if len(ids) > 1]


def continue_texts(
    model: Any, texts: Sequence[list[int]], pad: int, seed: int, progress: WorkProgress
) -> list[list[int]]:
    """Each text, and what the language model says after it: sampled, from a seed."""
    found: list[list[int]] = []
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    with torch.random.fork_rng(), fast_arithmetic(model):
        torch.manual_seed(seed)
        for start in range(0, len(texts), _CONTINUED):
            some = [texts[number] for number in order[start : start + _CONTINUED]]
            longest = max(map(len, some))
            ids = torch.tensor([[pad] * (longest - len(text)) + text for text in some])
            mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in some])
            given = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            said = model.generate(
                **given,
                max_new_tokens=_CONTINUED,
                do_sample=True,
                top_k=0,
                suppress_tokens=[model.config.image_token_id],  # which no picture would belong to
                pad_token_id=pad,
            )[:, longest:].tolist()
            found += [
                text + words[: words.index(pad) + 1 if pad in words else None]
                for text, words in zip(some, said, strict=True)
            ]
            progress("writing texts to keep", len(found), len(texts))
    return found


def keep_texts(
    model: Any, texts: Sequence[Sequence[int]], pad: int, progress: WorkProgress
) -> KeptTexts:
    """What the language model itself says of texts, before it is trained."""
    segments = [Segment(text[:1], text[1:]) for text in texts]
    hidden: list[Tensor] = []
    for number, segment in enumerate(segments):
        packed = pack([Row((), (segment,))], pad, model.dtype)
        with torch.no_grad(), fast_arithmetic(model):
            found = hidden_at(model, model, _on(packed.inputs, model), packed.positions)
        assert found is not None  # a LLaVA's head is shown one state for each position
        hidden.append(found.half().cpu())
        progress("reading texts to keep", number + 1, len(segments))
    return KeptTexts(segments, hidden)


@attrs.frozen(eq=False)
class Step:
    """What one step of training is about.

    Attributes:
        packed: rows of questions, then one of texts.
        answers: how many of the scored tokens are answers; the others are texts'.
        features: of the pictures.
        hidden: of the texts, (tokens, hidden).
    """

    packed: PackedRows
    answers: int
    features: Tensor
    hidden: Tensor


class Steps(Dataset[Step]):
    """Every step of a run, each of which the seed and its number decide.

    Args:
        seen: scenes to ask about.
        texts: to be kept.
        prompt: around a question.
        spec: ``[base.compose]``.
        dtype: of the attention's mask.
    """

    def __init__(
        self,
        seen: SeenScenes,
        texts: KeptTexts | None,
        prompt: QuestionPrompt,
        spec: ComposeSpec,
        dtype: torch.dtype,
    ) -> None:
        assert spec.scenes is not None
        self.seen, self.texts, self.prompt, self.spec, self.dtype = seen, texts, prompt, spec, dtype
        self.questions = spec.scenes.questions

    def __len__(self) -> int:
        return self.spec.max_steps

    def __getitem__(self, step: int) -> Step:
        size, seed = self.spec.batch_size, self.spec.seed
        chosen = shuffled_slice(seed, step * size, size, len(self.seen.scenes))
        rows = []
        for number in chosen:
            asked = ask(self.seen.scenes[number], f"{seed} {step} {number}")
            rng = random.Random(f"{seed} {step} {number}")
            rows.append(self.prompt.row(rng.sample(asked, min(self.questions, len(asked)))))
        answers = sum(len(segment.scored) for row in rows for segment in row.segments)
        segments, hidden = self._texts(step)
        if segments:
            rows.append(Row((), segments))
        packed = pack(rows, self.prompt.tokenizer.pad_token_id, self.dtype)
        return Step(packed, answers, self.seen.features[chosen], hidden)

    def _texts(self, step: int) -> tuple[list[Segment], Tensor]:
        if self.texts is None:
            return [], torch.empty(0)
        order = torch.randperm(
            len(self.texts.segments), generator=generator(self.spec.seed, step)
        ).tolist()
        chosen, total = list[int](), 0
        for number in order:
            total += 1 + len(self.texts.segments[number].scored)
            if chosen and total > _TEXT_TOKENS:
                break
            chosen.append(number)
        hidden = torch.cat([self.texts.hidden[number] for number in chosen])
        return [self.texts.segments[number] for number in chosen], hidden


class SceneTrainer(Trainer):
    """The Hugging Face Trainer on answers about scenes, and on texts that are to be kept.

    Args:
        model: a PEFT model around a composed base.
        steps: of the run.
        scenes_spec: ``[base.compose.scenes]``.
        args: the Trainer's own; a batch is one step.
    """

    def __init__(
        self, model: Any, steps: Steps, scenes_spec: ScenesSpec, args: TrainingArguments
    ) -> None:
        self.scenes_spec = scenes_spec
        self.projector_rate = steps.spec.learning_rate
        self.sums = {"task_loss": 0.0, "retention_loss": 0.0, "steps": 0.0}
        super().__init__(model=model, args=args, train_dataset=steps, data_collator=_only)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the answers, and how far texts' predictions are from what they were."""
        step: Step = inputs["step"]
        model.eval()  # the frozen parts are to stay as they are
        base = self.accelerator.unwrap_model(model).get_base_model()
        task, retention = step_losses(base, step)
        loss = task + self.scenes_spec.texts_weight * retention
        self.sums["task_loss"] += float(task.detach())
        self.sums["retention_loss"] += float(retention.detach())
        self.sums["steps"] += 1
        return check_finite(loss, "loss of [base.compose.scenes]", self.state.global_step)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add both losses, as means since they were last logged."""
        if count := self.sums["steps"]:
            logs |= {name: self.sums[name] / count for name in ("task_loss", "retention_loss")}
            self.sums = dict.fromkeys(self.sums, 0.0)
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with a rate for the projector and one for the language model's updates."""
        if self.optimizer is None:
            trained: Any = self.model
            named = [(n, p) for n, p in trained.named_parameters() if p.requires_grad]
            projector = [p for n, p in named if "multi_modal_projector" in n]
            updates = [p for n, p in named if "multi_modal_projector" not in n]
            groups = [
                {"params": projector, "lr": self.projector_rate},
                {"params": updates, "lr": self.scenes_spec.lora_learning_rate},
            ]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer


def step_losses(model: Any, step: Step) -> tuple[Tensor, Tensor]:
    """The loss of a step's answers, and of its texts."""
    packed, head = step.packed, model.get_output_embeddings()
    inputs = _on(packed.inputs, model) | {"features": step.features.to(model.device)}
    logits = logits_at(FeatureModel(model), model, inputs, packed.positions).float()
    targets = packed.targets.to(logits.device)
    count = packed.ends.index(step.answers) + 1 if step.answers else 0
    answers = PackedRows(packed.inputs, packed.positions, targets, packed.ends[:count])
    each = functional.cross_entropy(
        logits[: step.answers], targets[: step.answers], reduction="none"
    )
    task = (each * answers.weights.to(each.device)).sum()
    if not len(step.hidden):
        return task, logits.new_zeros(())
    with torch.no_grad():
        teacher = head(step.hidden.to(head.weight.device, head.weight.dtype)).float()
    retention = functional.kl_div(
        logits[step.answers :].log_softmax(-1), teacher.log_softmax(-1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    return task, retention


def train_on_scenes(
    model: Any,
    processor: Any,
    sprites: SpriteSets,
    texts: Path | None,
    spec: ComposeSpec,
    folder: Path,
    progress: WorkProgress,
) -> Path:
    """Align, and train updates of the language model and the projector; ``model`` is used up.

    Args:
        model: freshly composed.
        processor: its own.
        sprites: to draw scenes with.
        texts: rows of ``text`` or ``question`` on which the language model is to stay as it is.
        spec: ``[base.compose]``, with scenes.
        folder: where everything is kept that a killed run goes on from.
        progress: the bars.

    Returns:
        The last checkpoint: the updates, and the projector.
    """
    assert spec.scenes is not None
    tokenizer = processor.tokenizer
    shown = list(scenes(spec.scenes.train, spec.seed, "train", styles=len(sprites)))

    def look() -> dict[str, Tensor]:
        """What the image encoder gives of the scenes."""
        return {"features": see(model, processor, sprites, shown, progress, "scenes").features}

    seen = SeenScenes(shown, _kept(folder / "features.safetensors", look)["features"])
    aligned = _kept(
        folder / "projector.safetensors", lambda: _align(model, tokenizer, seen, spec, progress)
    )
    projector_of(model).float().load_state_dict(aligned)
    model.requires_grad_(False)
    dtype = _quicken(model)
    kept = None
    if texts is not None:
        kept = _kept_texts(model, tokenizer, texts, spec, folder, progress)
    prompt = QuestionPrompt(tokenizer, spec.prompt, seen.features.shape[1])
    steps = Steps(seen, kept, prompt, spec, dtype)
    arguments = _arguments(spec, folder, bfloat16=dtype == torch.bfloat16)
    trainer = SceneTrainer(_with_updates(model, spec), steps, spec.scenes, arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressReport(progress, "training on scenes"))
    trainer.add_callback(_Complete())
    last = latest_complete(folder)
    with quietly():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    found = latest_complete(folder)
    assert found is not None
    return found


def _align(
    model: Any, tokenizer: Any, seen: SeenScenes, spec: ComposeSpec, progress: WorkProgress
) -> dict[str, Tensor]:
    """The projector's tensors once patches are drawn to words."""
    projector = projector_of(model).float().requires_grad_(True)
    standardise(projector, seen.some(_SAMPLE).features.float().flatten(0, 1).to(model.device))
    align_patches(
        projector,
        model.get_input_embeddings().weight.detach().float(),
        tokenizer,
        seen.scenes,
        seen.features,
        steps=spec.align_steps,
        seed=spec.seed,
        progress=progress,
    )
    return dict(projector.state_dict())


def _quicken(model: Any) -> torch.dtype:
    """Make steps fast on the model's device; returns the type that the language model is run in."""
    if model.device.type == "cpu":
        with quietly():
            model.set_attn_implementation("eager")  # the fused kernel's way back is slower
    if not is_bfloat16_fast(model.device):
        return model.dtype  # type: ignore[no-any-return]  # as transformers types it
    model.model.language_model.to(torch.bfloat16)
    model.lm_head.to(torch.bfloat16)
    return torch.bfloat16


def _with_updates(model: Any, spec: ComposeSpec) -> Any:
    """The model with fresh low-rank updates of its language model, and its projector trainable."""
    from peft import LoraConfig, get_peft_model

    assert spec.scenes is not None
    lora = LoraConfig(
        r=spec.scenes.rank,
        lora_alpha=2 * spec.scenes.rank,
        lora_dropout=0.0,
        target_modules=_linear_layers(model),
        modules_to_save=["multi_modal_projector"],
    )
    with torch.random.fork_rng(), without_notes_of_peft():
        torch.manual_seed(spec.seed)
        return get_peft_model(model, lora)


@contextmanager
def without_notes_of_peft() -> Iterator[None]:
    """Ignore that PEFT reads an attribute under the name that transformers is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _kept_texts(
    model: Any, tokenizer: Any, path: Path, spec: ComposeSpec, folder: Path, progress: WorkProgress
) -> KeptTexts:
    pad = tokenizer.pad_token_id
    texts = read_texts(path, tokenizer, spec.prompt.replace("<image>", ""))

    def write() -> dict[str, Tensor]:
        """The texts with their continuations, and where each ends."""
        said = continue_texts(model, texts, pad, spec.seed, progress)
        ends = torch.tensor([len(text) for text in said]).cumsum(0)
        return {"ids": torch.tensor([token for text in said for token in text]), "ends": ends}

    kept = _kept(folder / "texts.safetensors", write)
    ids = [part.tolist() for part in kept["ids"].tensor_split(kept["ends"][:-1])]
    return keep_texts(model, ids, pad, progress)


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file, which is made if it is not there."""
    if not path.is_file():
        found = {name: value.contiguous() for name, value in make().items()}
        atomic_write(path, lambda part: save_file(found, part))
    return load_file(path)


def _linear_layers(model: Any) -> list[str]:
    """The paths of every linear layer of the language model but its head."""
    stack = "model.language_model."
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(stack) and isinstance(module, nn.Linear)
    ]


def _arguments(spec: ComposeSpec, folder: Path, *, bfloat16: bool) -> TrainingArguments:
    assert spec.scenes is not None
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.max_steps,
        per_device_train_batch_size=1,  # a step, with all of its pictures
        use_cpu=not torch.cuda.is_available(),
        bf16=bfloat16,
        lr_scheduler_type="cosine",
        warmup_steps=spec.warmup_steps,
        max_grad_norm=1.0,
        save_steps=spec.scenes.save_steps,
        save_total_limit=2,
        logging_steps=min(10, spec.max_steps),
        logging_nan_inf_filter=False,
        seed=spec.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the dataset is the run: a resumed one goes on in it
        dataloader_pin_memory=False,
    )


class _Complete(TrainerCallback):
    """Marks a checkpoint as whole."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All of its files are there."""
        mark_complete(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _only(steps: Sequence[Step]) -> dict[str, Any]:
    return {"step": steps[0]}


def _on(inputs: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in inputs.items()}
