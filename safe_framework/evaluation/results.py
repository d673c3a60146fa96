"""What an evaluation found, and its form on disk (``metrics.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from safe_framework.data.pictures import Picture
from safe_framework.data.tasks import QUESTIONS
from safe_framework.evaluation.alignment import CrossModal, PictureAlignment
from safe_framework.evaluation.base_drift import BaseChanged
from safe_framework.evaluation.limits import Limit
from safe_framework.evaluation.metrics import Calibration, Estimate, normalise
from safe_framework.evaluation.overlap import TrainedOn
from safe_framework.evaluation.relevance_risk import Counted
from safe_framework.interfaces.samples import Sample, Several
from safe_framework.utils.json_records import json_converter, to_json

OTHER = "(other)"
"""The column of answers that name no class; a normalised answer cannot be spelled so."""

WHOLE_ANSWER = 24
"""Tokens of an answer that must all be the base's for a call not to be influenced."""

TRAINED, HELD_OUT = "trained", "held out"
"""Whether a question's form was trained on, or kept from training."""


@attrs.frozen
class Agreement:
    """How near the model stays to its base at the valid positions of some texts.

    Attributes:
        agreement: share of positions where both rank the same next token first.
        kl: mean KL(base || safe) of a position, in nats.
        positions: how many positions were compared.
        shares: ``agreement`` of each text, in a fixed order; empty in older results.
        lengths: positions of each text.
    """

    agreement: Estimate
    kl: Estimate
    positions: int
    shares: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()


@attrs.frozen
class Absent:
    """The model called without a sample, against the unwrapped base.

    Attributes:
        identical: whether all logits were equal bit for bit.
        agreement: share of positions with the same next token.
        texts: how many texts were compared.
    """

    identical: bool
    agreement: float
    texts: int


@attrs.frozen
class Retention:
    """The three forms of retention, on texts that were never trained on.

    Attributes:
        absent: without a sample: must be the base bit for bit.
        counterfactual: the gate is 1 and the sample irrelevant; by kind of sample.
        overall: all kinds of irrelevant samples together.
        relevant: test prompts with their own sample, which is meant to change them.
    """

    absent: Absent
    counterfactual: Mapping[str, Agreement]
    overall: Agreement
    relevant: Agreement


@attrs.frozen
class GateZero:
    """The sample is given, but the gate is 0: must be the base bit for bit.

    Attributes:
        logits_identical: whether all logits were equal bit for bit.
        tokens_identical: whether the greedy tokens were equal.
        examples: how many examples were compared.
    """

    logits_identical: bool
    tokens_identical: bool
    examples: int

    @property
    def identical(self) -> bool:
        """Whether neither a logit nor a token differed."""
        return self.logits_identical and self.tokens_identical


@attrs.frozen
class Gain:
    """Exact matches on the test examples, and against what.

    Attributes:
        accuracy: with the modality.
        probe: of a linear probe on the encoder's frozen frames.
        base: of the base, which gets the prompt alone.
        shuffled: with another example's sample.
        chance: of always giving the commonest training answer.
        over_base: paired difference of ``accuracy`` and ``base``.
        over_shuffled: paired difference of ``accuracy`` and ``shuffled``.
        per_class: accuracy on each expected answer, in alphabetical order.
        confusion: for each expected answer, how often each answer was given; one that names no
            class counts as ``OTHER``.
        token_f1: F1 of the words that answer and expected one share; None in older results.
        semantic: cosine of answer and expected one to a sentence encoder; None unless asked for.
    """

    accuracy: Estimate
    probe: Estimate
    base: Estimate
    shuffled: Estimate
    chance: Estimate
    over_base: Estimate
    over_shuffled: Estimate
    per_class: Mapping[str, Estimate]
    confusion: Mapping[str, Mapping[str, int]]
    token_f1: Estimate | None = None
    semantic: Estimate | None = None


