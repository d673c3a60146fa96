"""Fits the relevance head of a sense, which opens its gate where that is ``"auto"``.

The head sees the base's own states alone, which no adapter changes before the end of a prompt (law
L8). So it needs no second run over the data: each call is run through the frozen base once.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from safe_framework.config.schema import Recipe
from safe_framework.core.model import SafeModel
from safe_framework.core.prompt_states import PromptEnd
from safe_framework.core.relevance import RelevanceHead, attention_scores
from safe_framework.data.examples import Example, TextRow
from safe_framework.data.irrelevant import TRAIN
from safe_framework.errors import DataError, SafeError
from safe_framework.training.relevance_calls import CallMaker
from safe_framework.training.relevance_states import ReadRows, read_ends
from safe_framework.utils.progress import ProgressCallback, no_progress

_DEPTH = 0.25  # of the base, as a share of its layers, at which a head reads
_COLUMNS = 32  # positions that it reads
_QUERIES = 16  # of one member; a head is the mean of its members
_MEMBERS = 4
_STEPS, _BATCH = 800, 128
_RATE, _DECAY = 3e-3, 0.1
_DROPOUT = 0.3  # share of features left out of a call
_TIMES = 2  # that a form is asked, of other rows and in other chats, where forms are few
_RELEVANT = 8000  # calls, at most: a form that is left out costs more than a call that is read


def fit_relevance(
    model: SafeModel,
    name: str,
    recipe: Recipe,
    examples: Sequence[Example],
    texts: Sequence[TextRow],
    *,
    progress: ProgressCallback = no_progress,
) -> RelevanceHead:
    """Fit the head of a modality; its threshold is that of even odds until it is calibrated.

    It reads the output of a layer in the base's first quarter, where words already stand for what
    they mean in their text, and which costs a quarter of a prompt to read. All settings are fixed,
    since on one user's forms the best of them would be chance.

    Args:
        model: with the modality.
        name: of the modality.
        recipe: its table of the modality says how.
        examples: that the modality was trained on.
        texts: of retention, as in training; may be none.
        progress: called with a label, how many calls were read or steps taken, and of how many.

    Raises:
        SafeError: the recipe has no head for it.
        DataError: the examples ask too few different things.
    """
    spec = recipe.modalities[name].relevance_head
    if spec is None:
        raise SafeError(
            f"the recipe has no relevance head for `{name}`", hint="set `relevance = true`"
        )
    maker = CallMaker(model, recipe, spec)
    having = [example for example in examples if name in example.samples]
    relevant = maker.relevant(having, held_out=False, times=_TIMES, most=_RELEVANT)
    if not relevant:
        raise DataError(f"no training row has a sample of `{name}`")
    calls = [*relevant, *maker.irrelevant(TRAIN), *maker.retention(texts)]
    layer = round(_DEPTH * (model.stack.count - 1))
    found = {
        row: ReadRows([row], PromptEnd(states[None].bfloat16(), mask[None]), begins)
        for read in read_ends(
            model, [call.row for call in calls], layer, _COLUMNS, progress=progress
        )
        for row, states, mask, begins in zip(
            read.rows, read.end.states.cpu(), read.end.mask.cpu(), read.begins, strict=True
        )
    }
    rows = [found[call.row] for call in calls]
    end = PromptEnd(
        torch.cat([row.end.states for row in rows]), torch.cat([row.end.mask for row in rows])
    )
    begins = torch.stack([row.begins for row in rows])
    relevant_calls, shares = [call.relevant for call in calls], [call.share for call in calls]
    return fit_head(end, relevant_calls, layer, begins, shares, progress=progress)


def fit_head(
    end: PromptEnd,
    relevant: Sequence[bool],
    layer: int,
    begins: Tensor | None = None,
    shares: Sequence[float] = (),
    *,
    progress: ProgressCallback = no_progress,
) -> RelevanceHead:
    """The head that tells relevant calls from others.

    Args:
        end: what the base gave at the ends of the calls.
        relevant: which of them it is to open for.
        layer: of the base, whose output the states are, from 0.
        begins: the column at which each call's own text begins, (calls,). Every other time that a
            call is seen, what stands before is left out, as where it lies in a cache.
        shares: how often each is drawn, relative to the others of its side; all alike if empty.
        progress: called with a label, how many steps were taken and of how many.

    Raises:
        DataError: there are too few calls.
    """
    wanted = torch.tensor(relevant)
    count = int(wanted.sum())
    if min(count, len(wanted) - count) < 2:
        raise DataError(
            "a relevance head needs at least two relevant calls and two others",
            hint="give `question` in [data] more forms, or a bank",
        )
    seen = end.states[end.mask].float()
    mean, scale = seen.mean(0), seen.std(0, correction=0).clamp_min(1e-6)
    drawn = torch.tensor(shares or [1.0] * len(relevant))
    calls = _Calls(end, wanted, mean, scale, begins, drawn)
    queries, weight, biases = _members(calls, progress)
    columns = end.states.shape[1]
    return RelevanceHead(
        mean, scale, queries, weight / _MEMBERS, biases.mean(), layer=layer, columns=columns
    )


@attrs.frozen(eq=False)
class _Calls:
    """What a head is fitted on.

    Attributes:
        end: of the calls.
        relevant: which of them it is to open for, (calls,).
        mean: of each feature, (hidden,).
        scale: of each feature, (hidden,).
        begins: see ``fit_head``.
        shares: how often each is drawn, (calls,).
    """

    end: PromptEnd
    relevant: Tensor
    mean: Tensor
    scale: Tensor
    begins: Tensor | None
    shares: Tensor

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised states of a batch, which of its columns count, and which rows are relevant.

        Half of them are; some features are left out of each row.
        """
        sides = [self.relevant.nonzero().flatten(), (~self.relevant).nonzero().flatten()]
        half = _BATCH // 2
        rows = torch.cat(
            [
                side[torch.multinomial(self.shares[side], half, True, generator=random)]
                for side in sides
            ]
        )
        states = self.end.states[rows].float().sub_(self.mean).div_(self.scale)
        mask = self.end.mask[rows]
        if self.begins is not None:
            behind = torch.arange(mask.shape[1]) >= self.begins[rows].unsqueeze(1)
            whole = torch.rand(len(rows), 1, generator=random) < 0.5
            mask = mask & (whole | behind)
        kept = torch.rand(len(rows), 1, states.shape[2], generator=random) >= _DROPOUT
        return states.mul_(kept / (1 - _DROPOUT)), mask, self.relevant[rows]


def _members(calls: _Calls, progress: ProgressCallback) -> tuple[Tensor, Tensor, Tensor]:
    """Several heads that begin apart, each with a loss of its own, fitted by AdamW.

    Returns:
        Queries and weights, each (members * queries, hidden), and biases, (members,).
    """
    random, size = torch.Generator().manual_seed(0), (_MEMBERS * _QUERIES, len(calls.mean))
    queries, weight = (
        (torch.randn(size, generator=random) * 0.02).requires_grad_() for _ in range(2)
    )
    biases = torch.zeros(_MEMBERS, requires_grad=True)
    optimizer = torch.optim.AdamW([queries, weight, biases], lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    with torch.enable_grad():
        for step in range(_STEPS):
            states, mask, relevant = calls.draw(random)
            each = attention_scores(states, mask, queries, weight)
            scores = each.view(-1, _MEMBERS, _QUERIES).sum(dim=2) + biases
            wanted = relevant.float().unsqueeze(1).expand_as(scores)
            loss = _MEMBERS * functional.binary_cross_entropy_with_logits(scores, wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimizer.step()
            schedule.step()
            progress("fitting the relevance gate", step + 1, _STEPS)
    return queries.detach(), weight.detach(), biases.detach()
