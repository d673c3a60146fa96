"""Where the decoder layers of a base are, and which bases are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.core.base_model import installed_hooks
from safe_framework.core.layer_discovery import find_layers
from safe_framework.core.model import SafeModel
from safe_framework.errors import InjectionError, SafeError, UnsupportedBaseError
from tests.support.toys import (
    HIDDEN,
    LAYERS,
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    bart,
    felt,
    gpt2,
    llama,
    llava,
    lora,
    opt,
    t5,
    texts,
)

PATHS = {
    llama: "model.layers",
    gpt2: "transformer.h",
    opt: "model.decoder.layers",
    bart: "model.decoder.layers",
    t5: "decoder.block",
    llava: "model.language_model.layers",
}


@pytest.mark.parametrize("base", PATHS, ids=lambda base: base.__name__)
def test_the_layers_are_found(base: Any) -> None:
    """The rule finds the text decoder's layers, not an encoder's or a vision tower's."""
    model = base()
    assert find_layers(model)[0] == PATHS[base]
    assert SafeModel(model).stack.path == PATHS[base]


def test_a_path_overrules_the_rule() -> None:
    """``layers_path`` names another list of layers."""
    model = bart()
    assert find_layers(model, "model.encoder.layers") == ("model.encoder.layers",)


class TwoLists(nn.Module):
    """A list of the usual name that never runs, and a longer one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=9)
        self.embed = nn.Embedding(9, HIDDEN)
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN)])
        self.steps = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(2)])

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        for step in self.steps:
            hidden = step(hidden)
        return SimpleNamespace(logits=hidden)


def test_of_two_lists_the_one_that_runs_is_taken() -> None:
    """What a call shows overrules the names."""
    assert find_layers(TwoLists()) == ("layers", "steps")
    assert SafeModel(TwoLists()).stack.path == "steps"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.layer", r"no module at `layers_path` = `model\.layer`"),
        ("model", "is a LlamaModel, not a ModuleList"),
        ("lm_head", "is a Linear, not a ModuleList"),
    ],
)
def test_a_wrong_path_says_what_is_there(path: str, message: str) -> None:
    """A path to nothing, or to something else, is refused."""
    with pytest.raises(UnsupportedBaseError, match=message):
        find_layers(llama(), path)


class Toy(nn.Module):
    """A model of two layers that calls them in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=9, num_hidden_layers=2)
        self.embed = nn.Embedding(9, HIDDEN)
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(2)])
        self.bypassed = False

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = self.call(layer, hidden)
        return SimpleNamespace(logits=hidden)

    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer.forward(hidden) if self.bypassed else layer(hidden)


