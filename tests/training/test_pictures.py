"""Training on rows with pictures: speed-ups change nothing, and the image tower runs once a row."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_rows import PromptEncoder, PromptRow
from safe_framework.core.segments import is_segments
from safe_framework.data.examples import Example
from safe_framework.data.pictures import Picture
from safe_framework.errors import DataError, SafeError
from safe_framework.experimental.base_finetuning.replay import OriginalBaseTeacher, Replay
from safe_framework.interfaces.types import IGNORED, Frames
from safe_framework.training.batches import AnswerCollator, TokenizedExample, tokenize
from safe_framework.training.compute.activation_cache import ActivationCaches
from safe_framework.training.compute.forward import ForwardPlanner, PlainForward
from safe_framework.training.distributed import WHOLE_STEP, StepShard
from safe_framework.training.monitor.measurement import HeldOutEvaluator, HeldOutText
from safe_framework.training.objective import Objective, step_totals
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    RetentionExamples,
    WeightedRegularizer,
)
from safe_framework.training.retention.teacher import Teacher
from safe_framework.training.sampling import TextOrder
from safe_framework.training.train import refuse_mixed_rows
from safe_framework.training.trainer import SafeTrainer, training_arguments
from safe_framework_plugins.projectors.standard import StandardProjector
from safe_framework_plugins.retention.distillation import DistillationRegularizer
from safe_framework_plugins.retention.fisher import FisherRegularizer
from safe_framework_plugins.retention.nullspace import NullSpaceRegularizer
from tests.support.lanes import slow_but
from tests.support.seeing import picture, seeing_bases
from tests.support.toys import DIM, lora
from tests.training.conftest import ArrayEncoder, perturb

BASES = seeing_bases()
ONE_PICTURE = ("blip-2-opt", "blip-2-t5", "instructblip", "florence2")
"""Bases whose processors take one picture a text."""
ALWAYS_SEEING = ("blip-2-opt", "blip-2-t5", "instructblip")
"""Bases that read no text without a picture."""
NEEDING_PIXELS = ("mllama",)
"""Bases whose upper layers look at pictures too, so that their tower runs at each step."""
PICTURES = [["red"], ["blue", "green"], [], ["white"], []]
"""Of each row; the same for the task and for retention."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "safe_framework.training.compute.activation_cache.cache_folder", lambda: tmp_path
    )


