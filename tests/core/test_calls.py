"""What a call refuses: rows, keys and gates that would drop a sample silently."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError, SampleError
from safe_framework.utils.tensors import bitwise_equal
from tests.support.toys import ToyEncoder, ToyFusion, ToyProjector, attached, felt, llama, texts


@pytest.fixture(scope="module")
def model() -> SafeModel:
    """A Llama that can touch."""
    return attached(llama())


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_as_many_rows_as_texts(model: SafeModel, method: str, rows: int) -> None:
    """One sample for four texts is refused, not stretched over them as beams would be."""
    batch = texts(model.base, 4, 3)
    with pytest.raises(SampleError, match=f"`touch` came with {rows} rows for 4 texts"):
        getattr(model, method)(**batch, **felt(rows))


def test_rows_are_counted_in_positional_texts_and_in_embeddings(model: SafeModel) -> None:
    """The texts may be positional or embeddings."""
    batch = texts(model.base, 4, 3)
    with pytest.raises(SampleError, match="2 rows for 4 texts"):
        model(batch["input_ids"], **felt(2))
    with pytest.raises(SampleError, match="2 rows for 4 texts"):
        model(inputs_embeds=torch.zeros(4, 3, 16), **felt(2))


def test_the_tensors_of_a_modality_have_one_number_of_rows(model: SafeModel) -> None:
    """A batch that was sliced unevenly is refused, with the numbers."""
    samples = felt(2) | {"touch__mask": torch.ones(3, 3, dtype=torch.bool)}
    with pytest.raises(SampleError, match=r"different numbers of rows: .*'touch?|'mask': 3"):
        model(**texts(model.base, 2, 3), **samples)


def test_presence_is_always_given(model: SafeModel) -> None:
    """Samples without `present` are refused, with the way to make a batch."""
    samples = felt(2)
    del samples["touch__present"]
    with pytest.raises(SampleError, match=r"without `touch__present`\nhint: .*processor"):
        model(**texts(model.base, 2, 3), **samples)


def test_an_unattached_modality_is_refused(model: SafeModel) -> None:
    """Keys of another modality name the attached ones."""
    with pytest.raises(SampleError, match=r"`smell`, which is not attached\nhint: .*touch"):
        model(**texts(model.base, 2, 3), **felt(2, "smell"))


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_a_raw_sample_is_refused(model: SafeModel, method: str) -> None:
    """A base that swallows unknown keywords must not swallow a sample."""
    with pytest.raises(SampleError, match=r"`touch`.*\nhint: .*processor"):
        getattr(model, method)(**texts(model.base, 1, 3), touch=torch.ones(2, 4))


def test_a_modality_comes_in_tensors(model: SafeModel) -> None:
    """A list where a tensor belongs is refused rather than handed to the base."""
    with pytest.raises(SampleError, match=r"`touch__present` is a list, not a tensor of a batch"):
        model(**texts(model.base, 1, 3), touch__present=[True])


NO_STRENGTHS = [
    -0.1, 1.1, math.nan, math.inf, 1j, "0.5", b"1", {0.5}, range, np.float32(2), np.array([2.0]),
    [None, 1.0], torch.tensor([0.5, 1.5]), torch.tensor([math.nan, 0.0]), {"touch": 2},
]  # fmt: skip


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("gate", NO_STRENGTHS, ids=repr)
def test_a_gate_of_a_call_is_from_0_to_1(model: SafeModel, gate: Any, heard: bool) -> None:
    """Every other strength is refused, also one among many and where there is no sample."""
    with pytest.raises(SafeError, match="between 0 and 1"):
        model(**texts(model.base, 2, 3), **(felt(2) if heard else {}), gate=gate)


@pytest.mark.parametrize("gate", [torch.ones(3), np.ones(3), [1.0], [], torch.ones(2, 1)], ids=repr)
def test_there_is_a_gate_for_each_row(model: SafeModel, gate: Any) -> None:
    """As many strengths as rows are given, or one."""
    with pytest.raises(
        SafeError, match=r"`gate` must hold 2 (numbers|strengths), one for each row"
    ):
        model(**texts(model.base, 2, 3), **felt(2), gate=gate)


SAME_GATES: list[tuple[Any, float | list[float]]] = [
    (np.float32(0.5), 0.5), (np.int64(1), 1.0), (np.bool_(False), 0.0), (np.array(0.5), 0.5),
    (Fraction(1, 2), 0.5), (torch.tensor(0.5), 0.5), (True, 1.0), (-0.0, 0.0),
    (np.array([0, 1]), [0.0, 1.0]), (range(2), [0.0, 1.0]), ((np.float32(0), True), [0.0, 1.0]),
    (torch.tensor([False, True]), [0.0, 1.0]), ({"touch": np.float32(0.5)}, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "plain"), SAME_GATES, ids=repr)
def test_a_number_of_any_library_is_a_strength(model: SafeModel, gate: Any, plain: Any) -> None:
    """A gate out of NumPy, torch or the standard library is the number that it is."""
    given = {**texts(model.base, 2, 3), **felt(2)}
    assert bitwise_equal(model(**given, gate=gate).logits, model(**given, gate=plain).logits)


@pytest.mark.parametrize("gate", [np.float32(0.5), np.int64(1), np.array(0.5), torch.tensor(0.5)])
def test_a_set_gate_is_a_plain_number(gate: Any) -> None:
    """What is set is a float, whichever library the number was of."""
    model = attached(llama())
    model.set_gate(gate)
    assert model.gates == {"touch": float(gate)}
    assert type(model.gates["touch"]) is float


def test_a_gate_names_an_attached_modality(model: SafeModel) -> None:
    """A misspelt name does not leave a gate open."""
    with pytest.raises(SafeError, match=r"no modality `tuoch`\nhint: .*touch"):
        model(**texts(model.base, 2, 3), **felt(2), gate={"tuoch": 0.0})


@pytest.mark.parametrize(
    "gate", [-0.1, 1.1, math.nan, None, [1.0], {"touch": 1.0}, "0.5"], ids=repr
)
def test_a_set_gate_is_from_0_to_1(model: SafeModel, gate: Any) -> None:
    """A wrong strength is refused and leaves the gate as it was."""
    with pytest.raises(SafeError, match="between 0 and 1"):
        model.set_gate(gate, "touch")
    assert model.gates == {"touch": 1.0}


def test_a_gate_between_is_between(model: SafeModel) -> None:
    """The gate scales the first fused layer's delta linearly."""
    batch = texts(model.base, 1, 3) | felt(1)
    seen: list[torch.Tensor] = []
    layer = model.base.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for gate in (0.0, 0.5, 1.0):
            model(**batch, gate=gate)
    handle.remove()
    torch.testing.assert_close(seen[1], (seen[0] + seen[2]) / 2)
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["touch__me", "two words", "", "1st", "keys"])
def test_a_name_can_be_a_keyword(name: str) -> None:
    """A name that could not be a key of a batch is refused."""
    with pytest.raises(SafeError, match=f"cannot be called `{name}`"):
        attached(llama(), name)


