"""Cross-modal alignment: where do a sample's tokens lie, as the base sees things?

Against the words of its answer, and against what the base makes of the picture that it goes with.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.model import SafeModel
from safe_framework.data.aligned_words import words_for
from safe_framework.data.tasks import unique
from safe_framework.evaluation.answers import example_inputs, for_logits, placeholders
from safe_framework.evaluation.metrics import Estimate, bootstrap
from safe_framework.interfaces.samples import Sample, each_of, sample_counts
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


IMAGE_FEATURES = "image features"
ENTERING = "hidden states that enter the first layer at the placeholders"
LEAVING = "hidden states that leave the last layer at the placeholders"


@attrs.frozen
class PictureAlignment:
    """Cosines of a sample's mean token with the mean of what the base makes of its picture.

    Attributes:
        cosine: with the row's own picture.
        shuffled: with other rows' pictures, in the mean over all of them.
        margin: paired difference of the two.
        nearest: share of samples to which the own picture is the nearest of all, both sides less
            their common mean; by chance it is one in ``pictures``.
        pictures: how many different ones there are.
        source: what the pictures' vectors are.
    """

    cosine: Estimate
    shuffled: Estimate
    margin: Estimate
    nearest: Estimate
    pictures: int
    source: str


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

    Of several samples in a row, those count whose words the row says.

    Args:
        model: in eval mode.
        modality: whose projector is asked.
        test: examples, each with a sample.
        batch_size: samples at a time.
        resamples: of the intervals.
        seed: of the intervals.
        progress: called after every batch.
    """
    samples, words = list[Sample](), list[str]()
    for example in test:
        held = each_of(example.samples[modality])
        named = words_for(example.aligned, len(held))
        samples += held if named else ()
        words += named
    answers = unique(words)
    if len(answers) < 2:
        return None
    targets = answer_embeddings(model, answers).cpu()  # (answers, hidden)
    means = _mean_tokens(model, modality, samples, batch_size, "alignment", progress)
    cosines = nn.functional.normalize(means, dim=-1) @ targets.T  # (samples, answers)
    wanted = torch.tensor([answers.index(word) for word in words]).unsqueeze(1)
    own = cosines.gather(1, wanted).squeeze(1)
    best_other = cosines.scatter(1, wanted, -2.0).amax(1)

    def estimate(values: torch.Tensor) -> Estimate:
        """The mean of a number for each sample, with its interval."""
        return bootstrap(values.double().numpy(), resamples=resamples, seed=seed)

    return CrossModal(estimate(own), estimate(own - best_other), estimate(own > best_other))


