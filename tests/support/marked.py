"""A modality with markers in the text, for the tests of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from safe_framework.core.model import SafeModel
from tests.support.toys import DIM, ToyEncoder, ToyFusion, ToyProjector, lora, tokenizer

TOKENS = 3
SAMPLE = torch.linspace(-1, 1, TOKENS * DIM).reshape(TOKENS, DIM)

TEXTS = ["w3 <touch> w4 w5", "w6", "<touch> w7 w8"]


class ThreeTokens(ToyProjector):
    """The toy projector, for samples of three frames."""

    tokens = TOKENS


def marking(
    base: nn.Module,
    *names: str,
    inline: bool = False,
    silent: bool = False,
    words: Any = None,
) -> SafeModel:
    """The base with modalities that have markers (``touch`` if none is named).

    Args:
        base: any toy base.
        *names: of the modalities.
        inline: with their tokens between the markers.
        silent: with a fusion adapter that changes nothing.
        words: the tokenizer.
    """
    model = SafeModel(base, words or tokenizer())
    for number, name in enumerate(names or ("touch",)):
        torch.manual_seed(number)
        model.add_modality(
            name,
            encoder=ToyEncoder(),
            projector=ThreeTokens(),
            fusion=lora(model) if silent else ToyFusion(layers=(number % 2,)),
            markers=True,
            inline=inline,
        )
        modality = model.modality(name)
        assert modality.markers is not None
        torch.nn.init.normal_(modality.markers.table)
    return model


def batch_of(model: SafeModel, **options: Any) -> Any:
    """Three texts of which the second has no sample."""
    return model.processor(TEXTS, touch=[SAMPLE, None, SAMPLE], **options)
