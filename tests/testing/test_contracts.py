"""The contracts that third parties inherit: complete, and able to fail."""

import re

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from torch import nn

import safe_framework
from safe_framework import Frames, Memory, RetentionRegularizer, Tokens, Transcriber, testing
from safe_framework.interfaces.windows import Window
from safe_framework.testing.toys import ToyEncoder, ToyFusion, ToyProjector

INTERFACES = ("Encoder", "Projector", "FusionAdapter", "RetentionRegularizer", "Transcriber")


def laws(interface):
    """The names under ``Laws`` in the docstring of an interface."""
    text = getattr(safe_framework, interface).__doc__.split("Laws:\n")[1]
    return re.findall(r"^ {8}(\w+): ", text.split("\n\n")[0], re.MULTILINE)


def laws_tested_by(contract):
    """The names of a contract's tests."""
    return [name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")]


@pytest.mark.parametrize("interface", INTERFACES)
def test_each_law_is_a_test_of_the_same_name(interface):
    """A contract holds exactly the laws that its interface's docstring lists."""
    contract = getattr(testing, f"{interface}Contract")
    assert len(laws(interface)) >= 3
    assert sorted(laws(interface)) == sorted(laws_tested_by(contract))


# Plugins that break one law each


class Guesses(ToyEncoder):
    breaks = "deterministic"

    def forward(self, **inputs):
        frames = super().forward(**inputs)
        return Frames(frames.values + torch.randn(()), frames.mask)


class Mixes(ToyEncoder):
    breaks = "row_independent"

    def forward(self, **inputs):
        frames = super().forward(**inputs)
        return Frames(frames.values - frames.values.mean(), frames.mask)


class PreparesOneRow(ToyEncoder):
    breaks = "prepare_on_cpu"

    def prepare(self, samples):
        return {"values": torch.cat(list(samples))}


class SwapsAxes(ToyEncoder):
    breaks = "frames_shape"

    def forward(self, **inputs):
        frames = super().forward(**inputs)
        return Frames(frames.values.mT, frames.mask)


class GivesFewerThanItSays(ToyEncoder):
    breaks = "window_frames"

    def whole_window(self):
        return Window(8, 9)


class SaysNothingOfItsWidth(ToyProjector):
    breaks = "tokens_shape"
    tokens = 7


class MultipliesByTheMask(ToyProjector):
    breaks = "mask_respected"

    def forward(self, frames):
        mask = frames.mask.unsqueeze(-1)
        values = (frames.values * mask).sum(1, keepdim=True)  # 0 * NaN is NaN
        return Tokens(self.linear(values), torch.ones_like(frames.mask[:, :1]))


class Forgets(ToyProjector):
    breaks = "differentiable"

    def __init__(self, frame_dim, hidden_size):
        super().__init__(frame_dim, hidden_size)
        self.unused = nn.Linear(2, 2)


class Silent(ToyFusion):
    """Keeps every law but the one that a subclass breaks."""

    def __init__(self, base):
        super().__init__(layers=(0, 2))
        width = base.hidden_size
        self.query, self.scale = nn.Linear(width, width), nn.Parameter(torch.zeros(width))

    def remember(self, tokens):
        values = torch.where(tokens.mask.unsqueeze(-1), tokens.values, 0.0)
        mean = values.sum(1) / tokens.mask.sum(1, keepdim=True)
        return Memory({"mean": mean}, tokens.mask)


class StartsNonzero(Silent):
    breaks = "fresh_is_silent"

    def __init__(self, base):
        super().__init__(base)
        nn.init.ones_(self.scale)


class CutsShort(Silent):
    breaks = "delta_shape"

    def forward(self, hidden, memory, layer):
        return super().forward(hidden, memory, layer)[:, :1, :-1]


class WritesInPlace(Silent):
    breaks = "hands_off"

    def forward(self, hidden, memory, layer):
        delta = super().forward(hidden.clone(), memory, layer)
        hidden.add_(1)
        return delta


class LooksAhead(Silent):
    breaks = "length_independent"

    def forward(self, hidden, memory, layer):
        return super().forward(hidden + hidden.mean(1, keepdim=True), memory, layer)


class SharesAMean(Silent):
    breaks = "row_independent"

    def remember(self, tokens):
        memory = super().remember(tokens)
        return Memory({"mean": memory.tensors["mean"] - memory.tensors["mean"].mean()}, tokens.mask)


class AttendsToMasked(Silent):
    breaks = "mask_respected"

    def remember(self, tokens):
        return Memory({"mean": tokens.values.mean(1)}, tokens.mask)


class Detaches(Silent):
    breaks = "differentiable"

    def forward(self, hidden, memory, layer):
        query = torch.sin(self.query(hidden)).detach()
        return self.scale * (query + memory.tensors["mean"][:, None])


class Regularizes(RetentionRegularizer):
    """Keeps every law but the one that a subclass breaks."""

    def penalty(self, logits, base_logits, mask):
        return (logits[mask] - base_logits[mask]).square().mean()


class NeverZero(Regularizes):
    breaks = "zero_at_base"

    def penalty(self, *call):
        return super().penalty(*call) + 1e-6


class Rewards(Regularizes):
    breaks = "nonnegative"

    def penalty(self, *call):
        return -super().penalty(*call)


class CountsPadding(Regularizes):
    breaks = "mask_respected"

    def penalty(self, logits, base_logits, mask):
        return (logits - base_logits).square().mean()


class SaysTwoThings(Regularizes):
    breaks = "one_penalty"

    def penalty_of(self, comparison):
        return comparison.divergence(1.0)


class TrainsTheBase(Regularizes):
    breaks = "base_untouched"

    def begin(self, model, examples, store):
        next(model.base.parameters()).data.add_(1)


class Writes(Transcriber):
    """Keeps every law but the one that a subclass breaks."""

    fingerprint = "writes"

    def to(self, device):
        return self

    def __call__(self, samples):
        return [str(float(sample.sum())) for sample in samples]


class LeavesOneOut(Writes):
    breaks = "one_text_each"

    def __call__(self, samples):
        return super().__call__(samples)[1:]


class HearsTheOthers(Writes):
    breaks = "alone"

    def __call__(self, samples):
        return [" ".join(super().__call__(samples))] * len(samples)


class DrawsWords(Writes):
    breaks = "deterministic"

    def __call__(self, samples):
        return [str(float(torch.rand(()))) for _ in samples]


def broken(kind):
    """The classes above that break a law of an interface."""
    found = list(kind.__subclasses__())
    for plugin in found:
        found += plugin.__subclasses__()
    return [
        plugin for plugin in found if plugin.__module__ == __name__ and hasattr(plugin, "breaks")
    ]


def held(plugin):
    """An instance of the contract for ``plugin``."""
    kind = next(name for name in INTERFACES if issubclass(plugin, getattr(safe_framework, name)))

    class Held(getattr(testing, f"{kind}Contract")):
        def make(self, *wired):
            return plugin(*wired)

        def sample(self, seed):
            generator = np.random.default_rng(seed)
            return torch.from_numpy(generator.normal(size=(1 + seed % 4, 4))).float()

    return Held()


def unshrunk(monkeypatch, law):
    """Let Hypothesis stop at the first failure instead of looking for the smallest."""
    attribute = "_hypothesis_internal_use_settings"
    if hasattr(law, attribute):
        quick = settings(getattr(law, attribute), phases=[Phase.generate])
        monkeypatch.setattr(law, attribute, quick)


BROKEN = [plugin for name in INTERFACES for plugin in broken(getattr(safe_framework, name))]


def test_every_law_is_broken_once():
    """The list that the next test goes through has a plugin for each law."""
    assert len(BROKEN) == sum(len(laws(interface)) for interface in INTERFACES)


@pytest.mark.parametrize("plugin", BROKEN)
def test_a_contract_catches_what_breaks_a_law(plugin, monkeypatch):
    """The test of a law fails for a plugin that breaks it."""
    unshrunk(monkeypatch, getattr(type(held(plugin)), f"test_{plugin.breaks}"))
    with pytest.raises((AssertionError, ExceptionGroup)):
        getattr(held(plugin), f"test_{plugin.breaks}")()


@pytest.mark.parametrize("plugin", [ToyEncoder, ToyProjector, Silent, Regularizes, Writes])
def test_a_contract_holds_for_what_keeps_the_laws(plugin):
    """Every test of a contract passes for a plugin that is as it should be."""
    contract = held(plugin)
    laws = laws_tested_by(contract)
    assert laws
    for law in laws:
        getattr(contract, f"test_{law}")()


def test_a_contract_without_a_plugin_says_what_is_missing():
    """A subclass that makes no plugin is refused by name of the method."""

    class Empty(testing.ProjectorContract):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?make"):
        Empty()
