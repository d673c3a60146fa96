"""What retention methods are given before the first step, and what they keep of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safe_framework import RetentionRegularizer, RetentionStore, SafeModel
from safe_framework.core.prompt_rows import as_rows
from safe_framework.errors import DataError
from safe_framework.interfaces.types import Frames
from safe_framework.training.retention.counterfactual import (
    CounterfactualRetention,
    RetentionExamples,
    WeightedRegularizer,
)
from tests.support.toys import PAD
from tests.training.conftest import KINDS, ROWS, loss_of, perturb

CPU = torch.device("cpu")
Pools = dict[str, dict[str, list[Frames]]]


class RecordingRegularizer(RetentionRegularizer):
    """Remembers what it was given, draws random numbers, and penalises by a parameter."""

    counterfactual = ("noise",)
    every_step = False

    def __init__(self) -> None:
        self.starts: list[tuple[bool, list[Mapping[str, Tensor]], dict[str, Tensor]]] = []
        self.compared = 0

    def begin(
        self, model: SafeModel, examples: Sequence[Mapping[str, Tensor]], store: RetentionStore
    ) -> None:
        torch.rand(5)
        first = next(iter(model.trainable_parameters().values()))
        kept = store.once(lambda: {"first": first.detach()})
        self.starts.append((model.training, list(examples), kept))

    def penalty(self, logits: Tensor, base_logits: Tensor, mask: Tensor) -> Tensor | None:
        self.compared += 1
        return None

    def parameter_penalty(self) -> Tensor:
        return torch.tensor(3.0)


@pytest.fixture
def recording(model: SafeModel, pools: Pools) -> CounterfactualRetention:
    """Retention by that method alone, at half weight."""
    return CounterfactualRetention(
        model,
        [WeightedRegularizer(0.5, RecordingRegularizer())],
        ROWS,
        pools,
        kinds=(),
        batch_size=2,
        seed=3,
        pad=PAD,
    )


def seen(retention: CounterfactualRetention) -> RecordingRegularizer:
    """The method of ``recording``."""
    method = retention.methods[0].method
    assert isinstance(method, RecordingRegularizer)
    return method


def silent(label: str, done: int, total: int) -> None:
    """Show nothing."""


def start(retention: CounterfactualRetention, folder: Path, resumed: bool = False) -> None:
    """Begin, without a bar."""
    retention.begin(folder, resumed=resumed, progress=silent)


def test_examples_are_the_texts_alone(recording: CounterfactualRetention) -> None:
    """Law: every text comes once, without padding, beside one sample."""
    examples = RetentionExamples(recording, KINDS)
    assert [example["input_ids"].tolist() for example in examples] == [[row] for row in ROWS]
    assert all(example["attention_mask"].all() for example in examples)
    assert all(example["touch__present"].tolist() == [True] for example in examples)


def test_kinds_and_samples_come_in_turn(recording: CounterfactualRetention, pools: Pools) -> None:
    """Law: text i carries the next kind, and each kind's next sample."""
    examples = RetentionExamples(recording, ("noise", "silent"))
    drawn = [example["touch__frames"] for example in examples]
    pool = pools["touch"]
    silence = pool["silent"][0]
    wanted = [pool["noise"][0], silence, pool["noise"][1], silence]
    assert [torch.equal(one, two.values) for one, two in zip(drawn, wanted, strict=True)] == [
        True
    ] * 4


def test_a_method_without_kinds_gets_no_examples(recording: CounterfactualRetention) -> None:
    """Law: a method that wants no irrelevant sample is given no text."""
    assert list(RetentionExamples(recording, ())) == []


def test_methods_begin_in_eval_mode_and_draw_nothing(
    model: SafeModel, recording: CounterfactualRetention, tmp_path: Path
) -> None:
    """Law: dropout is off for them, and what they draw moves no number of the run."""
    model.train()
    before = torch.random.get_rng_state()
    start(recording, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    ((training, examples, _),) = seen(recording).starts
    assert (training, len(examples)) == (False, len(ROWS))


def test_a_step_without_texts_runs_no_model(
    model: SafeModel, recording: CounterfactualRetention
) -> None:
    """Law: where no method wants texts at each step, the loss is the parameter penalty alone."""
    model.base.register_forward_pre_hook(lambda *args: pytest.fail("the base was run"))
    assert loss_of(recording, 0).item() == 0.5 * 3.0
    assert seen(recording).compared == 0


def test_a_run_that_goes_on_reads_the_first_start(
    model: SafeModel, recording: CounterfactualRetention, tmp_path: Path
) -> None:
    """Law: what was kept at the start is what later parts of the run are given."""
    start(recording, tmp_path)
    perturb(model)
    start(recording, tmp_path, resumed=True)
    (_, _, first), (_, _, second) = seen(recording).starts
    assert torch.equal(first["first"], second["first"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: perturb(r.model), "another start"),
        (lambda r: setattr(r, "marked", as_rows([*ROWS[1:], ROWS[0]])), "another retention data"),
        (
            lambda r: setattr(
                r, "methods", [WeightedRegularizer(1, RecordingRegularizer(), {"a": 1})]
            ),
            "retention method",
        ),
        (lambda r: r.model.base.lm_head.weight.data.mul_(2), "another base"),
    ],
)
def test_what_is_stale_is_refused(
    recording: CounterfactualRetention,
    tmp_path: Path,
    change: Callable[[CounterfactualRetention], None],
    words: str,
) -> None:
    """Law: a file that was made from anything else is an error that says from what."""
    start(recording, tmp_path)
    change(recording)
    with pytest.raises(DataError, match=rf"is stale.*{words}.*\nhint: start anew"):
        start(recording, tmp_path)


def test_a_broken_computation_leaves_no_file(tmp_path: Path) -> None:
    """Law: only what was computed whole is kept."""
    store = RetentionStore(tmp_path / "kept.safetensors", dict, start="s")

    def broken() -> dict[str, Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.once(broken)
    assert store.once(lambda: {"a": torch.ones(2)})["a"].tolist() == [1, 1]
    assert store.once(broken)["a"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]


def test_a_run_that_goes_on_without_its_file_is_refused(tmp_path: Path) -> None:
    """Law: later weights are never taken for the start."""
    store = RetentionStore(tmp_path / "kept.safetensors", dict, start=None)
    with pytest.raises(DataError, match=r"is missing.*\nhint: start anew with --no-resume"):
        store.once(dict)