def test_a_name_is_given_once() -> None:
    """A second modality of one name is refused and the first stays."""
    with pytest.raises(SafeError, match="`touch` is already attached"):
        attached(llama(), "touch", "touch")


@pytest.mark.parametrize("layers", [(2,), (0, 7), (-1,)])
def test_a_fused_layer_exists(layers: tuple[int, ...]) -> None:
    """The error says which layers there are, and nothing was attached."""
    model = SafeModel(llama())
    with pytest.raises(SafeError, match="layers 0 to 1"):
        model.add_modality(
            "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion(layers=layers)
        )
    assert not model.modalities


def test_a_modality_is_fused_somewhere() -> None:
    """An adapter without layers would ignore every sample."""
    with pytest.raises(SafeError, match="names no layer"):
        attached(llama(), fusion=ToyFusion(layers=()))


@pytest.mark.parametrize("method", ["remove_modality", "modality"])
def test_an_unknown_modality_is_named(model: SafeModel, method: str) -> None:
    """The error lists the attached ones."""
    with pytest.raises(SafeError, match=r"no modality `smell`\nhint: attached modalities: touch"):
        getattr(model, method)("smell")


def test_off_knows_its_modalities(model: SafeModel) -> None:
    """A misspelt name in ``off`` is an error."""
    with pytest.raises(SafeError, match="no modality `tuoch`"), model.off("tuoch"):
        pass


def test_a_new_model_is_in_evaluation_mode() -> None:
    """As a loaded model is: no dropout acts before ``train()``, and none after ``eval()``."""
    model = attached(llama())
    modules = list(model.modules())
    assert not any(module.training for module in modules)
    assert model.train().modality("touch").projector.training
    assert not any(module.training for module in model.eval().modules())
