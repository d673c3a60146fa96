"""Whatever breaks a law is caught, and the finding names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework import verify
from safe_framework.core import layer_hooks
from safe_framework.core.injection import ActiveModality, CallInjection
from safe_framework.core.modality import Modality
from safe_framework.core.model import SafeModel
from safe_framework.verification.certificate import Certificate, Verdict
from tests.support.toys import ToyFusion, attached, llama, tokenizer

pytestmark = pytest.mark.slow


def wrapped(**changes: Any) -> SafeModel:
    """A Llama with one trained toy modality."""
    return attached(llama(**changes), tokenizer=tokenizer())


def findings(certificate: Certificate) -> dict[str, str]:
    """What failed, by the name of its law."""
    return {law.name: "\n".join(law.findings) for law in certificate.failures}


def only_untouched(model: SafeModel) -> str:
    """What is found of L1, where every other law still holds."""
    found = findings(verify(model, calls="quick"))
    assert list(found) == ["Untouched"]
    return found["Untouched"]


# L1: the base


def test_a_resized_embedding_is_named() -> None:
    """The table, and from how many rows to how many it was resized."""
    model = wrapped()
    model.base.resize_token_embeddings(43)
    found = only_untouched(model)
    assert "embedding `model.embed_tokens.weight` was resized from 40 to 43 rows" in found
    assert "`config.vocab_size` was 40 and is 43" in found


@pytest.mark.parametrize("way", ["in place", "behind torch's back", "by another parameter"])
def test_a_moved_weight_is_named(way: str) -> None:
    """One weight that changed is found, however it was written."""
    model = wrapped()
    linear = model.base.model.layers[1].mlp.up_proj
    if way == "in place":
        with torch.no_grad():
            linear.weight[3, 5] += 1
    elif way == "behind torch's back":
        linear.weight.data.add_(1)
    else:
        linear.weight = nn.Parameter(linear.weight.clone(), requires_grad=False)
    assert "weight `model.layers.1.mlp.up_proj.weight`" in only_untouched(model)


def test_a_weight_that_takes_gradients_is_named() -> None:
    """A parameter of the base that was set free is found."""
    model = wrapped()
    model.base.lm_head.weight.requires_grad_(True)
    assert "weight `lm_head.weight` takes a gradient" in only_untouched(model)


class Meddler:
    """A stray hook: it adds nothing, or something."""

    def __init__(self, amount: float = 0.0) -> None:
        self.amount = amount

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.amount


@pytest.mark.parametrize("amount", [0.0, 0.5])
def test_a_stray_hook_is_named(amount: float) -> None:
    """Its module and its class; and what it does to the operations, even if it adds zero."""
    model = wrapped()
    model.base.model.layers[1].mlp.register_forward_hook(Meddler(amount))
    found = findings(verify(model, calls="quick"))
    assert "`model.layers.1.mlp` has a stray forward hook of" in found["Untouched"]
    assert "test_sabotage.Meddler" in found["Untouched"]
    assert "aten.add.Tensor" in found["Off runs the base's operations"]
    assert ("Off is the base" in found) == bool(amount)


def test_a_hook_on_every_module_is_named() -> None:
    """A global hook of torch acts on the base as well."""
    model = wrapped()
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
    try:
        assert "`(every module)` has a stray forward pre-hook" in only_untouched(model)
    finally:
        handle.remove()


def test_a_hook_from_before_is_not_stray() -> None:
    """What the base brought along is a part of it."""
    base = llama()
    base.model.norm.register_forward_hook(Meddler(0.5))
    assert verify(attached(base), calls="quick").holds


def test_a_replaced_layer_is_named() -> None:
    """Another class in a layer's place is found, with both names."""
    model = wrapped()
    model.base.model.layers[0].mlp.act_fn = nn.GELU()
    assert "module `model.layers.0.mlp.act_fn` was a" in only_untouched(model)


def test_a_replaced_method_is_named() -> None:
    """A ``forward`` put on the instance is found."""
    model = wrapped()
    norm = model.base.model.norm
    norm.forward = lambda *args: type(norm).forward(norm, *args)
    assert "method `model.norm.forward` was replaced by" in only_untouched(model)