class World:
    """A model on a base that sees, with a modality at its last layer, and rows for it.

    Args:
        name: of the base.
        pictures: of each row, by colour.
    """

    def __init__(self, name: str, pictures: list[list[str]] = PICTURES) -> None:
        base, processor = BASES[name]()
        self.model = SafeModel(base, processor)
        self.model.add_modality(
            "touch",
            encoder=ArrayEncoder(),
            projector=StandardProjector(
                DIM, self.model.stack.hidden_size, tokens=2, hidden_dim=8, dropout=0.0
            ),
            fusion=lora(self.model, layers=[-1]),
        )
        perturb(self.model)
        self.model.eval()
        self.prompts, self.pad = PromptEncoder.of(self.model), self.model.processor.padding
        if name in ALWAYS_SEEING:
            pictures = [colours or ["black"] for colours in pictures]
        if name in ONE_PICTURE:
            pictures = [colours[:1] for colours in pictures]
        shown = [
            [Picture(picture(colour, 8 + 4 * place, 12)) for place, colour in enumerate(colours)]
            for colours in pictures
        ]
        drawn = frames(len(shown))
        self.examples = [
            tokenize(
                self.prompts,
                Example("what is" + " this" * n, ["red", "cat dog"][n % 2], images=tuple(images)),
                {"touch": drawn[n]} if n != 1 else {},
            )
            for n, images in enumerate(shown)
        ]
        self.texts = [
            self.prompts.whole_text("the cat sat on the" + " mat" * n, images)
            for n, images in enumerate(shown)
        ]

    def caches(self, keep: tuple[str, ...]) -> ActivationCaches:
        """The caches of a run, tried on a text without pictures."""
        shown = self.examples[:2]
        if not self.prompts.always_sees:
            text = self.prompts.prompt("what is this")
            shown = [TokenizedExample(text, [5], "", one.frames) for one in shown]
        made = AnswerCollator({"touch": DIM}, self.pad, self.prompts)(shown)
        given = {key: made[key] for key in made if key not in ("labels", "answers")}
        return ActivationCaches(self.model, keep, given, self.pad, prompts=self.prompts)

    def retention(self, caches: ActivationCaches | None, method: Any = None) -> Any:
        """All texts in one step, beside samples of two kinds."""
        pools = {"touch": {"noise": frames(3), "silent": frames(1), "shuffled": frames(2)}}
        used = WeightedRegularizer(2.0, method or DistillationRegularizer())
        return CounterfactualRetention(
            self.model, [used], self.texts, pools, kinds=("noise", "silent"),
            batch_size=len(self.texts), seed=3, pad=self.pad, caches=caches,
        )  # fmt: skip

    def run(
        self, speedups: str, shards: int = 1, closed: bool = False
    ) -> tuple[Tensor, list[Tensor], int]:
        """Losses and gradients of a step, and how many pictures it showed to the image tower.

        Args:
            speedups: ``"off"``, ``"on"`` or ``"stored"``, with everything computed before.
            shards: in which the step is computed.
            closed: whether the gate is at 0.
        """
        caches = self.caches(("prefix", "teacher") if speedups == "stored" else ())
        rows = [example.row for example in self.examples]
        states, retention = caches.task_texts(rows), self.retention(caches)
        objective = Objective(
            self.model, retention, caches=caches, states=states, speedups=speedups != "off"
        )
        if speedups == "stored":
            if states is not None:
                states.precompute([row for row in rows if states.contains([row])], "reading")
            retention.precompute(1, lambda *told: None)
        needed = partial(caches.pixels_needed, states)
        collate = AnswerCollator({"touch": DIM}, self.pad, self.prompts, needed).calls
        self.model.set_gate(0.0 if closed else 1.0)
        parts = [StepShard(n, shards) for n in range(shards)] if shards > 1 else [WHOLE_STEP]
        steps = [collate(part.of(self.examples)) for part in parts]
        totals, losses = step_totals(steps, ["touch"]), torch.zeros(2)
        parameters = list(self.model.trainable_parameters().values())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        with counting_pictures(self.model) as seen:
            for part, step in zip(parts, steps, strict=True):
                loss, shares = objective(step["calls"], totals, 3, part)
                losses += shares
                found = torch.autograd.grad(loss, parameters)
                gradients = [sum(both) for both in zip(gradients, found, strict=True)]
        caches.close()
        return losses, gradients, sum(seen)


def frames(count: int) -> list[Frames]:
    """One row of frames each, of unequal lengths."""
    drawn = torch.Generator().manual_seed(5)
    values = [torch.randn(1, 1 + n % 3, DIM, generator=drawn) for n in range(count)]
    return [Frames(one, torch.ones(one.shape[:2], dtype=torch.bool)) for one in values]


@contextmanager
def counting_pictures(model: SafeModel) -> Iterator[list[int]]:
    """Within the block, how many pictures (or patches) each call of the image tower is shown."""
    stack, seen = set(model.stack.of(model.base).modules()), list[int]()
    towers = ("vision", "patch_embed")
    inside = [
        module
        for name, module in model.base.named_modules()
        if module not in stack
        and any(one in name for one in towers)
        and not list(module.children())
        and list(module.parameters())
    ]
    assert inside
    handle = inside[0].register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


def assert_near(ours: Tensor, plain: Tensor, name: str, terms: int = 4096) -> None:
    """Within the rounding of long sums: of the tokens of a step, through all layers and words."""
    rounding = terms * torch.finfo(plain.dtype).eps
    assert (ours - plain).norm() <= rounding * plain.norm(), name


