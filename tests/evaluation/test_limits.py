"""What limits a modality, by split, and which encoder a probe reads best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from safe_framework.cli.probe import advice, table
from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import read_recipe
from safe_framework.config.schema import Recipe
from safe_framework.data.examples import Example
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation import encoder_comparison
from safe_framework.evaluation import probe as probe_module
from safe_framework.evaluation.encoder_comparison import compare_encoders
from safe_framework.evaluation.limits import by_source, limit_of
from safe_framework.evaluation.probe import cross_validate
from safe_framework.evaluation.results import Answered, Evaluation
from safe_framework.evaluation.summary import sections
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.types import Frames
from tests.support.toys import DIM, ToyEncoder

DRAWN: dict[str, Any] = {"resamples": 200, "seed": 0}


def answered(right: bool, probe: bool, source: str = "") -> Answered:
    """A row of which one or both are right."""
    return Answered(
        "t:1", "what", "red", "red" if right else "blue", "blue", "", "red" if probe else "blue",
        source=source,
    )  # fmt: skip


def rows(own: int, probe: int, count: int = 40, source: str = "") -> list[Answered]:
    """So many rows of which the first are right."""
    return [answered(n < own, n < probe, source) for n in range(count)]


@pytest.mark.parametrize(
    ("own", "probe", "count", "expected", "told"),
    [
        (24, 25, 40, "features", "reaches 62.5 %: another layer, encoder or more sources will"),
        (10, 25, 40, "training", "reaches 62.5 %: more steps, or another projector or fusion"),
        (40, 30, 40, "nothing", "reaches 75.0 %, and nearly all is right"),
        (5, 6, 8, "unknown", "reaches 75.0 %: 8 rows are too few to tell"),
    ],
)
def test_what_limits_is_told_from_the_probe(
    own: int, probe: int, count: int, expected: str, told: str
) -> None:
    """Law: behind the probe training limits, beside it the features, and few rows say nothing."""
    limit = limit_of(rows(own, probe, count), **DRAWN)
    assert limit is not None
    assert limit.limiting == expected
    assert told in limit.advice
    assert limit_of([attrs.evolve(answered(True, True), probe="")], **DRAWN) is None


def test_sources_are_told_apart(evaluation: Evaluation) -> None:
    """Law: each source has its own result and probe, and one never trained on is called so."""
    answers = [*rows(40, 30, source="bank"), *rows(20, 21, source="street"), *rows(9, 9, 9)]
    train = [Example("p", "red", fields={"source": "bank"}), Example("p", "blue")]
    found = by_source(answers, train, **DRAWN)
    assert [(name, one.trained, one.limiting) for name, one in found.items()] == [
        ("bank", True, "nothing"), ("street", False, "features")
    ]  # fmt: skip
    assert by_source(answers, train[1:], **DRAWN)["bank"].trained is None
    evaluation = attrs.evolve(
        evaluation, sources=found, limit=limit_of(answers, **DRAWN), answers=tuple(answers)
    )
    again = Evaluation.from_json(evaluation.to_json())
    assert again.sources == dict(found)
    assert again.answers[0].source == "bank"
    shown = {section.title: section.rows for section in sections(again)}
    assert [row.name for row in shown["Gain by source"]] == [
        "bank", "  its linear probe", "street, never trained on", "  its linear probe"
    ]  # fmt: skip
    assert [row.value for row in shown["Gain"] if row.name == "what limits it"] == ["features"]


@pytest.fixture
def one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that tries one penalty, so that a test takes no seconds."""
    monkeypatch.setattr(probe_module, "_PENALTIES", (1e-1,))


@pytest.mark.usefixtures("one_penalty")
def test_a_row_is_named_by_probes_of_other_rows() -> None:
    """Law: folds name what others show; a class that is in the group left out is never named."""
    generator = torch.Generator().manual_seed(0)
    labels = ["a", "b"] * 10
    features = torch.randn(20, 12, generator=generator).double()
    noise = features.clone()
    features[::2, :8] += 4
    assert list(cross_validate(features, labels)) == labels
    assert sum(map(str.__eq__, cross_validate(noise, labels), labels)) < 17
    assert set(cross_validate(features, labels, groups=labels)[::2]) == {"b"}