def _mean_tokens(
    model: SafeModel,
    modality: str,
    samples: Sequence[Sample],
    batch_size: int,
    label: str,
    progress: ProgressCallback,
) -> Tensor:
    """The mean of each sample's tokens, (samples, hidden), fp32 on the CPU."""
    rows: list[Tensor] = []
    for some in batched(samples, batch_size):
        frames = model.encode(modality, some)
        tokens = model.modality(modality).tokens(frames)
        mask = tokens.mask.unsqueeze(-1)
        mean = torch.where(mask, tokens.values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
        rows += mean.float().cpu()
        progress(label, len(rows), len(samples))
    return torch.stack(rows)


@torch.no_grad()
def picture_alignment(
    model: SafeModel,
    modality: str,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> PictureAlignment | str | None:
    """Alignment of samples with their rows' pictures; None where no row has both.

    Args:
        model: in eval mode.
        modality: whose projector is asked.
        examples: of which those with a picture and one sample count.
        batch_size: samples at a time.
        resamples: of the intervals.
        seed: of the intervals.
        progress: called after every batch.

    Returns:
        Or why it cannot be measured.
    """
    rows = [one for one in examples if one.images and sample_counts(one.samples).get(modality) == 1]
    if not rows:
        return None
    keys = [tuple(picture.digest for picture in row.images) for row in rows]
    distinct = dict(zip(reversed(keys), reversed(rows), strict=True))
    if len(distinct) < 2:
        return "all rows have the same picture, so that there is no other to compare with"
    samples = [row.samples[modality] for row in rows]
    means = _mean_tokens(model, modality, samples, batch_size, "samples beside pictures", progress)
    found = picture_features(model, list(distinct.values()), means.shape[-1], progress)
    if isinstance(found, str):
        return found
    features, source = found
    own = torch.tensor([list(distinct).index(key) for key in keys]).unsqueeze(1)
    cosines = _cosines(means, features)  # (examples, pictures)
    paired = cosines.gather(1, own).squeeze(1)
    others = (cosines.sum(1) - paired) / (len(distinct) - 1)
    centred = _cosines(means - means.mean(0), features - features.mean(0))
    rivals = centred.scatter(1, own, -2.0).amax(1)

    def estimate(values: Tensor) -> Estimate:
        """The mean of a number for each sample, with its interval."""
        return bootstrap(values.double().numpy(), resamples=resamples, seed=seed)

    return PictureAlignment(
        cosine=estimate(paired),
        shuffled=estimate(others),
        margin=estimate(paired - others),
        nearest=estimate(centred.gather(1, own).squeeze(1) > rivals),
        pictures=len(distinct),
        source=source,
    )


def _cosines(some: Tensor, others: Tensor) -> Tensor:
    """The cosine of each of ``some`` with each of ``others``."""
    return nn.functional.normalize(some, dim=-1) @ nn.functional.normalize(others, dim=-1).T


@torch.no_grad()
def picture_features(
    model: SafeModel,
    examples: Sequence[Example],
    width: int,
    progress: ProgressCallback = no_progress,
) -> tuple[Tensor, str] | str:
    """The mean of what the base makes of each row's pictures, (rows, ``width``), and where it is.

    That is the base's image features where they are what it puts at the placeholders of a picture,
    else its hidden states there: those that enter its first layer or, where these know nothing of
    the picture, those that leave the last.

    Args:
        model: in eval mode.
        examples: rows with pictures; their samples are left out.
        width: of the modality's tokens.
        progress: called after every row.

    Returns:
        Or why there are none.
    """
    found: dict[str, list[Tensor]] = {}
    for number, example in enumerate(examples, start=1):
        for source, features in _row_features(model, example).items():
            if features.shape[-1] == width:
                found.setdefault(source, []).append(features.float().mean(0).cpu())
        progress("pictures", number, len(examples))
    for source, rows in found.items():
        stacked = torch.stack(rows)
        if len(rows) == len(examples) and (len(rows) < 2 or bool((stacked != stacked[0]).any())):
            return stacked, source
    kind = type(model.base).__name__
    return f"`{kind}` shows nothing of its pictures in vectors as wide as the tokens ({width})"


def _row_features(model: SafeModel, example: Example) -> dict[str, Tensor]:
    """By where they are, vectors of one row's pictures, (vectors, width)."""
    batch = example_inputs(model, [attrs.evolve(example, samples={})])
    at = placeholders(model, batch["input_ids"])[0]
    with model.original_base():
        own = _image_features(model.base, batch)
        if own is not None and len(own) == int(at.sum()):
            return {IMAGE_FEATURES: own}
        if not at.any():
            return {}
        out: Any = model.base(**for_logits(model, batch), output_hidden_states=True)
    states = getattr(out, "encoder_hidden_states", None) or out.hidden_states
    return {ENTERING: states[0][0, at], LEAVING: states[-1][0, at]}


def _image_features(base: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """What ``get_image_features`` gives of a batch, (vectors, width); None where there is none."""
    method = getattr(base, "get_image_features", None)
    if method is None:
        return None
    known = inspect.signature(method).parameters
    found = method(**{name: value for name, value in batch.items() if name in known})
    found = getattr(found, "pooler_output", found)
    parts = list(found) if isinstance(found, (list, tuple)) else [found]
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        return None
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@torch.no_grad()
def answer_embeddings(model: SafeModel, answers: Sequence[str]) -> Tensor:
    """Unit vectors towards each answer's mean input embedding, less their common mean."""
    embed: nn.Module = model.base.get_input_embeddings()  # type: ignore[operator]  # a method
    if not answers:  # of conversations whose samples nothing names
        return torch.zeros(0, model.stack.hidden_size, device=model.device)
    means = []
    for answer in answers:
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        means.append(embed(torch.tensor(ids, device=model.device)).float().mean(0))
    stacked = torch.stack(means)  # (answers, hidden)
    centred = stacked - stacked.mean(0) if len(answers) > 1 else stacked
    return nn.functional.normalize(centred, dim=-1)