@attrs.frozen
class GroupGain:
    """What was gained on a part of the rows, by the measure of their task.

    Attributes:
        task: of the rows.
        measure: what ``score`` is.
        score: with the modality.
        base: of the base, which gets the prompt alone.
        shuffled: with another example's sample.
        over_base: paired difference of ``score`` and ``base``.
        over_shuffled: paired difference of ``score`` and ``shuffled``.
    """

    task: str
    measure: str
    score: Estimate
    base: Estimate
    shuffled: Estimate
    over_base: Estimate
    over_shuffled: Estimate


@attrs.frozen
class Answered:
    """One test example and all the answers to it; the sample itself is not written to disk.

    Attributes:
        place: where the example was read.
        question: what was asked, without the prompt around it.
        expected: the right answer.
        answer: with the modality.
        shuffled: with another example's sample.
        base: without the modality.
        probe: of the linear probe.
        confidence: probability of the answer with the modality; None in older results.
        task: of its dataset.
        dataset: its name; empty where there is only one.
        kind: what kind of question it is; empty where the rows do not say.
        source: of its samples; empty likewise.
        blank_picture: with the modality, beside a grey picture; None where the example has none.
        other_picture: with the modality, beside another example's picture; None likewise.
        half_open: with the modality at gate 0.5; None where that was not asked.
        sample: of the modality, or several.
        file: where it was read, or they were.
        images: the example's pictures; not written to disk either.
    """

    place: str
    question: str
    expected: str
    answer: str
    shuffled: str
    base: str
    probe: str
    confidence: float | None = None
    task: str = QUESTIONS
    dataset: str = ""
    kind: str = ""
    source: str = ""
    blank_picture: str | None = None
    other_picture: str | None = None
    half_open: str | None = None
    sample: Sample | Several[Sample] = attrs.field(default=None, eq=False, repr=False)
    file: Path | Several[Path] | None = attrs.field(default=None, eq=False, repr=False)
    images: tuple[Picture, ...] = attrs.field(default=(), eq=False, repr=False)

    @property
    def pictured(self) -> bool:
        """Whether the example has a picture."""
        return self.blank_picture is not None

    @property
    def right(self) -> bool:
        """Whether the answer with the modality is the expected one."""
        return normalise(self.answer) == normalise(self.expected)


@attrs.frozen
class SeeingScore:
    """How picture questions were answered in one way, against how the base alone answers them.

    Attributes:
        accuracy: VQA accuracy.
        over_base: paired difference to the base's.
        unchanged: share of answers that are the base's to the letter.
        retention: ratio of ``accuracy`` and the base's; None where the base gets nothing right.
    """

    accuracy: Estimate
    over_base: Estimate
    unchanged: Estimate
    retention: Estimate | None


@attrs.frozen
class SeeingScores:
    """Scores of some picture questions.

    Attributes:
        base: VQA accuracy of the base alone.
        absent: the model without a sample.
        irrelevant: the gate is 1 and the sample irrelevant; by kind of sample.
        overall: all kinds of irrelevant samples together.
        relevant: the gate is 1 and the sample is the row's own; None where no row has one. Its
            differences are to the base on those rows.
    """

    base: Estimate
    absent: SeeingScore
    irrelevant: Mapping[str, SeeingScore]
    overall: SeeingScore
    relevant: SeeingScore | None


@attrs.frozen
class PictureQuestion:
    """One question about a picture and all the answers to it; pictures are not written to disk.

    Attributes:
        place: where it was read.
        question: what was asked, without the prompt around it.
        expected: what people answered; one answer in most data.
        kind: what kind of question it is; empty where the rows do not say.
        base: the base's answer.
        absent: the model's, without a sample.
        irrelevant: the model's beside an irrelevant sample, by kind of sample.
        relevant: the model's beside the row's own sample; None where it has none.
        images: that the question is about.
        sample: the row's own.
        file: where that was read.
    """

    place: str
    question: str
    expected: tuple[str, ...]
    kind: str
    base: str
    absent: str
    irrelevant: Mapping[str, str]
    relevant: str | None = None
    images: tuple[Picture, ...] = attrs.field(default=(), eq=False, repr=False)
    sample: Sample | Several[Sample] = attrs.field(default=None, eq=False, repr=False)
    file: Path | Several[Path] | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen
