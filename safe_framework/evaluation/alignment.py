"""Cross-modal alignment: do a sample's tokens point to where the words of its answer lie?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.data.tasks import unique
from safe_framework.evaluation.metrics import Estimate, bootstrap
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.sequences import batched

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel
    from safe_framework.data.examples import Example


@attrs.frozen
class CrossModal:
    """Cosines of a sample's mean token with the answers' input embeddings, less their mean.

    An adapter may work without any such likeness: it is a diagnosis, no goal.

    Attributes:
        cosine: with the expected answer.
        margin: that, less the largest with any other test answer.
        nearest: share of samples to which the expected answer is the nearest of all.
    """

    cosine: Estimate
    margin: Estimate
    nearest: Estimate


@torch.no_grad()
def cross_modal(
    model: SafeModel,
    modality: str,
    test: Sequence[Example],
    *,
    batch_size: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> CrossModal | None:
    """Alignment of the test samples; None where they have less than two different answers.

    Args:
        model: in eval mode.
        modality: whose projector is asked.
        test: examples, each with a sample.
        batch_size: examples at a time.
        resamples: of the intervals.
        seed: of the intervals.
        progress: called after every batch.
    """
    answers = unique([example.answer for example in test])
    if len(answers) < 2:
        return None
    targets = answer_embeddings(model, answers).cpu()  # (answers, hidden)
    rows: list[torch.Tensor] = []
    for some in batched(test, batch_size):
        frames = model.encode(modality, [example.samples[modality] for example in some])
        tokens = model.modality(modality).projector(frames)
        mask = tokens.mask.unsqueeze(-1)
        mean = torch.where(mask, tokens.values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
        rows += torch.nn.functional.normalize(mean.float().cpu(), dim=-1)
        progress("alignment", len(rows), len(test))
    cosines = torch.stack(rows) @ targets.T  # (examples, answers)
    wanted = torch.tensor([answers.index(example.answer) for example in test]).unsqueeze(1)
    own = cosines.gather(1, wanted).squeeze(1)
    best_other = cosines.scatter(1, wanted, -2.0).amax(1)

    def estimate(values: torch.Tensor) -> Estimate:
        """The mean of a number for each sample, with its interval."""
        return bootstrap(values.double().numpy(), resamples=resamples, seed=seed)

    return CrossModal(estimate(own), estimate(own - best_other), estimate(own > best_other))


@torch.no_grad()
def answer_embeddings(model: SafeModel, answers: Sequence[str]) -> Tensor:
    """Unit vectors towards each answer's mean input embedding, less their common mean."""
    embed: nn.Module = model.base.get_input_embeddings()  # type: ignore[operator]  # a method
    means = []
    for answer in answers:
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        means.append(embed(torch.tensor(ids, device=model.device)).float().mean(0))
    stacked = torch.stack(means)  # (answers, hidden)
    centred = stacked - stacked.mean(0) if len(answers) > 1 else stacked
    return nn.functional.normalize(centred, dim=-1)
