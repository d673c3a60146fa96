"""The prompt's keys and values at every layer, computed once: a step runs the answer alone.

Where every modality acts on answers (law L8), nothing of a prompt before its last position depends
on a sample or on anything that trains, at any layer. What later positions read of it are its keys
and values. They are stored for each distinct prompt, behind what all of them begin with, which is
read once; and for each answer to it what enters the first fused layer, from the last position of
the prompt on. There a step begins, as decoding does behind a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from safe_framework.core.attend import answering
from safe_framework.core.base_errors import base_errors
from safe_framework.core.model import SafeModel
from safe_framework.core.output_head import (
    PREFIX,
    no_cache_option,
    on_device,
    run_until,
)
from safe_framework.core.past_rows import behind_pasts
from safe_framework.core.prompt_rows import PromptRow, Rows
from safe_framework.core.shared_opening import (
    SharedOpening,
    behind,
    common_opening,
    reads_trees,
)
from safe_framework.core.text_trees import can_mask_pairs, in_calls
from safe_framework.errors import InjectionError, UnsupportedBaseError
from safe_framework.interfaces.types import FROM
from safe_framework.training.compute.activation_cache import ActivationCaches, in_groups
from safe_framework.training.compute.calls import ForwardCall
from safe_framework.utils.hashing import text_fingerprint
from safe_framework.utils.progress import ProgressCallback
from safe_framework.utils.tensors import near


class PromptCache:
    """Lets calls on rows whose prompts are stored begin at the last position of each prompt.

    Args:
        model: about to be trained, in eval mode.
        caches: of the run, by which calls start at the first fused layer.
        rows: of the task, each with the last position of its prompt; it is not 0 of all.

    Attributes:
        fits: whether all of it may be kept.
    """

    def __init__(
        self, model: SafeModel, caches: ActivationCaches, rows: Sequence[tuple[PromptRow, int]]
    ) -> None:
        assert caches.prefix is not None
        self.model, self.caches, self.layer = model, caches, caches.prefix.layer
        self.names = answering(model.attends)
        heads = [PromptRow(row.ids[:start]) for row, start in rows if start]
        opening = common_opening(model, sorted(set(heads), key=lambda head: head.ids))
        in_trees = reads_trees(model, caches.prompts, caches.pad)
        self._opening = SharedOpening(model, caches.prompts, caches.pad, opening, in_trees)
        self._opened = {name: kept.cpu() for name, kept in self._opening.kept.items()}
        self._start: dict[PromptRow, int] = {}
        for row, start in rows:  # where a row is asked in two ways, the first position of both
            self._start[row] = min(start, self._start.get(row, start))
        one = self._read_prompts([self._behind(heads[0])])
        self._nothing = {name: kept[0][:0].cpu() for name, kept in one.items()}
        numbers = sum(kept[0][0].numel() for kept in one.values())
        hidden = model.stack.hidden_size
        self._prompts = caches.store_of(
            [self._behind(head) for head in heads], self._read_prompts, numbers,
            f"prompts behind {list(opening)}{' in trees' if in_trees else ''}",
            groups=in_calls if in_trees else None,
        )  # fmt: skip
        starts = text_fingerprint(sorted((row.ids, start) for row, start in self._start.items()))
        self._answers = caches.store_of(
            list(self._start), self._read_answers, hidden, f"answers {starts}",
            length=self._answer_length,
            groups=lambda found: in_groups(sorted(found, key=self._answer_length)),
        )  # fmt: skip
        self.fits = self._prompts is not None and self._answers is not None

    @classmethod
    def tried(
        cls, model: SafeModel, caches: ActivationCaches | None, rows: Rows, starts: Sequence[int]
    ) -> PromptCache | None:
        """The cache of some rows' prompts, if calls that begin behind them give the same.

        Where the base cannot do that, the caches note why. What is none of the base's doing, such
        as a full disk, is raised.

        Args:
            model: about to be trained, in eval mode.
            caches: of the run.
            rows: of the task.
            starts: the last position of each row's prompt.
        """
        everywhere = any(attend != "answer" for attend in model.attends.values())
        if caches is None or caches.prefix is None or everywhere or not can_mask_pairs(model):
            return None
        plain = [(r, s) for r, s in zip(rows, starts, strict=True) if not r.images]
        plain.sort(key=lambda pair: not pair[1])  # a prompt of one token leaves nothing
        if not plain or not plain[0][1]:
            return None
        try:
            made = cls(model, caches, plain)
            if not made.fits:  # which the caches have noted
                return None
            refused = "" if made._agrees(plain[:2]) else "it gives other numbers behind them"
        except (UnsupportedBaseError, InjectionError) as error:
            refused = error.message
        if refused:
            caches.notes.append(
                f"prompts: they run at each step, since this base cannot go on from kept ones "
                f"({refused})"
            )
            return None
        return made

    def precompute(self, progress: ProgressCallback) -> None:
        """Compute what is missing."""
        assert self._prompts is not None
        assert self._answers is not None
        self._prompts.precompute(self._prompts.rows, "reading prompts", progress)
        self._answers.precompute(self._answers.rows, "reading answers", progress)

    def holds(self, rows: Rows) -> bool:
        """Whether calls on these rows begin behind their prompts."""
        # A layer that is computed again is computed whole.
        known = all(row in self._start for row in rows)
        return known and not self.model.is_gradient_checkpointing

    def behind_prompts(self, call: ForwardCall, rows: Rows) -> ForwardCall:
        """The call without its prompts but for their last positions; as it is, where one is new.

        Args:
            call: on these rows, padded on the right.
            rows: of the call.
        """
        first = next((call.inputs.get(f"{name}__{FROM}") for name in self.names), None)
        if first is None or call.pictures or not self.holds(rows):
            return call
        starts = first.tolist()
        width = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        index = first[:, None] + torch.arange(width, device=first.device)  # (batch, width)
        inside = index < call.positions.shape[1]
        index = index.clamp_max(call.positions.shape[1] - 1)
        own = {key: call.inputs[key].gather(1, index) for key in ("input_ids", "attention_mask")}
        own["attention_mask"] = own["attention_mask"] * inside
        begun = {f"{name}__{FROM}": torch.zeros_like(first) for name in self.names}
        assert self._answers is not None
        entering = [state[PREFIX] for state in self._answers.of(rows)]
        return attrs.evolve(
            call,
            inputs={**call.inputs, **own, **begun},
            positions=call.positions.gather(1, index) & inside,
            prefix_states=[
                state[start - self._start[row] :]
                for row, state, start in zip(rows, entering, starts, strict=True)
            ],
            past=self._past(rows, starts, lambda number: number >= self.layer),
        )

    def _past(
        self, rows: Rows, starts: Sequence[int], wanted: Callable[[int], bool]
    ) -> list[Mapping[str, Tensor]]:
        """What the prompts of rows left at the layers that are wanted."""
        assert self._prompts is not None
        names = [n for n in self._nothing if wanted(int(n.rpartition(".")[2]))]
        found = list[Mapping[str, Tensor]]()
        for row, start in zip(rows, starts, strict=True):
            own: Mapping[str, Tensor] = self._nothing
            if start:
                (own,) = self._prompts.of([self._behind(PromptRow(row.ids[:start]))])
            opened = self._opened if start else {}
            found.append({n: torch.cat([opened[n], own[n]]) if opened else own[n] for n in names})
        return found

    def _agrees(self, rows: Sequence[tuple[PromptRow, int]]) -> bool:
        """Whether rows give behind their prompts what they give whole, but for rounding."""
        texts, device = [row for row, _ in rows], self.model.device
        batch = self.caches.prompts.collate(texts, self.caches.pad)
        first = torch.tensor([start for _, start in rows])
        samples = self.caches.samples(len(rows)) | {f"{name}__{FROM}": first for name in self.names}
        inputs = on_device(batch | samples, device)
        columns = torch.arange(batch["input_ids"].shape[1])
        read = ((columns >= first[:, None]) & batch["attention_mask"].bool()).to(device)
        cut = self.behind_prompts(ForwardCall(inputs, read), texts)
        if cut.past is None or cut.prefix_states is None:
            return False
        with torch.no_grad():
            expected = self.model(**inputs, **no_cache_option(self.model.base)).logits[read]
            behind_past = with_past(cut)
            with self.caches.start_from_prefix(cut.prefix_states), base_errors():
                out = self.model(**behind_past, **no_cache_option(self.model.base))
        given = out.logits[cut.positions]
        if expected.dtype == torch.float64:  # beside which adapters compute some in float32
            expected, given = expected.float(), given.float()
        return near(given, expected)

    def _behind(self, head: PromptRow) -> PromptRow:
        return behind(head, self._opening.ids)

    def _read_prompts(self, rows: Rows) -> dict[str, list[Tensor]]:
        """Keys and values behind the opening, of each row (length, heads, width of a head)."""
        found = self._opening.left_by(rows)
        return {name: [own[name] for own in found] for name in found[0]}

    def _answer_length(self, row: PromptRow) -> int:
        return len(row) - self._start[row]

    def _read_answers(self, rows: Rows) -> dict[str, Tensor]:
        """What enters the first fused layer from each prompt's last position on."""
        starts = [self._start[row] for row in rows]
        texts = [PromptRow(row.ids[start:]) for row, start in zip(rows, starts, strict=True)]
        batch = self.caches.prompts.collate(texts, self.caches.pad)
        call = ForwardCall(
            on_device(batch, self.model.device),
            batch["attention_mask"].bool(),
            past=self._past(rows, starts, lambda number: number < self.layer),
        )
        behind_past = with_past(call)
        with base_errors():
            return run_until(self.model, behind_past, layer=self.layer)


def with_past(call: ForwardCall) -> dict[str, Any]:
    """A call's inputs, with what its prompts left: keys, values, their mask and positions."""
    assert call.past is not None
    own = behind_pasts(
        [[row] for row in call.past], call.inputs["input_ids"], call.inputs["attention_mask"]
    )
    return {**call.inputs, **own}
