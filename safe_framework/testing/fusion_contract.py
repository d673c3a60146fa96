"""The laws of a fusion adapter, as tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import attrs
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.types import BaseFacts, Memory, Tokens, all_real
from safe_framework.testing.assertions import (
    assert_near,
    check_shapes,
    finite_gradients,
    law_settings,
    parameters_without_gradient,
    perturbed,
)
from safe_framework.testing.strategies import (
    base_facts,
    dtypes,
    hostile_values,
    sizes,
    spoilt,
    tensors,
    tokens,
)
from safe_framework.utils.tensors import bitwise_equal


@attrs.frozen(eq=False)
class _Call:
    """What one call shows an adapter."""

    base: BaseFacts
    hidden: Tensor
    tokens: Tokens


@st.composite
def _calls(draw: DrawFn, batch: int | None = None) -> _Call:
    base = draw(base_facts())
    rows = draw(sizes()) if batch is None else batch
    hidden = draw(tensors(rows, draw(sizes(5)), base.hidden_size))
    return _Call(base, hidden, draw(tokens(base.hidden_size, batch=rows)))


class FusionAdapterContract(ABC):
    """What every fusion adapter promises; inherit it in a test, and say how yours is made.

    One test for each Law of :class:`safe_framework.FusionAdapter`, of the same name::

        class TestEchoFusion(FusionAdapterContract):
            def make(self, base):
                return EchoFusion(base, layers=[0, -1])

    All but the first are asked of an adapter whose parameters have moved.
    """

    @abstractmethod
    def make(self, base: BaseFacts) -> FusionAdapter:
        """A new adapter for a base of three layers, with options that suit it."""

    @law_settings()
    @given(_calls(), st.booleans())
    def test_fresh_is_silent(self, call: _Call, training: bool) -> None:
        """Law: a new adapter's delta is exactly zero, at every layer, in training too."""
        adapter = self.make(call.base).train(training)
        memory = adapter.remember(call.tokens)
        for layer in adapter.layers:
            assert not adapter(call.hidden, memory, layer).any(), f"layer {layer}"

    @law_settings()
    @given(_calls(), dtypes())
    def test_delta_shape(self, call: _Call, dtype: torch.dtype) -> None:
        """Law: the delta has the shape of the hidden states, and floats of the weights' type."""
        adapter = self._moved(call).to(dtype)
        given_tokens = Tokens(call.tokens.values.to(dtype), call.tokens.mask)
        memory = check_shapes(adapter.remember, given_tokens)
        assert isinstance(memory, Memory)
        assert adapter.layers == tuple(sorted(set(adapter.layers)))
        for layer in adapter.layers:
            delta = check_shapes(adapter, call.hidden.to(dtype), memory, layer)
            assert delta.dtype == dtype

    @law_settings()
    @given(_calls())
    def test_hands_off(self, call: _Call) -> None:
        """Law: neither the hidden states nor the tokens are written to."""
        adapter, shown = self._moved(call), call.hidden.clone()
        given_tokens = Tokens(call.tokens.values.clone(), call.tokens.mask.clone())
        memory = adapter.remember(given_tokens)
        for layer in adapter.layers:
            adapter(shown, memory, layer)
        assert bitwise_equal(shown, call.hidden)
        assert bitwise_equal(given_tokens.values, call.tokens.values)
        assert bitwise_equal(given_tokens.mask, call.tokens.mask)

    @law_settings()
    @given(_calls(), st.data())
    def test_length_independent(self, call: _Call, data: st.DataObject) -> None:
        """Law: a position's delta is the same without the later ones, and after cached ones."""
        adapter = self._moved(call)
        cut = data.draw(st.integers(0, call.hidden.shape[1] - 1))
        for layer in adapter.layers:
            whole = adapter(call.hidden, adapter.remember(call.tokens), layer)
            memory = adapter.remember(call.tokens)
            parts = [
                adapter(part, memory, layer)
                for part in (call.hidden[:, :cut], call.hidden[:, cut:])
                if part.shape[1]
            ]
            assert_near(torch.cat(parts, dim=1), whole)

    @law_settings()
    @given(_calls(batch=3), st.permutations(range(3)), sizes(3))
    def test_row_independent(self, call: _Call, order: list[int], count: int) -> None:
        """Law: chosen rows of the memory give chosen rows of the delta, and remember alike."""
        adapter, rows = self._moved(call), torch.tensor(order[:count])
        memory = adapter.remember(call.tokens)
        apart = adapter.remember(call.tokens.rows(rows))
        for layer in adapter.layers:
            expected = adapter(call.hidden, memory, layer)[rows]
            for chosen in (memory.rows(rows), apart):
                assert_near(adapter(call.hidden[rows], chosen, layer), expected)

    @law_settings()
    @given(_calls(), hostile_values())
    def test_mask_respected(self, call: _Call, hostile: float) -> None:
        """Law: what masked tokens hold changes neither a delta nor a gradient, not even NaN."""
        adapter = self._moved(call)
        values = spoilt(call.tokens.values, call.tokens.mask, hostile)
        expected = adapter.remember(call.tokens)
        memory = adapter.remember(Tokens(values, call.tokens.mask))
        total = torch.zeros(())
        for layer in adapter.layers:
            delta = adapter(call.hidden, memory, layer)
            assert_near(delta, adapter(call.hidden, expected, layer))
            total = total + delta.sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        assert finite_gradients(adapter)

    def test_differentiable(self) -> None:
        """Law: every trainable parameter gets a gradient within a few steps from a fresh start."""
        torch.manual_seed(0)
        base = BaseFacts(hidden_size=8, num_layers=3, num_heads=2)
        adapter = self.make(base).train()
        values, hidden = torch.randn(4, 3, 8), torch.randn(4, 5, 8)

        def deltas() -> Tensor:
            """What the adapter proposes at each of its layers."""
            memory = adapter.remember(Tokens(values, all_real(values)))
            return torch.stack([adapter(hidden, memory, layer) for layer in adapter.layers])

        assert parameters_without_gradient(adapter, deltas) == []

    def _moved(self, call: _Call) -> FusionAdapter:
        return cast(FusionAdapter, perturbed(self.make(call.base)).eval())
