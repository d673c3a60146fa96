"""The next token of one answer, from its own logits and its own random numbers.

Nothing here sees another row of the batch: an answer that is sampled with a seed is the same
whoever else is answered.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safe_framework.errors import SafeError
from safe_framework.serving.engine import Sampling, TokenLogprob

_UNREAD = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length",
    "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "sequence_bias", "typical_p", "epsilon_cutoff", "eta_cutoff", "min_p",
    "guidance_scale", "penalty_alpha", "watermarking_config", "exponential_decay_length_penalty",
)  # fmt: skip
_NEUTRAL: tuple[Any, ...] = (None, 0, 0.0, False, 1.0, [], {})


def check_settings(base: Any) -> None:
    """Refuse a base whose own generation settings ask for what is not done here.

    Raises:
        SafeError: they do.
    """
    settings = base.generation_config
    asked = [name for name in _UNREAD if getattr(settings, name, None) not in _NEUTRAL]
    if (getattr(settings, "num_beams", None) or 1) > 1:
        asked.append("num_beams")
    if asked:
        raise SafeError(
            f"the generation settings of `{type(base).__name__}` ask for "
            f"{', '.join(f'`{name}`' for name in asked)}, which the server does not do",
            hint="remove it from the `generation_config.json` of the base",
        )


def with_defaults(given: Sampling, base: Any) -> Sampling:
    """The same, with the base's own generation settings where nothing is said."""
    import attrs

    own = base.generation_config
    warm = own.temperature if own.do_sample and own.temperature is not None else None
    temperature = given.temperature
    if temperature is None:
        temperature = (1.0 if warm is None else warm) if own.do_sample else 0.0
    return attrs.evolve(
        given,
        temperature=temperature,
        top_p=_or(given.top_p, own.top_p, 1.0),
        top_k=_or(given.top_k, own.top_k, 0),
        repetition_penalty=_or(given.repetition_penalty, own.repetition_penalty, 1.0),
    )


def _or(given: Any, own: Any, otherwise: Any) -> Any:
    return given if given is not None else own if own is not None else otherwise


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: with nothing left open.
        prompt: ids of the prompt.
        index: of the answer among those of its request, each of which has random numbers of its
            own.
        tokenizer: for the texts of tokens.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], index: int, tokenizer: Any
    ) -> None:
        self.sampling, self.tokenizer = sampling, tokenizer
        self.counts: Counter[int] = Counter()
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set[int]()
        self._random = torch.Generator()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
        self._random.manual_seed(int.from_bytes(digest[:7], "little"))

    @property
    def likeliest(self) -> bool:
        """Whether it is the model's likeliest token, whatever came before."""
        own = self.sampling
        return (
            own.temperature == 0
            and not own.frequency_penalty
            and not own.presence_penalty
            and not own.logit_bias
            and own.repetition_penalty == 1.0
        )

    def choose(self, logits: Tensor, likeliest: int | None = None) -> int:
        """The next token.

        Args:
            logits: of the model, (vocabulary,), float32.
            likeliest: the token of the highest of them, where that is known.
        """
        if self.likeliest:
            token = int(logits.argmax()) if likeliest is None else likeliest
        else:
            scores = self._penalised(logits.cpu())
            cold = self.sampling.temperature == 0
            token = int(scores.argmax()) if cold else self._drawn(scores)
        self.counts[token] += 1
        return token

    def logprob(self, logits: Tensor, token: int) -> TokenLogprob:
        """How likely a token was by the model's own logits, and which were the likeliest."""
        logs = logits.log_softmax(-1)
        top: tuple[tuple[int, str, float], ...] = ()
        if count := min(self.sampling.top_logprobs, len(logs)):
            values, ids = logs.topk(count)
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            top = tuple((one, self._text(one), value) for one, value in pairs)
        return TokenLogprob(token, self._text(token), float(logs[token]), top)

    def _text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    def _penalised(self, logits: Tensor) -> Tensor:
        own, scores = self.sampling, logits.clone()
        penalty = own.repetition_penalty
        if penalty is not None and penalty != 1.0:
            seen = [one for one in self._seen | self.counts.keys() if one < len(scores)]
            ids = torch.tensor(sorted(seen), dtype=torch.long)
            known = scores[ids]
            scores[ids] = torch.where(known > 0, known / penalty, known * penalty)
        if self.counts and (own.frequency_penalty or own.presence_penalty):
            ids = torch.tensor(list(self.counts))
            times = torch.tensor(list(self.counts.values()), dtype=scores.dtype)
            scores[ids] -= own.frequency_penalty * times + own.presence_penalty
        for token, bias in own.logit_bias.items():
            scores[token] += bias
        return scores

    def _drawn(self, scores: Tensor) -> int:
        """A token drawn by its probability, by one random number for each."""
        own = self.sampling
        assert own.temperature is not None
        values, ids = (scores.double() / own.temperature).sort(descending=True, stable=True)
        if own.top_k:
            values, ids = values[: own.top_k], ids[: own.top_k]
        shares = values.softmax(-1)
        sums = shares.cumsum(-1)
        if own.top_p is not None and own.top_p < 1:
            kept = int((sums - shares < own.top_p).sum())  # the first is always among them
            sums = sums[:kept]
        drawn = torch.rand((), generator=self._random, dtype=torch.float64) * sums[-1]
        place = min(int(torch.searchsorted(sums, drawn, right=True)), len(sums) - 1)
        return int(ids[place])