def test_training_mode_is_named() -> None:
    """A part of the base in training mode is found, and is not repaired in passing."""
    model = wrapped()
    model.base.model.layers[0].train()
    assert "`model.layers.0` is in training mode" in only_untouched(model)
    assert model.base.model.layers[0].training


def test_a_setting_is_named() -> None:
    """A value of the config that changed is found, with both values."""
    model = wrapped()
    model.base.config.rms_norm_eps = 0.5
    assert "`config.rms_norm_eps` was 1e-06 and is 0.5" in only_untouched(model)


def test_other_words_are_named() -> None:
    """A token that was added to the tokenizer is found by its text."""
    model = wrapped()
    model.tokenizer.add_tokens(["<audio>"])
    assert "the tokenizer was given other tokens: `<audio>`" in only_untouched(model)


def test_another_special_token_is_named() -> None:
    """A tokenizer whose padding became another word is found."""
    model = wrapped()
    model.tokenizer.pad_token = "w5"
    assert "`pad_token` was pad and is w5" in only_untouched(model)


class Clumsy(ToyFusion):
    """Writes into the base through a reference that it kept."""

    weight: list[Tensor]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.weight[0].data[0, 0] += 1
        return super().forward(*args, **kwargs)


def test_a_weight_that_moves_during_the_calls_is_named() -> None:
    """What a plugin does to the base while it is on is found by hashes, in a single number."""
    base, fusion = llama(), Clumsy(layers=(0,))
    model = attached(base, fusion=fusion)
    fusion.weight = [base.model.layers[1].mlp.up_proj.weight]
    found = findings(verify(model, calls="quick"))["Untouched"]
    assert "tensor `model.layers.1.mlp.up_proj.weight` changed during the calls" in found


# L2, L3: the core


_ACTIVATE = Modality.activate


def multiplied_by_zero(self: Modality, gate: Any, *rest: Any) -> Any:
    """A gate of each row that is a factor instead of a branch."""
    if not isinstance(gate, Tensor):
        return _ACTIVATE(self, gate, *rest)
    active = _ACTIVATE(self, torch.ones_like(gate), *rest)
    if active is not None:
        active.gates = gate.to(active.rows.device)[active.rows]
    return active


@pytest.fixture
def gate_as_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that multiplies by the gate, also where it is 0."""
    monkeypatch.setattr(Modality, "activate", multiplied_by_zero)


@pytest.mark.usefixtures("gate_as_a_factor")
def test_a_gate_that_multiplies_by_zero_is_caught() -> None:
    """The bits may be the same, but not the operations: the first one too many is named."""
    found = findings(verify(wrapped(), calls="quick"))
    assert "Off is the base" not in found
    traced = found["Off runs the base's operations"]
    assert "forward, gate 0 on each row: at operation" in traced
    assert "in `model.layers.0`: aten." in traced
    assert "too many" in traced
    assert "forward, gate 0 on each row: module `touch" in found["Plugins propose"]


@pytest.mark.usefixtures("gate_as_a_factor")
def test_a_gate_that_multiplies_nan_by_zero_is_caught() -> None:
    """With an adapter of NaN the bits differ as well: the call and the first number are named."""
    model = wrapped()
    model.modality("touch").fusion.scale.data.fill_(float("nan"))
    found = findings(verify(model, calls="quick"))["Off is the base"]
    assert "forward, gate 0 on each row: `logits[0, 0, 0]` is nan, the base has" in found


def test_a_plugin_that_runs_when_it_is_off_is_named() -> None:
    """A module of a modality that runs although it is off is found by its path."""
    model = wrapped()
    projector = model.modality("touch").projector

    def forward(*args: Any, **kwargs: Any) -> Any:
        projector.linear(torch.zeros(1, 4))
        return SafeModel.forward(model, *args, **kwargs)

    model.forward = forward
    found = findings(verify(model, calls="quick"))
    assert "module `touch.projector.linear` ran" in found["Plugins propose"]


class _Shared:
    """A context variable that all threads share, which is what a plain global would be."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> Any:
        old, self.value = self.value, value
        return old

    def reset(self, token: Any) -> None:
        self.value = token


