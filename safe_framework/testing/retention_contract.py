"""The laws of a retention regularizer, as tests."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from safe_framework.core.model import SafeModel
from safe_framework.interfaces.retention import (
    LogitComparison,
    RetentionRegularizer,
    RetentionStore,
)
from safe_framework.testing.assertions import assert_near, moved, tried
from safe_framework.testing.bases import VOCABULARY, llama, texts
from safe_framework.testing.strategies import hostile_values, masks, seeds, sizes, spoilt
from safe_framework.testing.toys import attached, felt
from safe_framework.utils.hashing import fingerprint

_ROUNDING = 1e-5


@st.composite
def _calls(draw: DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the base's logits and a mask."""
    batch, length = draw(sizes()), draw(sizes(5))
    generator = torch.Generator().manual_seed(draw(seeds()))
    scale = draw(st.sampled_from([0.01, 1.0, 30.0]))
    logits = scale * torch.randn(2, batch, length, VOCABULARY, generator=generator)
    return logits[0], logits[1], draw(masks(batch, length))


class RetentionRegularizerContract(ABC):
    """What every retention regularizer promises; inherit it in a test, and say how to make yours.

    One test for each Law of :class:`safe_framework.RetentionRegularizer`, of the same name::

        class TestAnchorRegularizer(RetentionRegularizerContract):
            def make(self):
                return AnchorRegularizer(strength=0.1)
    """

    @abstractmethod
    def make(self) -> RetentionRegularizer:
        """A new regularizer."""

    def begin(self, regularizer: RetentionRegularizer, model: SafeModel) -> None:
        """Start it on a toy model, as training would; override it to give yours more."""
        examples = [texts(model.base, 1, 5, seed) | felt(1, seed=seed) for seed in range(3)]
        with tempfile.TemporaryDirectory() as folder:
            store = RetentionStore(Path(folder) / "kept.safetensors", dict, start="start")
            regularizer.begin(model, examples, store)

    @cached_property
    def regularizer(self) -> RetentionRegularizer:
        """The regularizer under test, begun on a toy model."""
        return self._begun()[0]

    @cached_property
    def _after_a_while(self) -> RetentionRegularizer:
        """One whose model has moved since."""
        regularizer, model = self._begun()
        moved(model)
        return regularizer

    def _begun(self) -> tuple[RetentionRegularizer, SafeModel]:
        model, regularizer = attached(llama()), self.make()
        self.begin(regularizer, model)
        return regularizer, model

    @tried()
    @given(_calls())
    def test_zero_at_base(self, call: tuple[Tensor, Tensor, Tensor]) -> None:
        """Law: where outputs are the base's, or parameters as at the start, a penalty is 0."""
        logits, _, mask = call
        penalties = [
            self.regularizer.penalty(logits, logits.clone(), mask),
            self.regularizer.parameter_penalty(),
        ]
        assert not [penalty for penalty in penalties if penalty is not None and penalty.item() != 0]

    @tried()
    @given(_calls())
    def test_nonnegative(self, call: tuple[Tensor, Tensor, Tensor]) -> None:
        """Law: a penalty is a finite scalar, never below 0 but for rounding."""
        regularizer = self._after_a_while
        for penalty in (regularizer.penalty(*call), regularizer.parameter_penalty()):
            if penalty is None:
                continue
            assert penalty.shape == ()
            assert torch.isfinite(penalty)
            assert penalty.item() >= -_ROUNDING

    @tried()
    @given(_calls())
    def test_one_penalty(self, call: tuple[Tensor, Tensor, Tensor]) -> None:
        """Law: the penalty of a comparison is that of its logits."""
        regularizer = self._after_a_while
        whole, single = regularizer.penalty_of(LogitComparison(*call)), regularizer.penalty(*call)
        if whole is None or single is None:
            assert whole is single
        else:
            assert_near(whole, single)

    @tried()
    @given(_calls(), hostile_values())
    def test_mask_respected(self, call: tuple[Tensor, Tensor, Tensor], hostile: float) -> None:
        """Law: what stands at a masked position changes neither the penalty nor a gradient."""
        logits, base_logits, mask = call
        wrong = spoilt(logits, mask, hostile).requires_grad_()
        penalty = self.regularizer.penalty(wrong, spoilt(base_logits, mask, hostile), mask)
        expected = self.regularizer.penalty(*call)
        if penalty is None or expected is None:
            assert penalty is expected
            return
        assert_near(penalty, expected)
        if penalty.requires_grad:
            penalty.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            assert wrong.grad is None or torch.isfinite(wrong.grad).all()

    def test_base_untouched(self) -> None:
        """Law: after ``begin`` and steps with ``constrain``, the base has the same bits."""
        model, regularizer = attached(llama()), self.make()
        before = fingerprint(model.base)
        self.begin(regularizer, model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.01)
        for _ in range(2):
            loss = torch.stack([p.square().sum() for p in trainable]).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            optimizer.step()
            regularizer.constrain(optimizer)
        assert fingerprint(model.base) == before
        assert all(torch.isfinite(p).all() for p in trainable)
