"""Counterfactual retention: the base's own text with a sample that is unrelated to it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from safe_framework.core.attend import whole_text_columns
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import on_device
from safe_framework.core.padding import pad_right
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow, Rows, as_rows, groups_of
from safe_framework.data.distractors import distractor
from safe_framework.data.frame_cache import CachedSamples, FrameCache, RawSampleStore, contents
from safe_framework.data.preview import no_foreign_samples
from safe_framework.interfaces.retention import RetentionRegularizer, RetentionStore
from safe_framework.interfaces.samples import Sample, Several
from safe_framework.training.batches import modality_columns
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.calls import ForwardCall, LossTerm, Predictions
from safe_framework.training.distributed import WHOLE_STEP, StepShard, encode_rows
from safe_framework.training.retention.teacher import Teacher, TeacherPredictions
from safe_framework.training.sampling import TextOrder, generator
from safe_framework.utils.hashing import fingerprint, tensors_fingerprint, text_fingerprint
from safe_framework.utils.progress import ProgressCallback
from safe_framework.utils.sequences import LazySequence
from safe_framework.utils.versions import FRAMEWORK_VERSION

_NOISE_COUNT = 24
ExampleBatches = Sequence[Mapping[str, Tensor]]
DistractorPools = Mapping[str, Mapping[str, Sequence[CachedSamples]]]
SampleStores = Mapping[str, FrameCache | RawSampleStore]


@attrs.frozen(eq=False)
class WeightedRegularizer:
    """A retention method and its weight in the loss.

    Attributes:
        options: as the recipe gives them; what the method computes at the start depends on them.
    """

    weight: float
    method: RetentionRegularizer
    options: Mapping[str, object] = attrs.field(factory=dict)


def distractor_pools(
    kinds: Collection[str],
    samples: Mapping[str, Sequence[Sample | Several[Sample]]],
    stores: SampleStores,
    seed: int,
    foreign: Mapping[str, Sequence[Sample]] | None = None,
) -> DistractorPools:
    """Frames of distractors, by modality and kind.

    Args:
        kinds: of distractor, as in ``RetentionRegularizer.counterfactual``.
        samples: those of training rows by modality, from which they are made; of rows with
            several, as many are made.
        stores: cache their frames, or the samples of an encoder that trains.
        seed: decides noise.
        foreign: samples by modality that are not of the task, for kind ``"foreign"``.

    Raises:
        DataError: a method wants foreign samples, and there is none of some modality.
    """
    return {
        name: {
            kind: encode_rows(
                store, _distractor_samples(kind, samples[name], (foreign or {}).get(name, ()), seed)
            )
            for kind in kinds
        }
        for name, store in stores.items()
    }


def _distractor_samples(
    kind: str, samples: Sequence[Sample | Several[Sample]], foreign: Sequence[Sample], seed: int
) -> Sequence[Sample | Several[Sample]]:
    if kind == "foreign":
        if not foreign:
            raise no_foreign_samples()
        return foreign
    if kind == "shuffled":
        return samples
    count = 1 if kind == "silent" else _NOISE_COUNT
    return [distractor(kind, samples, generator(seed, number)) for number in range(count)]


class RetentionExamples(LazySequence[Mapping[str, Tensor]]):
    """Each retention text by itself, with a distractor; made when it is read.

    Text ``i`` gets the kind ``kinds[i % len(kinds)]``, and each kind's samples come in turn.

    Args:
        retention: has the texts and the samples.
        kinds: of distractor; without any there are no examples.
    """

    def __init__(self, retention: CounterfactualRetention, kinds: Sequence[str]) -> None:
        self.retention, self.kinds = retention, tuple(kinds)

    def __len__(self) -> int:
        return len(self.retention.marked) if self.kinds else 0

    def made(self, number: int) -> Mapping[str, Tensor]:
        """A text and its distractor, as a batch of one row."""
        round_, turn = divmod(number, len(self.kinds))
        batch = self.retention.collate([self.retention.marked[number]])
        for name, pools in self.retention.pools.items():
            pool = pools[self.kinds[turn]]
            batch |= modality_columns(name, [pool[round_ % len(pool)]], self.retention.dims[name])
        batch |= whole_text_columns(self.retention.model.attends, batch)
        device = self.retention.model.device
        return {key: value.to(device) for key, value in batch.items()}


class CounterfactualRetention:
    """The retention part of the loss at a step.

    Args:
        model: being trained.
        methods: with their weights.
        rows: the retention texts with their pictures; plain ids are texts without.
        pools: frames of distractors by modality and kind.
        kinds: of distractor, which a step's texts get in turn; without any, a step runs no text
            and has only the methods that need none.
        batch_size: texts in a step.
        seed: with the step, decides texts and samples.
        pad: id of padding.
        marked: the same texts with the markers of every modality; None where none has any.
        caches: activations of the frozen base; None stores nothing.
        group_by_length: put texts of similar length into a step, which needs less padding.
    """

    def __init__(
        self,
        model: SafeModel,
        methods: Sequence[WeightedRegularizer],
        rows: Sequence[PromptRow | Sequence[int]],
        pools: DistractorPools,
        *,
        kinds: Sequence[str],
        batch_size: int,
        seed: int,
        pad: int,
        marked: Sequence[PromptRow | Sequence[int]] | None = None,
        caches: ActivationCaches | None = None,
        group_by_length: bool = False,
    ) -> None:
        self.methods, self.pools, self.kinds = methods, pools, kinds
        self.rows = as_rows(rows)
        self.marked = self.rows if marked is None else as_rows(marked)
        self.batch_size, self.seed, self.pad = batch_size, seed, pad
        self.model, self.caches = model, caches
        self.prompts = caches.prompts if caches else PromptEncoder.of(model)
        self.states = caches.retention_texts(self.rows) if caches and kinds else None
        self.teacher = Teacher(model, pad, self.states, self.prompts)
        self.order = TextOrder([row.words for row in self.rows], batch_size, seed, group_by_length)
        self.dims = {name: model.modality(name).encoder.dim for name in pools}

    def begin(
        self,
        folder: Path,
        *,
        resumed: bool,
        progress: ProgressCallback,
        examples: Callable[
            [CounterfactualRetention, Sequence[str]], ExampleBatches
        ] = RetentionExamples,
    ) -> None:
        """Let each method see the start of training, or what was stored of it.

        Args:
            folder: of the files that methods store.
            resumed: whether training resumes at a later step.
            progress: the bar of long work.
            examples: makes a method's examples from its kinds of distractor.
        """
        training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():  # a run that finds the files draws what this one draws
            for number, entry in enumerate(self.methods):
                kinds = entry.method.counterfactual
                store = open_store(
                    folder / f"retention-{number}.safetensors",
                    self,
                    entry,
                    resumed=resumed,
                    progress=progress,
                )
                entry.method.begin(self.model, examples(self, kinds), store)
        self.model.train(training)

    def precompute(self, steps: int, progress: ProgressCallback, *, autocast: bool = False) -> None:
        """Compute what is stored of the texts that these many steps need.

        Args:
            steps: of the run.
            progress: the bar.
            autocast: whether steps are computed in lower precision than the base is.
        """
        if self.states is not None and self.kinds:
            wanted = [self.rows[index] for index in self.order.needed(steps)]
            needed = [row for row in wanted if self.states.contains([row])]
            self.states.precompute(needed, "reading retention texts", progress)
            if not autocast:
                self.teacher.precompute(needed, self._temperatures, progress)

    def terms(
        self, step: int, device: torch.device, shard: StepShard = WHOLE_STEP
    ) -> Iterator[LossTerm]:
        """The weighted sum of the methods' penalties on a step's texts, or a shard's share in it.

        A penalty is a mean over tokens, so a shard counts by how many of the step's it has.
        """
        if not self.kinds or not any(self.model.gates.values()):
            return  # the model equals its base
        all_chosen = self.order.step(step)
        own = list(range(len(all_chosen)))
        places = shard.of(own)  # of the shard's texts in the step
        groups = groups_of([self.rows[all_chosen[place]] for place in places])
        for group in groups:
            yield self._term(all_chosen, [places[i] for i in group], step, device)

    def _term(
        self, all_chosen: Sequence[int], places: Sequence[int], step: int, device: torch.device
    ) -> LossTerm:
        """The share in the loss that those of a step's texts have that are read in one call."""
        chosen = [all_chosen[place] for place in places]
        rows = [self.rows[i] for i in chosen]
        tokens, all_tokens = self._token_count(chosen), self._token_count(all_chosen)
        share = self.order.share(all_chosen) * tokens / all_tokens

        def loss(predictions: Predictions) -> Tensor:
            """Of the texts."""
            compared = predictions.compare_with(TeacherPredictions(self.teacher, rows))
            total = torch.zeros((), device=device)
            for entry in self.methods:
                penalty = entry.method.penalty_of(compared)
                total = total if penalty is None else total + entry.weight * share * penalty
            return total

        return LossTerm(self._call(chosen, places, step, device), loss)

    def parameter_loss(self, device: torch.device, shard: StepShard = WHOLE_STEP) -> Tensor:
        """The weighted sum of the penalties that depend on the parameters alone, or a shard's."""
        total = torch.zeros((), device=device)
        for entry in self.methods:
            penalty = entry.method.parameter_penalty()
            total = total if penalty is None else total + entry.weight / shard.count * penalty
        return total

    @property
    def _temperatures(self) -> list[float]:
        return [t for entry in self.methods for t in entry.method.temperatures]

    def _token_count(self, chosen: Sequence[int]) -> int:
        return sum(self.rows[i].words for i in chosen)

    def collate(self, rows: Rows, *, pixels: bool = True) -> dict[str, Tensor]:
        """What a call on some texts is given, but for distractors."""
        return self.prompts.collate(rows, self.pad, pixels=pixels)

    def _call(
        self, chosen: Sequence[int], places: Sequence[int], step: int, device: torch.device
    ) -> ForwardCall:
        """Some texts of a step with distractors, read at each of their tokens."""
        rows, marked = [self.rows[i] for i in chosen], [self.marked[i] for i in chosen]
        prefix_states, pixels = None, True
        if self.caches is not None:
            prefix_states = self.caches.prefix_states(self.states, marked)
            pixels = self.caches.pixels_needed(self.states, marked)
        batch = self.collate(marked, pixels=pixels)
        for name, pool in self.pools.items():
            distractors = self._distractors(pool, step)
            frames = [distractors[place] for place in places]
            batch |= modality_columns(name, frames, self.dims[name])
        batch |= whole_text_columns(self.model.attends, batch)
        batch, positions = on_device(batch, device), _text_positions(rows, marked).to(device)
        return ForwardCall(
            batch, positions, self._temperatures, prefix_states, pictures=bool(rows[0].images)
        )

    def _distractors(
        self, pool: Mapping[str, Sequence[CachedSamples]], step: int
    ) -> list[CachedSamples]:
        """One distractor for each text, the kinds in turn."""
        choose = generator(self.seed, step, 1)
        chosen = []
        for row in range(self.batch_size):
            frames = pool[self.kinds[(step * self.batch_size + row) % len(self.kinds)]]
            chosen.append(frames[int(torch.randint(len(frames), (), generator=choose))])
        return chosen


