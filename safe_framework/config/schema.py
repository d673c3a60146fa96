"""What a recipe may hold: one class for each table, one field for each key.

Ranges are checked by the fields' validators, so that a spec made in Python is as sound as one
that was read. A field whose metadata is :data:`UNWRITTEN` is no key of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from safe_framework.config.validators import (
    above,
    at_least,
    below,
    contains,
    each,
    iso_date,
    not_empty,
    open_unit_interval,
    optional,
    or_text,
    unit_interval,
)
from safe_framework.utils import catalogue
from safe_framework.utils.in_memory import was_in_memory


@attrs.frozen
class ScenesSpec:
    """``[base.compose.scenes]``: drawn scenes, and questions about them, to train on.

    Attributes:
        sprites: sets of emoji that the scenes are drawn of: names in the catalogue, or folders.
        train: how many scenes are trained on.
        validation: how many held-out scenes are scored, to choose settings by; 0 for none.
        test: how many other held-out scenes are scored; 0 for none.
        questions: asked about a picture in a step.
        rank: of the language model's updates, which are merged into it at the end.
        lora_learning_rate: peak rate of these updates.
        texts: rows of ``text`` or ``question`` on which the language model is held to what it
            says by itself.
        texts_test: texts on which is measured how well it did.
        texts_weight: of the loss of ``texts``, beside that of the answers.
        save_steps: steps between two checkpoints, from which a killed run goes on.
    """

    sprites: tuple[str, ...] = attrs.field(default=("noto-emoji", "twemoji"), validator=not_empty)
    train: int = attrs.field(default=4000, validator=at_least(2))
    validation: int = attrs.field(default=0, validator=at_least(0))
    test: int = attrs.field(default=400, validator=at_least(0))
    questions: int = attrs.field(default=6, validator=at_least(1))
    rank: int = attrs.field(default=16, validator=at_least(1))
    lora_learning_rate: float = attrs.field(default=1e-3, validator=above(0))
    texts: str | None = None
    texts_test: str | None = None
    texts_weight: float = attrs.field(default=1.0, validator=at_least(0))
    save_steps: int = attrs.field(default=50, validator=at_least(1))


@attrs.frozen
class ComposeSpec:
    """``[base.compose]``: a vision-language base from two pretrained parts, made once.

    Attributes:
        vision: image encoder: hub id, folder, or the name of a card.
        language: language model, likewise.
        train: captioned pictures on which the projector between the two is trained.
        test: the same, held out.
        scenes: what to train on instead of captions.
        prompt: the text before a caption; ``<image>`` is where the picture is. With ``scenes``
            the text around a ``{question}``.
        image_size: side of the square pictures, in pixels; the encoder's own if None.
        layer: which hidden states of the image encoder are projected.
        align_steps: steps that draw a picture's tokens to its caption's words, before the
            language model is run; 0 for none.
        max_steps: optimizer steps.
        batch_size: pictures a step.
        learning_rate: peak rate of the projector.
        warmup_steps: steps over which the rate rises from 0.
        seed: of everything random.
    """

    vision: str = attrs.field(validator=not_empty)
    language: str = attrs.field(validator=not_empty)
    train: str | None = None
    test: str | None = None
    scenes: ScenesSpec | None = None
    prompt: str = attrs.field(default="<image>", validator=contains("<image>"))
    image_size: int | None = None
    layer: int = -2
    align_steps: int = attrs.field(default=100, validator=at_least(0))
    max_steps: int = attrs.field(default=500, validator=at_least(1))
    batch_size: int = attrs.field(default=16, validator=at_least(1))
    learning_rate: float = attrs.field(default=1e-3, validator=above(0))
    warmup_steps: int = attrs.field(default=20, validator=at_least(0))
    seed: int = attrs.field(default=0, validator=at_least(0))


@attrs.frozen
class ForgetSpec:
    """``on_forget`` of ``[monitor]``: what is done when the base's answers are being lost.

    Attributes:
        rollback: go back to the last adapter that kept them.
        learning_rate: factor on every learning rate from then on.
        retention_weight: factor on the weights of all ``[[retention]]`` from then on.
    """

    rollback: bool = True
    learning_rate: float = attrs.field(default=0.5, validator=unit_interval)
    retention_weight: float = attrs.field(default=2.0, validator=at_least(1))


@attrs.frozen
class MonitorSpec:
    """``[monitor]``: measure gain and retention while training goes on, and defend retention.

    Attributes:
        eval_steps: steps between two measurements.
        held_out: share of ``train`` and of ``retention`` that is kept from training to measure
            on, where ``[data]`` names no ``validation`` and no ``retention_validation``.
        max_examples: examples measured each time, at most; 0 for all.
        max_texts: texts measured each time, at most; 0 for all.
        tolerance: how much less agreement than at the start still counts as kept.
        floor: agreement below which nothing counts as kept, whatever it was at the start.
        patience: measurements without better gain after which training stops; 0 never stops it.
        max_rollbacks: after one more than this training stops.
        on_forget: what is done when retention has fallen.
    """

    eval_steps: int = attrs.field(default=50, validator=at_least(1))
    held_out: float = attrs.field(default=0.1, validator=open_unit_interval)
    max_examples: int = attrs.field(default=200, validator=at_least(0))
    max_texts: int = attrs.field(default=200, validator=at_least(0))
    tolerance: float = attrs.field(default=0.005, validator=below(1))
    floor: float = attrs.field(default=0.0, validator=below(1))
    patience: int = attrs.field(default=10, validator=at_least(0))
    max_rollbacks: int = attrs.field(default=5, validator=at_least(0))
    on_forget: ForgetSpec = attrs.field(factory=ForgetSpec)


@attrs.frozen
class UntilSpec:
    """``until`` of a stage: it ends once all that is given here was measured.

    Attributes:
        accuracy: at least so many held-out answers are right, as a share.
        task_loss: the loss on held-out answers is at most this.
        retention: agreement with the base is at least this.
    """

    accuracy: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(unit_interval)
    )
    task_loss: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(above(0))
    )
    retention: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(unit_interval)
    )


@attrs.frozen
class StageSpec:
    """``[[curriculum]]``: one stage of training; they follow each other.

    Attributes:
        name: for messages and the report.
        train: data of its own, instead of ``train`` of ``[data]``.
        where: only rows whose fields have these values; an array means any of them.
        retention_weight: factor on the weights of all ``[[retention]]``; 0 leaves them out.
        learning_rate: factor on every learning rate.
        steps: it ends after so many; the last stage has none and lasts until training ends.
        until: it ends earlier, once this was measured; needs ``[monitor]``.
    """

    name: str = ""
    train: str | None = attrs.field(default=None, validator=attrs.validators.optional(not_empty))
    where: Mapping[str, Any] = attrs.field(factory=dict)
    retention_weight: float = attrs.field(default=1.0, validator=at_least(0))
    learning_rate: float = attrs.field(default=1.0, validator=above(0))
    steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(at_least(1)))
    until: UntilSpec | None = None


UNWRITTEN = {"written": False}


@attrs.frozen
class BaseSpec:
    """``[base]``: the frozen model.

    Attributes:
        model: hub id, folder, or the name of a card in the catalogue; with ``compose``, the
            folder that ``safe compose`` writes.
        revision: branch, tag or commit on the hub.
        gguf_file: file to read inside ``model``, for weights in GGUF.
        attn_implementation: as transformers names them; its own choice if None.
        layers_path: dotted path of the layers, where they are not found by themselves.
        side: which layers of an encoder-decoder model a modality enters.
        split_rows: run rows without a modality apart, for a model that mixes rows (experts).
        dtype: of the weights; ``"auto"`` keeps the checkpoint's own.
        compose: how the folder ``model`` is made.
    """

    model: str = attrs.field(validator=not_empty)
    revision: str | None = None
    gguf_file: str | None = None
    attn_implementation: str | None = None
    layers_path: str | None = None
    side: Literal["decoder", "encoder"] = "decoder"
    split_rows: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compose: ComposeSpec | None = None


@attrs.frozen
class PluginSpec:
    """``{ use = "NAME", ... }``: a plugin and its options.

    Attributes:
        use: name of an installed plugin.
        options: every other key of the table: keyword arguments of the plugin's constructor.
    """

    use: str
    options: Mapping[str, Any] = attrs.field(factory=dict, metadata=UNWRITTEN)


@attrs.frozen
class EncoderSpec(PluginSpec):
    """An encoder in an option of another plugin, which is annotated ``Encoder``."""


@attrs.frozen
class GateSpec:
    """``gate`` of a modality: how much of its delta is applied.

    Attributes:
        value: the gate once training is over; 0 is off, and ``"auto"`` leaves it to the relevance
            head, call by call. While training, ``"auto"`` is 1.
        warmup_steps: training steps over which it rises from 0.
        schedule: the shape of that rise; ``"constant"`` does not rise.
        stairs: how many equally long levels below ``value`` a ``"step"`` schedule stands on.
    """

    value: float | Literal["auto"] = attrs.field(default=1.0, validator=or_text(at_least(0)))
    warmup_steps: int = attrs.field(default=0, validator=at_least(0))
    schedule: Literal["linear", "cosine", "step", "constant"] = "linear"
    stairs: int = attrs.field(default=4, validator=at_least(1))


@attrs.frozen
class AugmentSpec:
    """``augment`` of a modality: how training samples are varied; 0 leaves a thing as it is.

    Attributes:
        variants: of each training sample, beside the sample itself.
        speed: faster and higher, or slower and lower, by a factor of up to 1 + this.
        tempo: faster or slower at the same pitch, by a factor of up to 1 + this.
        gain: louder or softer by up to so many decibels.
        equalizer: each octave louder or softer by up to so many decibels.
        reverb: a room whose echoes fall by 60 dB within up to so many seconds.
        noise: decibels by which a sound is louder than the loudest noise; no noise if None.
        offset: later or earlier by up to so many seconds.
        mask: of a spectrogram, up to this share of the bands and of the steps are masked.
        crop: of a picture, up to this share of each side is cut off.
        flip: a picture may be mirrored, left to right.
        colour: other brightness, contrast and saturation, each by a factor of up to 1 + this.
        blur: radius of up to so many pixels.
    """

    variants: int = attrs.field(default=8, validator=at_least(1))
    speed: float = attrs.field(default=0.0, validator=at_least(0))
    tempo: float = attrs.field(default=0.0, validator=at_least(0))
    gain: float = attrs.field(default=0.0, validator=at_least(0))
    equalizer: float = attrs.field(default=0.0, validator=at_least(0))
    reverb: float = attrs.field(default=0.0, validator=at_least(0))
    noise: float | None = None
    offset: float = attrs.field(default=0.0, validator=at_least(0))
    mask: float = attrs.field(default=0.0, validator=below(1))
    crop: float = attrs.field(default=0.0, validator=below(1))
    flip: bool = False
    colour: float = attrs.field(default=0.0, validator=at_least(0))
    blur: float = attrs.field(default=0.0, validator=at_least(0))


@attrs.frozen
class WindowSpec:
    """``windows`` of a modality: how what is longer than its encoder's window is cut.

    Both are in seconds; of pictures of a film, and what else has no clock, in steps.

    Attributes:
        hop: from the beginning of one window to that of the next; windows do not overlap if None.
        longest: what a sample may last.
    """

    hop: float | None = None
    longest: float = attrs.field(default=600.0, validator=above(0))


Attend = Literal["answer", "after", "all"]
"""Where in the text a modality acts: see ``ModalitySpec.attend``."""


@attrs.frozen
class RelevanceSpec:
    """``relevance = { ... }`` of a modality: the head that opens its gate where that is ``"auto"``.

    Attributes:
        irrelevant: texts on which the gate stays closed: banks of the catalogue, or files of lines.
        risk: largest share of irrelevant calls that may open the gate, of each kind.
        confidence: with which a calibration shows that.
        calibrate: choose the threshold once training is over, as ``safe calibrate`` does.
    """

    irrelevant: tuple[str, ...] = attrs.field(
        default=("everyday", "music-and-sounds", "pictures-and-other-senses"), validator=not_empty
    )
    risk: float = attrs.field(default=0.01, validator=open_unit_interval)
    confidence: float = attrs.field(default=0.95, validator=open_unit_interval)
    calibrate: bool = True


@attrs.frozen
class TranscriptSpec:
    """``transcript = { ... }`` of a modality: what was said in a sample, as text in the prompt.

    Attributes:
        language: what is spoken, such as ``"german"`` or ``"de"``; found out if None.
        timestamps: write when each phrase begins and ends, in seconds.
        form: what stands in the prompt, around ``{transcript}``.
        max_tokens: what is longer, in the base's tokens, is cut, with a warning; None cuts nothing.
    """

    language: str | None = attrs.field(default=None, validator=optional(not_empty))
    timestamps: bool = False
    form: str = attrs.field(default='"{transcript}"\n', validator=contains("{transcript}"))
    max_tokens: int | None = attrs.field(default=None, validator=optional(at_least(1)))


@attrs.frozen
class ModalitySpec:
    """``[modalities.NAME]``: what one new sense is made of.

    Attributes:
        attend: where in the text it acts: on the answer, so that the prompt stays the base's;
            after its sample's place, which needs ``markers``; or on all of it.
        markers: mark where a sample is in the text, by two words with vectors of their own.
        inline: put the projected tokens between them too; implies ``markers``.
        relevance: fit the head that opens the gate where that is ``"auto"``, with the options of a
            table; if None, do so where ``attend`` is ``"answer"``.
        augment: how training samples are varied; they are not if None.
        windows: how what is longer than the encoder's window is cut; it is refused if None.
        transcript: where a sample is heard, put what was said in it into the prompt at its place,
            with the options of a table; for an encoder that can transcribe.
        features: let the base attend to what the encoder hears; without, its transcript is all.
    """

    encoder: PluginSpec
    projector: PluginSpec
    fusion: PluginSpec
    gate: GateSpec = attrs.field(factory=GateSpec)
    attend: Attend = "all"
    markers: bool = False
    inline: bool = False
    relevance: bool | RelevanceSpec | None = None
    augment: AugmentSpec | None = None
    windows: WindowSpec | None = None
    transcript: bool | TranscriptSpec = False
    features: bool = True

    @property
    def written(self) -> TranscriptSpec | None:
        """How its transcripts are made; None where there are none."""
        if isinstance(self.transcript, TranscriptSpec):
            return self.transcript
        return TranscriptSpec() if self.transcript else None

    @property
    def relevance_head(self) -> RelevanceSpec | None:
        """How its head is fitted; None where it gets none."""
        if isinstance(self.relevance, RelevanceSpec):
            return self.relevance
        wanted = self.attend == "answer" if self.relevance is None else self.relevance
        return RelevanceSpec() if wanted else None


@attrs.frozen
class RetentionSpec:
    """``[[retention]]``: one regularizer, its weight in the loss, and its options."""

    use: str
    weight: float = attrs.field(default=1.0, validator=at_least(0))
    options: Mapping[str, Any] = attrs.field(factory=dict, metadata=UNWRITTEN)


@attrs.frozen
class QuestionSpec:
    """``question = { bank = "NAME", ... }``: a bank of questions, and how they are drawn.

    Attributes:
        bank: name of a bank in the catalogue, or a file of questions.
        kinds: how often a question is of each kind, relative to the others; all of the bank's,
            equally often, if there are none. The first is the one that accuracy is measured in.
        choices: at most so many answers are given to choose from.
        thing: what samples are of, in questions such as "Which instrument is this?".
        replace: ask it of rows that have a question of their own, too.
    """

    bank: str = attrs.field(validator=not_empty)
    kinds: Mapping[str, float] = attrs.field(factory=dict, validator=each(above(0)))
    choices: int = attrs.field(default=4, validator=at_least(2))
    thing: str = attrs.field(default="sound", validator=not_empty)
    replace: bool = False


QuestionForms = str | tuple[str, ...] | QuestionSpec
"""What a ``question`` may be: one, several, or a bank."""

QUESTION_FILES = (".txt", ".jsonl")
"""How the name of a file of questions ends."""


def question_file(question: QuestionForms | None, folder: Path) -> Path | None:
    """The file of a ``question``, beside the recipe or in the catalogue; None where it has none.

    Raises:
        CatalogueError: the catalogue holds no bank of the name that ``bank`` gives.
    """
    named = question.bank if isinstance(question, QuestionSpec) else question
    if not isinstance(named, str):
        return None
    if named.endswith(QUESTION_FILES):
        return (folder / named).absolute()
    if isinstance(question, QuestionSpec):
        return catalogue.questions_path(named)
    return catalogue.questions().get(named)


Task = Literal["question_answering", "captioning", "classification"]
ReadAt = Literal["answer", "tokens"]


@attrs.frozen
class MixSpec:
    """``[[data.mix]]``: one of several datasets, of which each step draws its rows.

    Attributes:
        train: as in ``[data]``, and so are ``test``, ``task``, ``labels``, ``read_at``.
        weight: share of the rows drawn, relative to the others'.
        name: in results; the name of the file, without its ending, if None.
        prompt: as in ``[data]``, which serves if None; so are ``question`` and ``fields``.
        ignore: fields that are not read, besides those of ``[data]``.
    """

    train: str = attrs.field(validator=not_empty)
    test: str | None = None
    task: Task = "question_answering"
    weight: float = attrs.field(default=1.0, validator=above(0))
    name: str | None = None
    labels: tuple[str, ...] = ()
    read_at: ReadAt = "answer"
    prompt: str | None = None
    question: QuestionForms | None = attrs.field(default=None, validator=optional(not_empty))
    fields: Mapping[str, str] | None = None
    ignore: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """Its name in results and messages."""
        return self.name or (self.train if is_dataset(self.train) else Path(self.train).stem)


@attrs.frozen
class DataSpec:
    """``[data]``: files or folders beside the recipe, or datasets as ``hf:owner/name:split``.

    Attributes:
        train: samples of the task; None where ``mix`` names several datasets.
        test: held-out samples of the task.
        retention: text of the base's own domain, which must keep its answers.
        retention_test: the same, held out.
        foreign: samples of the same kind of signal from outside the task, as irrelevant ones.
        foreign_test: the same, held out.
        validation: samples of the task that the monitor measures gain on during training.
        retention_validation: text of the base's domain that it measures retention on.
        foreign_validation: samples from outside the task that it puts beside some of that text.
        prompt: what the base is asked, around each row's question.
        chat: ask in the base's chat template: the prompt is the user's message. If None, do so
            where the base has one, something is asked, and ``prompt`` is left as it is.
        system: the system's message in that chat; the template's own if None.
        template_options: of the chat template, such as ``enable_thinking``.
        date: the day that a chat template is told, if it writes one, as ``2026-11-30``.
        question: what is asked where a row has none: one question, several, or a bank.
        fields: what a field is called in the data, by the name that it has here.
        ignore: fields that are not read; any other that nothing reads is an error.
        on_bad_row: stop before training at a row that cannot be used, or leave it out and list it.
        task: what rows are: questions with answers, captions, or classes.
        labels: the closed set of answers of a classification; those of ``train`` if empty.
        read_at: where a class is read: as an answer, or at the modality's inline tokens.
        mix: several datasets instead of ``train`` and ``test``.
    """

    train: str | None = attrs.field(default=None, validator=optional(not_empty))
    test: str | None = None
    retention: str | None = None
    retention_test: str | None = None
    foreign: str | None = None
    foreign_test: str | None = None
    validation: str | None = None
    retention_validation: str | None = None
    foreign_validation: str | None = None
    prompt: str = "{question}"
    chat: bool | None = None
    system: str | None = None
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    date: str | None = attrs.field(default=None, validator=optional(iso_date))
    question: QuestionForms | None = attrs.field(default=None, validator=optional(not_empty))
    fields: Mapping[str, str] = attrs.field(factory=dict)
    ignore: tuple[str, ...] = ()
    on_bad_row: Literal["stop", "skip"] = "stop"
    task: Task = "question_answering"
    labels: tuple[str, ...] = ()
    read_at: ReadAt = "answer"
    mix: tuple[MixSpec, ...] = ()

    def datasets(self) -> dict[str, MixSpec]:
        """Every dataset by name, what it leaves open filled in; one alone is called ``""``."""
        if self.train is not None:
            one = MixSpec(
                self.train, self.test, self.task, name="", labels=self.labels, read_at=self.read_at
            )
            return {"": self.filled(one)}
        return {one.called: self.filled(one) for one in self.mix}

    def filled(self, one: MixSpec) -> MixSpec:
        """A dataset of the mix with what it leaves open."""
        return attrs.evolve(
            one,
            prompt=self.prompt if one.prompt is None else one.prompt,
            question=self.question if one.question is None else one.question,
            fields=self.fields if one.fields is None else one.fields,
            ignore=(*self.ignore, *one.ignore),
        )


DATA_FILES = (
    "train",
    "test",
    "retention",
    "retention_test",
    "foreign",
    "foreign_test",
    "validation",
    "retention_validation",
    "foreign_validation",
)
DATASET = "hf:"
COMPOSE_FILES = ("train", "test")


@attrs.frozen
class TrainingSpec:
    """``[training]``: how long, how fast, and from which seed.

    Attributes:
        max_steps: optimizer steps.
        batch_size: task samples a step, over all devices.
        gradient_accumulation_steps: equal parts in which each device computes its share of a
            step, one after another.
        retention_batch_size: retention rows a step, over all devices.
        projector_learning_rate: peak rate of projectors.
        fusion_learning_rate: peak rate of fusion adapters.
        encoder_learning_rate: peak rate of encoders that train; the projectors' if None.
        weight_decay: decoupled decay of matrices; vectors, such as biases and norms, and markers
            have none.
        warmup_steps: steps over which the rates rise from 0.
        schedule: how the rates fall afterwards.
        max_grad_norm: gradients are scaled down to this norm.
        precision: of the computation; ``"bfloat16"`` by autocast, whatever the weights have.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping them.
        align_steps: steps of the alignment stage before fusion is trained; 0 for none.
        align_learning_rate: rate of that stage.
        align_weight: of the alignment loss while fusion is trained; 0 for none.
        balance: draw every distinct answer equally often.
        save_steps: steps between two saves that a run can resume from; a tenth of ``max_steps``,
            and 100 at most, if None.
        report_to: tracker that is sent what is logged.
        cache: what is computed once and kept on disk: ``"frames"`` are what a frozen encoder
            gives for each sample, ``"prefix"`` the hidden states of each text below the first
            fused layer, ``"teacher"`` the base's last ones on retention texts.
        cache_gib: GiB of disk that the states of a run's texts may take, for the task and for
            retention each; more is computed anew at each step.
        speedups: ``"off"`` runs each call of a step whole and by itself, and keeps nothing of the
            frozen base: slower, and the same losses but for rounding and what dropout draws.
        group_by_length: give a step retention texts of like length, to compute less padding.
        seed: of everything random.
    """

    max_steps: int = attrs.field(default=1000, validator=at_least(1))
    batch_size: int = attrs.field(default=16, validator=at_least(1))
    gradient_accumulation_steps: int = attrs.field(default=1, validator=at_least(1))
    retention_batch_size: int = attrs.field(default=8, validator=at_least(1))
    projector_learning_rate: float = attrs.field(default=1e-4, validator=at_least(0))
    fusion_learning_rate: float = attrs.field(default=5e-5, validator=at_least(0))
    encoder_learning_rate: float | None = attrs.field(default=None, validator=optional(at_least(0)))
    weight_decay: float = attrs.field(default=0.01, validator=at_least(0))
    warmup_steps: int = attrs.field(default=100, validator=at_least(0))
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = attrs.field(default=1.0, validator=above(0))
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    align_steps: int = attrs.field(default=0, validator=at_least(0))
    align_learning_rate: float = attrs.field(default=1e-3, validator=above(0))
    align_weight: float = attrs.field(default=0.0, validator=at_least(0))
    balance: bool = False
    save_steps: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    cache: tuple[Literal["frames", "prefix", "teacher"], ...] = ("frames", "prefix", "teacher")
    cache_gib: float = attrs.field(default=8.0, validator=at_least(0))
    speedups: Literal["on", "off"] = "on"
    group_by_length: bool = True
    seed: int = attrs.field(default=0, validator=at_least(0))

    @property
    def note(self) -> str:
        """What is worth knowing before it runs; empty if nothing is."""
        if 0 < self.max_steps <= self.warmup_steps:
            return (
                f"its rates rise for {self.warmup_steps} steps (`warmup_steps` in [training]), so "
                f"that they never reach their peak in {self.max_steps}"
            )
        return ""


@attrs.frozen
class StageBSpec:
    """``[stage_b]``: train the base too, once its senses are trained; L1 and L2 are given up.

    Attributes:
        method: ``"lora"`` puts low-rank pairs beside linear parts, ``"layers"`` trains in place.
        start: adapter of stage A to begin with, instead of a stage A of this run.
        layers: of the base that may change; every one if there are none, which ``"lora"`` allows.
        rank: of every pair.
        alpha: a pair adds ``alpha / rank`` times its product.
        dropout: on the input of the pairs, in training.
        targets: last words of the paths of the parts that get a pair; PEFT's choice if none.
        learning_rate: peak rate of the base's part.
        max_steps: optimizer steps of this stage.
        warmup_steps: steps over which its rates rise from 0.
        train_senses: train projectors and fusion adapters on, at the rates of ``[training]``.
        replay_weight: of the distillation of texts without a sample towards the original base.
        retention: methods of this stage; those of ``[[retention]]`` if there are none.
    """

    method: Literal["lora", "layers"]
    start: str | None = None
    layers: tuple[int | float, ...] = ()
    rank: int = attrs.field(default=8, validator=at_least(1))
    alpha: float = attrs.field(default=16.0, validator=above(0))
    dropout: float = attrs.field(default=0.0, validator=below(1))
    targets: tuple[str, ...] = ()
    learning_rate: float = attrs.field(default=1e-4, validator=above(0))
    max_steps: int = attrs.field(default=200, validator=at_least(1))
    warmup_steps: int = attrs.field(default=20, validator=at_least(0))
    train_senses: bool = True
    replay_weight: float = attrs.field(default=1.0, validator=at_least(0))
    retention: tuple[RetentionSpec, ...] = ()


@attrs.frozen
class EvaluationSpec:
    """``[evaluation]``: how answers are made and scored.

    Attributes:
        max_new_tokens: longest answer, to whatever is asked; if left out, 8 or as many as the
            longest expected one has, in any wording, and two more.
        batch_size: samples answered at once.
        bootstrap: resamples behind each confidence interval.
        semantic: sentence encoder that judges how like answers are: a folder, a hub id, or
            ``minilm``; none is asked if None.
        by: field of ``test`` and ``retention_test`` that says what kind of question a row is, for
            tables by kind; ``kind`` where rows have it if None.
        wordings: of each kind of question, so many are asked in forms that were kept from
            training, at most; half as many in a chat of each form, and in a chat that the base
            has begun already; 0 for none.
    """

    max_new_tokens: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(at_least(1))
    )
    batch_size: int = attrs.field(default=32, validator=at_least(1))
    bootstrap: int = attrs.field(default=1000, validator=at_least(1))
    semantic: str | None = None
    by: str | None = None
    wordings: int = attrs.field(default=144, validator=at_least(0))


@attrs.frozen
class Recipe:
    """Everything that makes a run, and the text that said so.

    Attributes:
        text: the recipe as its author wrote it.
        source: what to call it in messages.
        folder: what its file names are relative to.
    """

    base: BaseSpec
    modalities: Mapping[str, ModalitySpec] = attrs.field(validator=not_empty)
    retention: tuple[RetentionSpec, ...] = ()
    data: DataSpec | None = None
    training: TrainingSpec = attrs.field(factory=TrainingSpec)
    stage_b: StageBSpec | None = None
    curriculum: tuple[StageSpec, ...] = ()
    monitor: MonitorSpec | None = None
    evaluation: EvaluationSpec = attrs.field(factory=EvaluationSpec)
    text: str = attrs.field(default="", repr=False, metadata=UNWRITTEN)
    source: str = attrs.field(default="recipe.toml", metadata=UNWRITTEN)
    folder: Path = attrs.field(factory=Path.cwd, metadata=UNWRITTEN)

    @property
    def needs_objects(self) -> bool:
        """Whether a plugin was an object of Python, which the recipe cannot make again."""
        parts = [
            part for m in self.modalities.values() for part in (m.encoder, m.projector, m.fusion)
        ]
        return any(was_in_memory(part.use) for part in parts)

    def data_files(self) -> dict[str, Path | str]:
        """What ``[data]`` names by key: the absolute path of a file or folder, or a dataset's name.

        Rows that were in memory have the name that stands for them.

        Data of a stage's own stand under ``stage_key`` of its number.
        """
        named = {key: getattr(self.data, key, None) for key in DATA_FILES}
        named |= {stage_key(number): one.train for number, one in enumerate(self.curriculum)}
        for name, one in self.data.datasets().items() if self.data else ():
            named |= {mixed("train", name): one.train, mixed("test", name): one.test}
        return {
            key: name
            if is_dataset(name) or was_in_memory(name)
            else (self.folder / name).absolute()
            for key, name in named.items()
            if name is not None
        }


def stage_key(number: int) -> str:
    """What the data of a curriculum's stage are called, counted from 0, beside those of ``[data]``.

    >>> stage_key(0)
    'curriculum[0].train'
    """
    return f"curriculum[{number}].train"


def mixed(key: str, name: str) -> str:
    """The key of ``train`` or ``test`` of the dataset called ``name``.

    >>> mixed("train", ""), mixed("test", "captions")
    ('train', 'test of captions')
    """
    return f"{key} of {name}" if name else key


def is_dataset(name: str) -> bool:
    """Whether a name of ``[data]`` is that of a dataset, such as ``hf:owner/name:train``."""
    return name.startswith(DATASET)