@pytest.mark.parametrize("name", slow_but(["llava", "mllama"], BASES))
def test_a_step_with_pictures_is_the_same_without_speedups(name: str) -> None:
    """Law: losses and gradients of rows with one picture, several and none are the plain ones.

    Where everything is stored, the image tower has nothing to do.
    """
    world = World(name)
    plain, wanted, towers = world.run("off")
    assert plain.min() > 1e-3
    assert towers > 0
    parameters = list(world.model.trainable_parameters())
    for speedups in ("on", "stored"):
        losses, gradients, seen = world.run(speedups)
        assert_near(losses, plain, f"losses, {speedups}")
        for parameter, gradient, one in zip(parameters, wanted, gradients, strict=True):
            assert bool(gradient.norm() > 0) is not is_segments(parameter), parameter
            assert_near(one, gradient, f"{parameter}, {speedups}")
        if speedups == "stored" and name not in NEEDING_PIXELS and world.prompts.start is None:
            assert seen == 0


@pytest.mark.parametrize("speedups", ["off", "on", "stored"])
def test_the_shards_of_a_step_add_up(speedups: str) -> None:
    """Law: computed in parts, each with other rows with pictures, a step has the same losses."""
    world = World("llava", [*PICTURES, ["green"]])
    whole, gradients, _ = world.run(speedups)
    parts, summed, _ = world.run(speedups, shards=2)
    assert_near(parts, whole, "losses")
    for one, total in zip(gradients, summed, strict=True):
        assert_near(total, one, "gradients")


@pytest.mark.parametrize("speedups", ["on", "stored"])
def test_a_closed_gate_leaves_pictures_seen(speedups: str) -> None:
    """Law: where no sense acts, a row with pictures has the loss that the base gives it."""
    world = World("llava")
    plain, _, _ = world.run("off", closed=True)
    given, _, _ = world.run(speedups, closed=True)
    assert plain[0] > 1
    assert_near(given, plain, "losses")


