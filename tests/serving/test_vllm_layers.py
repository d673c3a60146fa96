"""How layers of vLLM's hand on hidden states, seen in a trial, and what is done at their inputs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_framework.errors import InjectionError, SafeError
from safe_framework.serving.vllm.listening import HearingRows, ListeningLayers, WatchedPlaces

WIDTH, TOKENS = 8, 5


class Layer(nn.Module):
    """What layers of every kind have: something that they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.runs = 0

    def own(self, hidden: Tensor) -> Tensor:
        """What the layer adds."""
        if not torch.compiler.is_compiling():
            self.runs += 1
        return torch.tanh(self.inner(hidden))


class Plain(Layer):
    """As OLMo 2, GPT-2 and others: one tensor, and one back."""

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """The sum."""
        return hidden_states + self.own(hidden_states)


class Lazy(Layer):
    """As Llama: what is added last is added by the next layer, which may write into both."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is to be added, and what to."""
        residual = hidden_states if residual is None else residual.add_(hidden_states)
        return self.own(residual), residual


class Ignoring(Layer):
    """As Cohere: it is given what the layer before began from, and does not look."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The sum, and what it began from."""
        return hidden_states + self.own(hidden_states), hidden_states


class Pair(Layer):
    """As StableLM: one tensor, and two back."""

    def forward(self, positions: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and what it began from."""
        return hidden_states + self.own(hidden_states), hidden_states


class Uneven(Layer):
    """A layer that weighs the two: no sum of them says what it reads."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Half of what it was to add."""
        residual = hidden_states if residual is None else residual + hidden_states / 2
        return self.own(residual), residual


class Nameless(Layer):
    """A layer that calls its input by another name."""

    def forward(self, positions: Tensor, states: Tensor) -> Tensor:
        """The sum."""
        return states + self.own(states)


class Shared(Plain):
    """A layer that its model runs twice."""


class Decoder(nn.Module):
    """Three layers of a kind, as vLLM's models run them."""

    def __init__(self, kind: type[Layer], *, between: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(kind() for _ in range(3))
        self.between = between

    def forward(self, hidden: Tensor) -> Tensor:
        """The last layer's hidden states."""
        found: Any = hidden.clone()
        for layer in self.layers:
            given = found if isinstance(found, tuple) else (found,)
            places = (torch.arange(len(hidden)),)
            if isinstance(layer, (Lazy, Ignoring, Uneven)):
                found = layer(*places, given[0], given[1] if len(given) > 1 else None)
            elif isinstance(layer, Pair):
                found = layer(*places, given[0])
            else:
                found = layer(*places, given[0] + self.between)
                found = layer(*places, found) if isinstance(layer, Shared) else found
        if isinstance(self.layers[0], (Lazy, Uneven)):
            return found[0] + found[1]
        return found[0] if isinstance(found, tuple) else found

    def by_hand(self, hidden: Tensor, changed: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The same, where what each layer reads is changed."""
        for number, layer in enumerate(self.layers):
            hidden = changed(number, hidden)
            hidden = hidden + layer.own(hidden)  # type: ignore[operator]  # Layer's
        return hidden


KNOWN = [Plain, Lazy, Ignoring, Pair]


def listening(decoder: Decoder) -> ListeningLayers:
    """Its layers 1 and 2 listen, and a head reads layer 0, once they were tried."""
    layers = ListeningLayers([*decoder.layers], [1, 2], [0])
    with layers.trial():
        decoder(states(1))
    return layers


def states(seed: int) -> Tensor:
    """Hidden states."""
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


PUSH = torch.linspace(-1, 1, WIDTH)


def rows(places: list[int]) -> HearingRows:
    """One row, which hears something at these places of layers 1 and 2."""
    sample: Any = SimpleNamespace(
        fusion=SimpleNamespace(layers=(1, 2)),
        apply_everywhere=lambda hidden, layer: hidden + layer * PUSH,
    )
    return HearingRows(sample, torch.tensor([places]))


def pushed(number: int, hidden: Tensor) -> Tensor:
    """The same by hand, at places 1 and 3."""
    if number:
        hidden = hidden.clone()
        hidden[[1, 3]] += number * PUSH
    return hidden


@pytest.mark.parametrize("kind", KNOWN)
def test_samples_enter_where_a_layer_reads(kind: type[Layer]) -> None:
    """Law: whatever a layer is given, what it reads is changed for rows that hear, and no other."""
    decoder = Decoder(kind)
    plain, expected = decoder(states(0)), decoder.by_hand(states(0), pushed)
    layers = listening(decoder)
    with layers.hearing([rows([1, 3])]):
        found = decoder(states(0))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found[[0, 2, 4]], plain[[0, 2, 4]])
    assert torch.equal(decoder(states(0)), plain)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_graph_asks_in_each_pass(kind: type[Layer]) -> None:
    """Law: a graph that was traced while nobody heard lets rows hear, and tells what is watched."""
    decoder = Decoder(kind)
    plain, expected = decoder(states(0)), decoder.by_hand(states(0), pushed)
    layers = listening(decoder)
    torch._dynamo.reset()
    graph = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(graph(states(0)), plain, atol=1e-5)
        watched = WatchedPlaces(torch.tensor([1, 3]))
        with layers.hearing([rows([1, 3])], watched):
            found = graph(states(0))
        assert torch.allclose(graph(states(0)), plain, atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-5)
    assert watched.left.keys() == {0}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_token_runs_again_from_the_first_fused_layer(kind: type[Layer]) -> None:
    """Law: run again from what the first fused layer was given, a token is heard as at once.

    No layer before it runs, and what a head reads there is what the layer leaves.
    """
    decoder = Decoder(kind)
    left = decoder.by_hand(states(0), lambda number, hidden: hidden)  # moves no counter below
    before = states(0) + decoder.layers[0].own(states(0))  # type: ignore[operator]  # Layer's
    layers = listening(decoder)
    watched = WatchedPlaces(torch.tensor([1, 3]))
    with layers.hearing([], watched):
        assert torch.allclose(decoder(states(0)), left, atol=1e-5)
    assert watched.given is not None
    assert torch.allclose(watched.given, before[[1, 3]], atol=1e-5)
    assert torch.allclose(watched.left[0], before[[1, 3]], atol=1e-5)
    runs = decoder.layers[0].runs
    with layers.hearing([rows([0, 1])], again=watched.given):
        found = decoder(torch.zeros(2, WIDTH))
    assert decoder.layers[0].runs == runs
    assert torch.allclose(found, decoder.by_hand(states(0), pushed)[[1, 3]], atol=1e-5)


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (Decoder(Uneven), "`Uneven` is given two tensors, and does not read their sum"),
        (Decoder(Nameless), "`Nameless` is given positions, states, and no `hidden_states`"),
        (Decoder(Shared), "`Shared` runs twice in one pass"),
        (Decoder(Plain, between=0.5), "`Plain` is not given what the layer before it leaves"),
    ],
    ids=["uneven", "nameless", "shared", "between"],
)
def test_a_layer_of_which_nothing_is_known_is_refused(decoder: Decoder, told: str) -> None:
    """Law: where the trial does not show what a layer reads, it is refused by its name."""
    with pytest.raises(SafeError) as error:
        listening(decoder)
    assert told in error.value.message
    assert error.value.hint == "serve it by `safe serve --engine transformers`"


def test_layers_that_do_not_run_are_refused() -> None:
    """Law: a model that leaves out a layer which is to listen is refused, and an answer is none."""
    decoder = Decoder(Plain)
    layers = ListeningLayers([*decoder.layers, Plain()], [1, 3])
    with pytest.raises(SafeError, match=r"ran layers \[1\] of \[1, 3\]"), layers.trial():
        decoder(states(1))
    with pytest.raises(InjectionError, match=r"not heard at layers \[3\]"), layers.hearing([]):
        decoder(states(0))