class Bypasses(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer.forward(hidden)


class SkipsTheLast(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return hidden if layer is self.layers[1] else layer(hidden)


class LengthFirst(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden.transpose(0, 1)).transpose(0, 1)


class StreamsInside(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden[:, :, None].expand(-1, -1, 2, -1)).mean(2)


class StreamsOutside(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden.expand(4, -1, -1, -1)).mean(0)


class Flat(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden.flatten(0, 1)).view_as(hidden)


class Lost(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return hidden + 0 * layer(hidden).mean()


class Twice(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(layer(hidden))


class LearnsLast(Toy):
    """Runs its layers twice, first without gradients."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        with torch.no_grad():
            first = self.layers[1](self.layers[0](hidden))
        return SimpleNamespace(logits=self.layers[1](self.layers[0](hidden + first)))


class Masks(Toy):
    """Never says its first word, as models do whose ids are of images too."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        out = super().forward(input_ids, **kwargs)
        out.logits[..., 0] = torch.finfo(out.logits.dtype).min
        return out


class Fails(Toy):
    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        raise KeyError("pixel_values")


class Keyword(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(), _Layer()])

    def call(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden_states=hidden)


class _Layer(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * hidden_states


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Bypasses(), "`Bypasses` ran without calling any layer of `layers`"),
        (Flat(), r"`layers` take hidden states of \(15, 16\) in a call of 3 rows"),
        (Fails(), "`Fails` failed on `input_ids`, `attention_mask`: KeyError: 'pixel_values'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_base_that_cannot_be_served_is_refused(base: nn.Module, message: str) -> None:
    """The refusal says what was seen, gives a hint, and leaves no hook behind."""
    with pytest.raises(UnsupportedBaseError, match=message) as caught:
        SafeModel(base)
    assert caught.value.hint
    assert not any(module._forward_pre_hooks for module in base.modules())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (SkipsTheLast(), "layer 1 of `SkipsTheLast` cannot be fused: it did not run"),
        (Lost(), "the input of layer 1 of `Lost` does not reach its outputs"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_that_cannot_be_served_is_refused(base: nn.Module, message: str) -> None:
    """Other layers may be used; this one is refused with the reason, and no hook is left."""
    model = SafeModel(base)
    with pytest.raises(UnsupportedBaseError, match=message) as caught:
        model.add_modality(
            "touch",
            encoder=ToyEncoder(),
            projector=ToyProjector(),
            fusion=ToyFusion(layers=[1]),
        )
    assert caught.value.hint
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_masked_logits_hide_no_arrival() -> None:
    """A delta is seen to arrive beside logits that are as low as a number can be."""
    assert attached(Masks()).modalities


@pytest.mark.parametrize("kind", [LengthFirst, StreamsInside, StreamsOutside])
def test_other_layouts_are_served_alike(kind: type[Toy]) -> None:
    """Where streams are copies of one state, each row gets the deltas of a plain base."""
    plain, other = Toy(), kind()
    other.load_state_dict(plain.state_dict())
    ids, samples = torch.tensor([[1, 2, 3], [4, 5, 6]]), felt(2, present=[False, True])
    expected = attached(plain)(input_ids=ids, **samples).logits
    torch.testing.assert_close(attached(other)(input_ids=ids, **samples).logits, expected)


def test_a_repeated_stack_is_fused_once_a_pass() -> None:
    """Of two runs of a layer in one call only the first is given the delta."""
    base = Twice()
    model, ids, samples = attached(base), torch.tensor([[1, 2]]), felt(1)
    seen: list[Tensor] = []
    handle = base.layers[0].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with model.off():
        model(input_ids=ids, **samples)
    model(input_ids=ids, **samples)
    handle.remove()
    alone, active = seen[:2], seen[2:]
    assert not torch.equal(active[0], alone[0])
    assert torch.equal(active[1], base.layers[0](active[0]))


def test_a_modality_enters_where_it_can_learn() -> None:
    """Of two passes, the first that lets gradients through."""
    model, ids = attached(LearnsLast()), torch.tensor([[1, 2]])
    assert (model.stack.passes, model.stack.entry) == (2, 1)
    model(input_ids=ids, **felt(1)).logits.sum().backward()
    assert all(p.grad is not None for p in model.trainable_parameters().values())


def test_an_encoder_can_be_fused() -> None:
    """``side="encoder"`` enters the layers beside the decoder, in training and generation."""
    base = bart()
    model = SafeModel(base, side="encoder")
    assert model.stack.path == "model.encoder.layers"
    model.add_modality(
        "touch", encoder=ToyEncoder(), projector=ToyProjector(), fusion=ToyFusion(layers=[0])
    )
    batch, samples = texts(base, 2, 4), felt(2)
    assert not torch.equal(model(**batch, **samples).logits, model(**batch).logits)
    prompt = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    model.generate(**prompt, **samples, num_beams=2, max_new_tokens=3)
    with pytest.raises(UnsupportedBaseError, match="has no encoder beside its decoder"):
        SafeModel(llama(), side="encoder")


def test_a_base_without_layers_is_refused() -> None:
    """A model without a list of modules gives an error that shows how to name one."""
    base = nn.Sequential(nn.Linear(2, 2))
    base.config = SimpleNamespace(hidden_size=2)
    with pytest.raises(UnsupportedBaseError, match=r"holds no list of layers\nhint: .*layers_path"):
        SafeModel(base)


def test_hidden_states_may_be_a_keyword() -> None:
    """Layers that take their hidden states by keyword are served alike."""
    model = attached(Keyword())
    ids = torch.tensor([[1, 2]])
    assert not torch.equal(model(input_ids=ids, **felt(1)).logits, model(input_ids=ids).logits)


def test_a_layer_bypassed_later_is_an_error() -> None:
    """A base that stops calling its layers after the probe cannot ignore a sample silently."""
    model = attached(Toy())
    ids = torch.tensor([[1, 2]])
    model(input_ids=ids, **felt(1))
    model.base.bypassed = True
    with pytest.raises(InjectionError, match=r"`touch` never reached layers \[0\]"):
        model(input_ids=ids, **felt(1))
    model(input_ids=ids, **felt(1), gate=0)


def test_the_probe_moves_no_generator() -> None:
    """Attaching draws no random number, with dropout in the base or without."""
    base = gpt2()
    before = torch.get_rng_state()
    SafeModel(base)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_facts_are_the_text_decoders() -> None:
    """Sizes come from the decoder's config, also where the base has a vision tower."""
    model = llava()
    facts = SafeModel(model).facts()
    assert (facts.hidden_size, facts.num_layers, facts.num_heads) == (HIDDEN, LAYERS, 4)


def test_grouped_heads_are_repeated() -> None:
    """Each key head stands beside every query head that shares it."""
    model = llama()
    weights = SafeModel(model).facts().attention(1)
    keys = model.model.layers[1].self_attn.k_proj.weight.view(2, 4, HIDDEN)
    assert weights is not None
    assert torch.equal(weights.key.view(4, 4, HIDDEN), keys[[0, 0, 1, 1]])


def test_other_attentions_have_no_plain_projections() -> None:
    """A joined projection is no reason to fail: the facts say None."""
    model = gpt2()
    assert SafeModel(model).facts().attention(0) is None


def test_negative_layers_count_from_the_last() -> None:
    """``layers = [-1]`` of LoRA is the base's last layer."""
    model = SafeModel(llama(num_hidden_layers=3))
    assert lora(model, layers=[-1, 0, 2]).layers == (0, 2)


@pytest.mark.parametrize("layers", [[3], [-4], []])
def test_layers_out_of_range_are_refused(layers: list[int]) -> None:
    """The message starts with the option's name, as every option's does."""
    with pytest.raises(ValueError, match=r"^`layers` must"):
        lora(SafeModel(llama(num_hidden_layers=3)), layers=layers)


def test_a_modality_can_leave_and_come_back() -> None:
    """After removal the name is free, and there is one hook again for each layer."""
    model = attached(llama())
    modality = model.modality("touch")
    model.remove_modality("touch")
    with pytest.raises(SafeError, match="attached modalities: none"):
        model.modality("touch")
    model.add_modality(
        "touch", encoder=modality.encoder, projector=modality.projector, fusion=modality.fusion
    )
    assert len(installed_hooks(model.base)) == 1
    assert model(**texts(model.base, 1, 2), **felt(1)).logits.shape[0] == 1
