"""How well a composed base captions pictures that training never saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from safe_framework.evaluation.metrics import Estimate, bootstrap
from safe_framework.training.batches import IGNORED, pad_right
from safe_framework.utils.progress import WorkProgress

if TYPE_CHECKING:
    from safe_framework.experimental.vision_language.pictures import Captioned

CHOICES = 10
_AT_ONCE = 10
_LONGEST = 16
_SMALL = frozenset("a an the of in on is and with to for".split())  # noqa: SIM905  # reads better


@attrs.frozen
class Captioning:
    """Means over held-out pictures, with 95 % bootstrap intervals over the pictures.

    Attributes:
        chosen: the picture's own caption is the likeliest of several, by the mean log-likelihood
            of their tokens.
        exact: the greedy caption is the picture's own but for case and punctuation.
        words: F1 of the greedy caption's words against the own caption's, small words left out.
    """

    chosen: Estimate
    exact: Estimate
    words: Estimate


@attrs.frozen
class Scores:
    """What a composed base says of held-out pictures, and what it says without seeing them.

    Attributes:
        pictures: how many there are.
        choices: captions among which one is chosen: the picture's own, and other pictures'.
        seeing: shown each picture.
        shuffled: shown another picture, of another caption.
        blind: shown none: the language model alone, after the prompt without ``<image>``.
    """

    pictures: int
    choices: int
    seeing: Captioning
    shuffled: Captioning
    blind: Captioning


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
        seed: of the captions to choose among, and of the intervals.
        progress: the bars.
    """
    from safe_framework.experimental.vision_language.train import CaptionCollator

    collate = CaptionCollator(tokenizer, prompt, model.config.image_token_id)
    generator = torch.Generator().manual_seed(seed)
    choices = [_choices(rows, number, generator) for number in range(len(rows))]
    own: Sequence[Tensor] = [row.patches for row in rows]
    shown: dict[str, Sequence[Tensor | None]] = {
        "seeing": own,
        "shuffled": [own[_another(rows, number)] for number in range(len(rows))],
        "blind": [None] * len(rows),
    }
    found: dict[str, Captioning] = {}
    for name, pictures in shown.items():
        said, chosen = list[str](), list[bool]()
        for start in range(0, len(rows), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            asked = _Asked(model, collate, pictures[some])
            said += asked.captions()
            chosen += [place == 0 for place in asked.likeliest(choices[some])]
            progress(f"captioning, {name}", len(said), len(rows))
        found[name] = _captioning(said, chosen, rows, seed)
    return Scores(len(rows), len(choices[0]), **found)


class _Asked:
    """Some pictures, each after the prompt; their keys and values are computed once.

    Args:
        model: composed.
        collate: knows the prompt.
        pictures: patches of each, (tokens, dim); or None for all of them.
    """

    def __init__(self, model: Any, collate: Any, pictures: Sequence[Tensor | None]) -> None:
        from safe_framework.experimental.vision_language.train import see

        self.model, self.collate, self.count = model, collate, len(pictures)
        seen = [picture for picture in pictures if picture is not None]
        ids = collate.prompt_ids(len(seen[0]) if seen else 0)
        texts: dict[str, Any] = {"use_cache": True}
        with torch.no_grad():
            if seen:
                texts["input_ids"] = torch.tensor([ids] * len(seen)).to(model.device)
                out = see(model, torch.stack(seen).to(model.device), **texts)
            else:
                blank = ids or [_beginning(collate.tokenizer)]
                out = model(input_ids=torch.tensor([blank] * self.count).to(model.device), **texts)
        self.cache, self.next = out.past_key_values, out.logits[:, -1].float()

    @torch.no_grad()
    def captions(self) -> list[str]:
        """What the model says of each, word by likeliest word."""
        end = self.collate.tokenizer.eos_token_id
        cache, words = deepcopy(self.cache), [self.next.argmax(-1)]
        done = words[0] == end
        while len(words) < _LONGEST and not done.all():
            out = self.model(input_ids=words[-1][:, None], past_key_values=cache, use_cache=True)
            words.append(out.logits[:, -1].argmax(-1))
            done |= words[-1] == end
        said = torch.stack(words, 1).tolist()
        ends = [row.index(end) if end in row else len(row) for row in said]
        texts = [row[:place] for row, place in zip(said, ends, strict=True)]
        decoded = self.collate.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    @torch.no_grad()
    def likeliest(self, choices: Sequence[Sequence[str]]) -> list[int]:
        """The place of the likeliest of each one's captions, of which all have as many."""
        many = len(choices[0])
        ids = [self.collate.caption_ids(caption) for some in choices for caption in some]
        labels = pad_right(ids, IGNORED).to(self.model.device)  # (pictures * many, length)
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(many)
        after = self.model(
            input_ids=labels[:, :-1].clamp_min(0), past_key_values=cache, use_cache=True
        ).logits
        first = self.next.repeat_interleave(many, 0).unsqueeze(1)
        chances = torch.cat([first, after.float()], 1).log_softmax(-1)
        each = chances.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)
        real = labels != IGNORED
        mean = (each * real).sum(1) / real.sum(1)
        best: list[int] = mean.reshape(self.count, many).argmax(1).tolist()
        return best


def _captioning(
    said: Sequence[str], chosen: Sequence[bool], rows: Sequence[Captioned], seed: int
) -> Captioning:
    pairs = [(text, row.caption) for text, row in zip(said, rows, strict=True)]
    return Captioning(
        chosen=bootstrap(chosen, seed=seed),
        exact=bootstrap([_plain(text) == _plain(own) for text, own in pairs], seed=seed),
        words=bootstrap([_overlap(text, own) for text, own in pairs], seed=seed),
    )


def _beginning(tokenizer: Any) -> int:
    """What stands for a prompt that is empty without its picture."""
    begin = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if begin is None else begin)


def _choices(rows: Sequence[Captioned], number: int, generator: torch.Generator) -> list[str]:
    """The row's own caption first, then other captions, each once."""
    own = rows[number].caption
    others = sorted({row.caption for row in rows} - {own})
    order = torch.randperm(len(others), generator=generator)[: CHOICES - 1].tolist()
    return [own, *(others[place] for place in order)]


def _another(rows: Sequence[Captioned], number: int) -> int:
    """The place of the next picture that has another caption."""
    order = [*range(number + 1, len(rows)), *range(number)]
    others = [place for place in order if rows[place].caption != rows[number].caption]
    found: int = (others or order)[0]
    return found


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _overlap(said: str, own: str) -> float:
    """F1 of the words in common, each as often as both have it."""
    given, wanted = (
        Counter(word for word in _plain(text).split() if word not in _SMALL) for text in (said, own)
    )
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if common else 0.0