class Seeing:
    """What became of the base's seeing.

    Attributes:
        logits_identical: whether, without a sample, all logits were the base's bit for bit.
        answers_identical: whether, without a sample, all answers had the base's tokens.
        scores: of all questions.
        kinds: of the questions of each kind, where the rows say it.
        questions: each with its answers.
    """

    logits_identical: bool
    answers_identical: bool
    scores: SeeingScores
    kinds: Mapping[str, SeeingScores]
    questions: tuple[PictureQuestion, ...]

    @property
    def identical(self) -> bool:
        """Whether, without a sample, neither a logit nor a token differed."""
        return self.logits_identical and self.answers_identical


@attrs.frozen
class Baseline:
    """The same questions with one sense missing or wrong.

    Attributes:
        accuracy: share that is answered right.
        below: paired difference of both senses and this.
    """

    accuracy: Estimate
    below: Estimate


@attrs.frozen
class BothSensesScores:
    """Exact matches on some questions with a picture and a sample.

    Attributes:
        accuracy: with both.
        baselines: by what was given.
    """

    accuracy: Estimate
    baselines: Mapping[str, Baseline]


@attrs.frozen
class BothSenses:
    """Exact matches on the test questions with a picture and a sample.

    Attributes:
        scores: of all.
        kinds: of each kind of question, where the rows say it.
    """

    scores: BothSensesScores
    kinds: Mapping[str, BothSensesScores]


@attrs.frozen
class FormScore:
    """How rows were answered that were asked in one form.

    Attributes:
        form: of the question, with the places that each row fills.
        score: share of right answers, or the measure of the rows' task.
        n: rows.
    """

    form: str
    score: float
    n: int


@attrs.frozen
class KindWordings:
    """One kind of question, in forms that were trained on and in others.

    Attributes:
        trained: in trained forms.
        held_out: in forms that were kept from training.
        trained_balanced: as ``trained``, in the mean over the right answers (over yes and no).
        balanced: as ``held_out``, likewise.
        forms: each of those that were kept from training.
    """

    trained: Estimate
    held_out: Estimate
    trained_balanced: float
    balanced: float
    forms: tuple[FormScore, ...]

    @property
    def worst(self) -> FormScore:
        """The form that was answered worst; the first of equals."""
        return min(self.forms, key=lambda form: form.score)


@attrs.frozen
class AskedAgain:
    """A test row that was asked in another way, and the answer to it.

    Attributes:
        way: ``HELD_OUT``, ``TRAINED``, or what was different in the chat.
        kind: of the question; empty for one in another chat.
        form: that the question was made of.
        place: of the row.
        question: as it was asked.
        expected: the right answer.
        answer: with the modality.
        score: 1.0 if it is right.
    """

    way: str
    kind: str
    form: str
    place: str
    question: str
    expected: str
    answer: str
    score: float


@attrs.frozen
class Wordings:
    """Test rows asked in other words than training's, and in other chats.

    Attributes:
        kinds: the result on each kind of question.
        chats: in a chat as training had none, by what is different in it.
        chats_trained: the same rows in training's form, by the same names.
        asked: all questions with their answers.
    """

    kinds: Mapping[str, KindWordings]
    chats: Mapping[str, Estimate]
    chats_trained: Mapping[str, Estimate]
    asked: tuple[AskedAgain, ...]


@attrs.frozen
class Influence:
    """How many answers an irrelevant sample changes.

    Attributes:
        opened: with the gate at 1.
        auto: with the gate that decides.
    """

    opened: Counted
    auto: Counted


@attrs.frozen
class GainKept:
    """What a gate that decides keeps of the gain.

    Attributes:
        base: share of right answers without the sense.
        opened: with the gate at 1.
        auto: with the gate that decides.
        n: questions.
    """

    base: float
    opened: float
    auto: float
    n: int

    @property
    def share(self) -> float | None:
        """The gain that is kept, of that at gate 1; None where there is none to keep."""
        gain = self.opened - self.base
        return (self.auto - self.base) / gain if gain > 0 else None


