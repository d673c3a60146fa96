"""How well a composed base captions pictures that training never saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.progress import WorkProgress

if TYPE_CHECKING:
    from safe_framework.compose.pictures import Captioned

CHOICES = 10
_LONGEST = 16
_SMALL = frozenset("a an the of in on is and with to for".split())  # noqa: SIM905  # reads better


@attrs.frozen
class Scores:
    """Shares from 0 to 1 over held-out pictures.

    Attributes:
        pictures: how many there are.
        choices: captions among which one is chosen: the picture's own, and other pictures'.
        chosen: its own caption is the likeliest (mean log-likelihood of a word).
        chosen_other: the same when the model is shown another picture: what captions alone give.
        exact: the generated caption is the picture's own but for case and punctuation.
        words: of the own caption's words, but for small ones, those that the generated one has.
    """

    pictures: int
    choices: int
    chosen: float
    chosen_other: float
    exact: float
    words: float


def score(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Captioned],
    prompt: str,
    seed: int,
    progress: WorkProgress,
) -> Scores:
    """Caption held-out pictures, and choose among their captions.

    Args:
        model: composed.
        tokenizer: its own.
        rows: at least two pictures.
        prompt: the text before a caption.
        seed: of the captions to choose among.
        progress: the bars.
    """
    from safe_framework.compose.train import CaptionCollator

    collate = CaptionCollator(tokenizer, prompt, model.config.image_token_id)
    generator = torch.Generator().manual_seed(seed)
    own, other, said = [], [], []
    for number, row in enumerate(rows):
        captions = _choices(rows, number, generator)
        own.append(_likeliest(model, collate, row.patches, captions) == 0)
        other.append(_likeliest(model, collate, _another(rows, number), captions) == 0)
        said.append(caption(model, collate, row.patches))
        progress("captioning", number + 1, len(rows))
    return Scores(
        pictures=len(rows),
        choices=min(CHOICES, len({row.caption for row in rows})),
        chosen=sum(own) / len(rows),
        chosen_other=sum(other) / len(rows),
        exact=sum(_plain(a) == _plain(r.caption) for a, r in zip(said, rows, strict=True))
        / len(rows),
        words=sum(_recall(a, r.caption) for a, r in zip(said, rows, strict=True)) / len(rows),
    )


def caption(model: Any, collate: Any, patches: Tensor) -> str:
    """What the model says of one picture, word by likeliest word."""
    from safe_framework.compose.train import see

    ids = collate.prompt_ids(len(patches))
    start, device = len(ids), model.device
    while len(ids) < start + _LONGEST:
        with torch.no_grad():
            logits = see(model, patches[None].to(device), input_ids=torch.tensor([ids]).to(device))
        word = int(logits.logits[0, -1].argmax())
        if word == collate.tokenizer.eos_token_id:
            break
        ids.append(word)
    text: str = collate.tokenizer.decode(ids[start:], skip_special_tokens=True)
    return text.strip()


def _choices(rows: Sequence[Captioned], number: int, generator: torch.Generator) -> list[str]:
    """The row's own caption first, then other captions, each once."""
    own = rows[number].caption
    others = sorted({row.caption for row in rows} - {own})
    order = torch.randperm(len(others), generator=generator)[: CHOICES - 1].tolist()
    return [own, *(others[place] for place in order)]


def _another(rows: Sequence[Captioned], number: int) -> Tensor:
    """The patches of the next picture that has another caption."""
    order = [*rows[number + 1 :], *rows[:number]]
    return next((row for row in order if row.caption != rows[number].caption), order[0]).patches


def _likeliest(model: Any, collate: Any, patches: Tensor, captions: Sequence[str]) -> int:
    from safe_framework.compose.pictures import Captioned
    from safe_framework.compose.train import see
    from safe_framework.training.batches import IGNORED

    rows = [Captioned(text, None, patches) for text in captions]  # type: ignore[arg-type]  # no file
    batch = {name: value.to(model.device) for name, value in collate(rows).items()}
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = see(model, **batch).logits[:, :-1].float().log_softmax(-1)
    learned = labels != IGNORED
    each = logits.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)  # (captions, length)
    return int(((each * learned).sum(1) / learned.sum(1)).argmax())


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _recall(said: str, own: str) -> float:
    wanted = {word for word in _plain(own).split() if word not in _SMALL}
    return len(wanted & set(_plain(said).split())) / len(wanted) if wanted else 0.0
