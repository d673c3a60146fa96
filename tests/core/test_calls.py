"""What a call refuses: rows, keys and gates that would drop a sample silently."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError, SampleError
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


@pytest.mark.parametrize("gate", [-0.1, 1.1, math.nan, math.inf, torch.tensor([0.5, 1.5])])
def test_a_gate_of_a_call_is_from_0_to_1(model: SafeModel, gate: Any) -> None:
    """Every other strength is refused, also one among many."""
    with pytest.raises(SafeError, match="between 0 and 1"):
        model(**texts(model.base, 2, 3), **felt(2), gate=gate)


def test_there_is_a_gate_for_each_row(model: SafeModel) -> None:
    """Three strengths for two rows are refused."""
    with pytest.raises(SafeError, match="`gate` must hold 2 numbers"):
        model(**texts(model.base, 2, 3), **felt(2), gate=torch.ones(3))


def test_a_gate_names_an_attached_modality(model: SafeModel) -> None:
    """A misspelt name does not leave a gate open."""
    with pytest.raises(SafeError, match=r"no modality `tuoch`\nhint: .*touch"):
        model(**texts(model.base, 2, 3), **felt(2), gate={"tuoch": 0.0})


@pytest.mark.parametrize("gate", [-0.1, 1.1, math.nan])
def test_a_set_gate_is_from_0_to_1(model: SafeModel, gate: float) -> None:
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