@attrs.frozen
class Relevance:
    """How a gate that decides does, on calls that it was neither fitted nor calibrated on.

    Attributes:
        layer: of the base, whose states it reads.
        threshold: above which it opens.
        false_opens: of irrelevant calls, by kind of text; beside whatever sample, since it reads
            the text alone.
        opens: of relevant calls, by kind of wording.
        influence: by kind of irrelevant sample.
        gain: by kind of wording.
        sentence: what its calibration showed; empty before one.
    """

    layer: int
    threshold: float
    false_opens: Mapping[str, Counted]
    opens: Mapping[str, Counted]
    influence: Mapping[str, Influence] = attrs.field(factory=dict)
    gain: Mapping[str, GainKept] = attrs.field(factory=dict)
    sentence: str = ""


@attrs.frozen
class Evaluation:
    """Everything that the table, ``metrics.json`` and the report show.

    Attributes:
        modality: that was measured.
        gain: what it lets the model answer.
        retention: in its three forms.
        gate_zero: whether a closed gate is the base.
        trainable_parameters: how many numbers were trained.
        base_parameters: how many the frozen base has.
        train_examples: how many examples the probe was fitted on.
        max_new_tokens: limit of an answer's length.
        resamples: of every interval.
        seed: of the intervals, the probe's folds and the irrelevant samples.
        answers: every test example with its answers.
        costs: what the caller measured, such as ``train_seconds`` and ``adapter_bytes``.
        calibration: of the answers with the modality; None in older results.
        alignment: of its tokens with the answers' words; None in older results, and where
            all answers are the same.
        base_changed: what fine-tuning did to the base; None where L1 and L2 hold.
        datasets: the result on each dataset of a mix, by name; ``gain`` is that on all rows that
            are right or wrong, which captions are not.
        by: the field that says what kind of question a row is; empty where no row has it.
        kinds: the result on the test rows of each kind.
        seeing: what became of the base's answers about pictures; None where none was asked.
        both_senses: how the test rows with a picture were answered; None where there are none.
        picture_alignment: of the modality's tokens with what the base makes of the rows'
            pictures; None where there are none.
        wordings: test rows asked in other words and chats; None where there are no others.
        unmeasured: why a result that could be expected is missing, by its name.
        trained_on: test rows that hold what a training row holds.
        limit: whether the encoder's features or training limit the gain; None in older results.
        sources: the same of the test rows of each source that rows name.
        relevance: how the gate does that decides by itself; None without a head for it.
    """

    modality: str
    gain: Gain
    retention: Retention
    gate_zero: GateZero
    trainable_parameters: int
    base_parameters: int
    train_examples: int
    max_new_tokens: int
    resamples: int
    seed: int
    answers: tuple[Answered, ...]
    costs: Mapping[str, float] = attrs.field(factory=dict)
    calibration: Calibration | None = None
    alignment: CrossModal | None = None
    base_changed: BaseChanged | None = None
    datasets: Mapping[str, GroupGain] = attrs.field(factory=dict)
    by: str = ""
    kinds: Mapping[str, GroupGain] = attrs.field(factory=dict)
    seeing: Seeing | None = None
    both_senses: BothSenses | None = None
    picture_alignment: PictureAlignment | None = None
    wordings: Wordings | None = None
    unmeasured: Mapping[str, str] = attrs.field(factory=dict)
    trained_on: tuple[TrainedOn, ...] = ()
    limit: Limit | None = None
    sources: Mapping[str, Limit] = attrs.field(factory=dict)
    relevance: Relevance | None = None

    def to_json(self) -> str:
        """The content of ``metrics.json``."""
        return to_json(self, _CONVERTER)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what ``to_json`` wrote; the samples themselves are not in it."""
        return _CONVERTER.loads(text, cls)


_CONVERTER = json_converter(
    omitted={
        Answered: ("sample", "file", "images"),
        PictureQuestion: ("sample", "file", "images"),
    },
    omitted_if_default={
        Answered: ("kind", "source", "blank_picture", "other_picture", "half_open"),
        Evaluation: (
            "base_changed", "by", "kinds", "seeing", "both_senses", "picture_alignment",
            "wordings", "unmeasured", "trained_on", "limit", "sources", "relevance",
        ),
    },
)  # fmt: skip