def test_a_leak_between_threads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that looks up a global instead of its thread's own state is found."""
    monkeypatch.setattr(layer_hooks, "_ACTIVE", _Shared())
    found = findings(verify(wrapped(), calls="quick"))
    assert list(found) == ["Threads"]
    assert "the sense leaked between threads" in found["Threads"]


# L4 to L7


def test_a_row_that_changes_with_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a sample that change are found: which row, in which call, and where."""
    apply = ActiveModality.apply

    def everywhere(self: ActiveModality, hidden: Tensor, layer: int, **_: bool) -> Tensor:
        return apply(self, hidden, layer) + 1e-3

    monkeypatch.setattr(ActiveModality, "apply", everywhere)
    found = findings(verify(wrapped(), calls="quick"))
    assert "forward, absent: row 0 has no sample, but `" in found["Rows"]


def test_modalities_that_change_each_other_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one modality off, what it would have done must not reach the other."""
    model = attached(llama(), "touch", "smell")
    off = SafeModel.off

    @contextmanager
    def only_smell(self: SafeModel, *names: str) -> Iterator[None]:
        with off(self, *(names if names != ("touch",) else ("smell",))):
            yield

    monkeypatch.setattr(SafeModel, "off", only_smell)
    found = findings(verify(model, calls="quick"))
    assert "forward with touch off: `" in found["Composition"]


def test_a_bypass_that_answers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused layer that is never reached must be an error."""
    monkeypatch.setattr(CallInjection, "check_fired", lambda self: None)
    found = findings(verify(wrapped(), calls="quick"))
    assert found == {"Nothing silent": "a fused layer was bypassed, and the call answered"}


def test_a_model_that_ignores_samples_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is the base because samples never reach it does not pass."""
    monkeypatch.setattr(ActiveModality, "apply", lambda self, hidden, layer, **_: hidden)
    found = findings(verify(wrapped(), calls="quick"))
    assert "a made-up delta did not reach row 0" in found["On is heard"]


class Forgetful(ToyFusion):
    """Its delta depends on how many positions it is shown at once."""

    def forward(self, hidden: Tensor, memory: Any, layer: int) -> Tensor:
        return super().forward(hidden, memory, layer) * hidden.shape[1]


def test_an_adapter_that_depends_on_later_positions_is_caught() -> None:
    """Decoding with a cache and without gives other tokens."""
    found = findings(verify(attached(llama(), fusion=Forgetful(layers=(0,))), calls="quick"))
    assert "`sequences[" in found["Cached decoding agrees"]


class Tired(ToyFusion):
    """Raises once it is shown more positions than a prompt has."""

    def forward(self, hidden: Tensor, memory: Any, layer: int) -> Tensor:
        if hidden.shape[1] > 8:
            raise ValueError("too long")
        return super().forward(hidden, memory, layer)


def test_an_adapter_that_raises_without_a_cache_is_named() -> None:
    """A plugin's own failure is not taken for the base's."""
    found = findings(verify(attached(llama(), fusion=Tired(layers=(0,))), calls="quick"))
    assert "test_sabotage.Tired" in found["Cached decoding agrees"]


class Rude(ToyFusion):
    """Writes into what it was shown."""

    def forward(self, hidden: Tensor, memory: Any, layer: int) -> Tensor:
        return hidden.add_(1)


def test_a_plugin_that_writes_in_place_is_named() -> None:
    """The plugin is named, and the base is still the base when it is off."""
    certificate = verify(attached(llama(), fusion=Rude(layers=(0,))), calls="quick")
    found = findings(certificate)
    assert "test_sabotage.Rude" in found["Plugins propose"]
    assert "wrote into the hidden states" in found["Plugins propose"]
    verdicts = {law.name: law.verdict for law in certificate.laws}
    assert verdicts["Untouched"] is verdicts["Off is the base"] is Verdict.HOLDS