class Layered(ToyEncoder):
    """Three layers, of which the second alone shows the answer."""

    def __init__(self, *, layer: int = 0, **others: Any) -> None:
        super().__init__()
        if layer > 2:
            raise RecipeError("`layer` must be between 0 and 2")
        self.layer = layer
        self.layers = torch.nn.Parameter(torch.tensor(float(layer)), requires_grad=False)
        self.requires_grad_(False)

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        values = torch.stack([torch.as_tensor(sample) for sample in samples])
        return {"values": values, "mask": torch.ones(len(values), 3, dtype=torch.bool)}

    def forward(self, **inputs: Tensor) -> Frames:
        values = inputs["values"]
        return Frames(values if self.layer == 1 else 0 * values, inputs["mask"])


@pytest.fixture
def layered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Example]:
    """Rows of two sources, and the encoder of three layers instead of the recipe's."""
    random = np.random.default_rng(0)
    rows = [
        Example(
            "what", "red" if number % 2 else "blue", fields={"source": "ab"[number // 2 % 2]},
            samples={"audio": random.normal(8 * (number % 2), 1, (3, DIM)).astype(np.float32)},
        )
        for number in range(32)
    ]  # fmt: skip

    class Data:
        """The rows as a recipe's data."""

        def __init__(self, recipe: Recipe) -> None:
            assert "audio" in recipe.modalities

        def examples(self, key: str, encoders: Mapping[str, Encoder]) -> list[Example]:
            """Of training alone."""
            assert key == "train"
            return rows

    def made(recipe: Recipe) -> dict[str, Encoder]:
        """The encoder by its options."""
        return {"audio": Layered(**recipe.modalities["audio"].encoder.options)}

    monkeypatch.setattr(encoder_comparison, "encoders_of", made)
    monkeypatch.setattr(encoder_comparison, "RecipeData", Data)
    monkeypatch.setattr(encoder_comparison, "cache_folder", lambda: tmp_path)
    return rows


@pytest.mark.usefixtures("one_penalty")
def test_encoders_are_compared_on_training_rows(layered: list[Example]) -> None:
    """Law: every layer is probed, within and across sources, and the best one is recommended."""
    recipe = read_recipe("one-question", with_data=False)
    found = compare_encoders(recipe)
    assert [score.options["layer"] for score in found] == [0, 1, 2]
    assert [score.own for score in found] == [False, True, False]
    assert found[1].accuracy.value == found[1].other_sources.value == 1.0
    assert max(found[n].accuracy.value for n in (0, 2)) < 0.7
    assert found[1].accuracy.n == 32
    assert compare_encoders(recipe, layers=[1], most=8)[0].accuracy.n == 8
    two = compare_encoders(recipe, models=["one", "two"], layers=[1])
    assert [score.options["model"] for score in two] == ["one", "two"]
    told = advice(found)
    assert "layer = 1" in told
    assert "that the probe never saw" in told
    assert "others are within its interval" in advice(two)
    assert [str(cell) for cell in table(found).columns[1].cells] == ["0", "1", "2"]


def test_what_cannot_be_compared_is_refused(layered: list[Example]) -> None:
    """Law: a layer that is not there, an unknown modality and one answer alone are errors."""
    recipe = read_recipe("one-question", with_data=False)
    with pytest.raises(RecipeError, match="between 0 and 2"):
        compare_encoders(recipe, layers=[1, 5])
    with pytest.raises(SafeError, match=r"has the modalities audio\nhint: .*--modality audio"):
        compare_encoders(recipe, "smell")
    layered[:] = layered[::2]
    with pytest.raises(DataError, match="have fewer than two answers"):
        compare_encoders(recipe)