@pytest.mark.parametrize("positions", ["the text's own", "by its pictures"])
def test_rows_with_pictures_are_packed_where_that_is_exact(
    positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: stored rows with pictures are packed, but for a base whose positions they decide."""
    packed = list[bool]()
    whole = ForwardPlanner._run_packed

    def recording(self: Any, call: Any, *rest: Any) -> Any:
        packed.append(call.pictures)
        return whole(self, call, *rest)

    monkeypatch.setattr(ForwardPlanner, "_run_packed", recording)
    world = World("llava")
    if positions == "by its pictures":
        image = world.model.base.config.image_token_id

        def shift(base: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            """Count each picture as one position, as Qwen2-VL does."""
            ids = kwargs["input_ids"]
            if kwargs.get("position_ids") is None and (ids == image).sum() > 1:
                counted = (ids != image).long().cumsum(1)
                return args, {**kwargs, "position_ids": counted}
            return args, kwargs

        world.model.base.register_forward_pre_hook(shift, with_kwargs=True, prepend=True)
    plain, wanted, _ = world.run("off")
    losses, gradients, _ = world.run("stored")
    assert_near(losses, plain, "losses")
    for one, gradient in zip(gradients, wanted, strict=True):
        assert_near(one, gradient, "gradients")
    exact = positions == "the text's own"
    assert packed.count(True) == (2 if exact else 1)  # the first one is the trial


def test_the_tower_runs_once_a_row() -> None:
    """Law: what is stored of a row is computed by one look at its pictures, and by no later run."""
    world, pictures = World("llava", [["red"], ["blue", "green"], []]), 3
    rows = [example.row for example in world.examples]
    for runs in (1, 0):
        caches = world.caches(("prefix", "teacher"))
        states, retention = caches.task_texts(rows), world.retention(caches)
        assert states is not None
        with counting_pictures(world.model) as seen:
            states.precompute(rows, "reading")
            assert sum(seen) == runs * pictures
            retention.precompute(9, lambda *told: None)
            assert sum(seen) == 2 * runs * pictures  # its texts are other rows
        caches.close()


def test_layers_that_are_recomputed_give_the_same(tmp_path: Path) -> None:
    """Law: with gradient checkpointing, rows with pictures have the same losses and gradients."""
    world = World("llava")
    plain, wanted, _ = world.run("off")
    world.model.gradient_checkpointing_enable()
    world.model.train()
    for speedups in ("off", "on", "stored"):
        losses, gradients, _ = world.run(speedups)
        assert_near(losses, plain, speedups)
        for one, gradient in zip(gradients, wanted, strict=True):
            assert_near(one, gradient, speedups)


@pytest.mark.parametrize("name", slow_but(["llava", "paligemma"], BASES))
def test_an_answer_does_not_see_itself(name: str) -> None:
    """Law: what is predicted of an answer does not depend on the tokens that are predicted."""
    world = World(name)
    row = max(world.examples, key=lambda example: len(example.answer)).row
    target = "target" if row.target else "ids"
    other = attrs.evolve(row, **{target: (*row.predicting[:-2], row.predicting[-2] + 1, 1)})
    logits = [
        world.model.base(**world.prompts.collate([one], world.pad)).logits for one in (row, other)
    ]
    assert_near(logits[0][:, :-2], logits[1][:, :-2], "before the changed token")
    assert not torch.allclose(logits[0][:, -2:], logits[1][:, -2:])


@pytest.mark.parametrize("kept", [(), ("prefix", "teacher")])
def test_the_trainer_trains_on_pictures(kept: tuple[str, ...], tmp_path: Path) -> None:
    """Law: steps in two parts on rows with pictures and without move the adapter alone."""
    world = World("llava")
    caches = world.caches(kept)
    spec = TrainingSpec(
        max_steps=4, batch_size=4, retention_batch_size=4, gradient_accumulation_steps=2,
        warmup_steps=0, align_steps=0, projector_learning_rate=1e-2,
    )  # fmt: skip
    retention = world.retention(caches)
    retention.batch_size = retention.order.batch_size = 4
    trainer = SafeTrainer(
        world.model, training_arguments(spec, tmp_path), world.examples, spec,
        retention=retention, caches=caches, pad=world.pad,
    )  # fmt: skip
    base = {name: one.clone() for name, one in world.model.base.state_dict().items()}
    before = [one.detach().clone() for one in world.model.trainable_parameters().values()]
    trainer.precompute(lambda *told: None)
    with counting_pictures(world.model) as seen:
        trainer.train()
    caches.close()
    assert bool(seen) == (not kept)
    assert np.isfinite(trainer.state.log_history[0]["loss"])
    after = world.model.trainable_parameters().values()
    assert all(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    kept_base = world.model.base.state_dict()
    assert all(torch.equal(one, kept_base[name]) for name, one in base.items())


def test_replayed_texts_have_their_pictures() -> None:
    """Law: the replay of stage B distils texts with pictures and without, by their words."""
    world = World("llava")
    teacher = Teacher(world.model, world.pad, prompts=world.prompts)
    order = TextOrder([row.words for row in world.texts], len(world.texts), seed=3)
    replay = Replay(
        world.texts, OriginalBaseTeacher(world.model, teacher), DistillationRegularizer(), 1.0,
        order, None, world.pad,
    )  # fmt: skip
    terms = list(replay.terms(0, torch.device("cpu")))
    assert [term.call.pictures for term in terms] == [False, True]
    assert sum(int(term.call.positions.sum()) for term in terms) == sum(
        row.words for row in world.texts
    )
    with counting_pictures(world.model) as seen:
        losses = [
            term.loss(predicted)
            for term, predicted in zip(
                terms, PlainForward(world.model).predictions([t.call for t in terms]), strict=True
            )
        ]
    assert sum(seen) == 2 * sum(map(len, PICTURES))
    assert sum(losses) < 1e-6  # the base has not changed


def test_devices_that_share_layers_want_rows_alike() -> None:
    """Law: rows with pictures beside others are refused where each device must call alike."""
    seen, plain = PromptRow([3], [Picture(picture("red"))]), PromptRow([3])
    refuse_mixed_rows("training data", [seen, seen])
    refuse_mixed_rows("training data", [plain])
    with pytest.raises(SafeError, match="some rows of the training data have pictures"):
        refuse_mixed_rows("training data", [seen, plain])


def test_another_picture_is_another_row() -> None:
    """Law: states are those of the row's own picture, and of the processor's settings."""
    world = World("llava", [["red"], ["blue"]])
    caches = world.caches(("prefix",))
    same = [world.prompts.whole_text("the cat", row.images) for row in world.texts]
    assert same[0].ids == same[1].ids
    states = caches.retention_texts(same)
    assert states is not None
    red, blue = (one["below"] for one in states.of(same))
    assert not torch.equal(red, blue)
    files = len(list(states.folder.iterdir()))
    world.model.processor.base_processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    other = world.caches(("prefix",)).retention_texts(same)
    assert other is not None
    assert not torch.equal(other.of(same)[0]["below"], red)
    assert len(list(states.folder.iterdir())) == files + 1


def test_only_the_answer_is_labelled() -> None:
    """Law: labels are the answer's ids behind the prompt as the base's processor expanded it."""
    world = World("llava")
    calls = AnswerCollator({"touch": DIM}, world.pad, world.prompts).calls(world.examples)["calls"]
    assert len(calls) == 2
    for call in calls:
        for number, (text,) in enumerate(call["answers"]):
            ids, labels = call["input_ids"][number], call["labels"][number]
            learned, answer = labels != IGNORED, world.prompts.answer(text)
            assert labels[learned].tolist() == ids[learned].tolist() == answer
            assert learned.nonzero()[0] == call["attention_mask"][number].sum() - len(answer)


def test_a_picture_that_does_not_fit_is_an_error_with_its_place() -> None:
    """Law: a row that names more pictures than it has is refused with file and row."""
    world = World("llava")
    example = Example(
        "<image> <image> what", "red", place="train.jsonl:3", images=(Picture(picture("red")),)
    )
    with pytest.raises(DataError, match=r"^train\.jsonl:3: "):
        tokenize(world.prompts, example, {})


@pytest.mark.parametrize("method", [FisherRegularizer, NullSpaceRegularizer])
def test_retention_methods_see_pictures(method: type, tmp_path: Path) -> None:
    """Law: a method's examples are calls with their texts' pictures, and it computes from them."""
    world = World("llava")
    retention = world.retention(None, method())
    shown = list(RetentionExamples(retention, ("noise",)))
    assert [len(one.get("pixel_values", ())) for one in shown] == [1, 2, 0, 1, 0]
    with counting_pictures(world.model) as seen:
        retention.begin(tmp_path, resumed=False, progress=lambda *told: None)
    assert seen == [1, 2, 1]


def test_the_monitor_measures_what_is_seen() -> None:
    """Law: held-out texts and questions are measured with their pictures."""
    world = World("llava")
    drawn = frames(len(world.texts))
    texts = [
        HeldOutText(row, row, {"touch": one}) for row, one in zip(world.texts, drawn, strict=True)
    ]
    evaluator = HeldOutEvaluator(
        world.model, world.examples, texts, batch_size=2, max_new_tokens=2, pad=world.pad
    )
    counts = evaluator.count()
    world.model.set_gate(1.0)
    agreed, counted = [], []
    for text in evaluator.texts:
        own = world.prompts.collate([text.plain], world.pad)
        frames_of = text.frames["touch"]
        heard = world.model(
            **own,
            touch__present=torch.tensor([True]),
            touch__frames=frames_of.values,
            touch__frames_mask=frames_of.mask,
        )
        base = world.model.base(**own)
        words = own["input_ids"] != world.model.base.config.image_token_id
        same = heard.logits.argmax(-1) == base.logits.argmax(-1)
        agreed.append(int(same[words].sum()))
        counted.append(int(words.sum()))
    assert counts.agreed == tuple(agreed)
    assert counts.positions == tuple(counted)
    assert len(counts.right) == len(world.examples)
    assert np.isfinite(counts.task_loss)