def _text_positions(rows: Rows, marked: Rows) -> Tensor:
    """True at each text's own words among its markers and pictures, (batch, length)."""
    own = [set(row.predicting) - row.placeholders for row in rows]
    is_own = [
        [token in ids for token in row.predicting] for row, ids in zip(marked, own, strict=True)
    ]
    return pad_right(is_own, False)


def open_store(
    path: Path,
    retention: CounterfactualRetention,
    entry: WeightedRegularizer,
    *,
    resumed: bool,
    progress: ProgressCallback,
) -> RetentionStore:
    """Where a method stores what it computes, bound to everything that it computes it from.

    Args:
        path: of the file.
        retention: has the model, the texts and the samples.
        entry: the method and its options.
        resumed: whether training resumes at a later step, so that its start is not at hand.
        progress: the bar.
    """

    def dependencies() -> dict[str, str]:
        """What the stored files depend on."""
        return {
            "base": fingerprint(retention.model.base),
            "retention data": _data_fingerprint(retention),
            "version of the code": _code_fingerprint(entry),
            "retention method": text_fingerprint(type(entry.method).__qualname__, entry.options),
        }

    start = None if resumed else tensors_fingerprint(retention.model.adapter_tensors())
    return RetentionStore(path, dependencies, start=start, progress=progress)


def _data_fingerprint(retention: CounterfactualRetention) -> str:
    pooled = {
        f"{name}.{kind}.{number}": one
        for name, pools in retention.pools.items()
        for kind, pool in pools.items()
        for number, one in enumerate(pool)
    }
    rows = [row.identity for row in retention.marked]
    if any(row.images for row in retention.marked):
        rows.append(retention.prompts.settings())
    frames, samples = contents(pooled)
    if not samples:
        return text_fingerprint(rows, tensors_fingerprint(frames))
    return text_fingerprint(rows, tensors_fingerprint(frames), samples)


def _code_fingerprint(entry: WeightedRegularizer) -> str:
    """The framework's version, and the source of the method's module."""
    source = inspect.getsourcefile(type(entry.method))
    content = Path(source).read_bytes() if source else b""
    return text_fingerprint(FRAMEWORK_VERSION, hashlib.sha256(content).hexdigest())
