"""What a recipe may say of a base that is put together from two pretrained parts."""

from __future__ import annotations

import attrs

from safe_framework.config.validators import above, at_least, holds, not_empty


@attrs.frozen
class ComposeSpec:
    """``[base.compose]``: a vision-language base from two pretrained parts, made once.

    Attributes:
        vision: image encoder: hub id, folder, or the name of a card.
        language: language model, likewise.
        train: captioned pictures on which the projector between the two is trained.
        test: the same, held out.
        prompt: the text before a caption; ``<image>`` is where the picture is.
        image_size: side of the square pictures, in pixels; the encoder's own if None.
        layer: which hidden states of the image encoder are projected.
        align_steps: steps that draw a picture's tokens to its caption's words, before the
            language model is run; 0 for none.
        max_steps: optimizer steps.
        batch_size: pictures a step.
        learning_rate: peak rate of the projector.
        warmup_steps: steps over which the rate rises from 0.
        seed: of everything random.
    """

    vision: str = attrs.field(validator=not_empty)
    language: str = attrs.field(validator=not_empty)
    train: str | None = None
    test: str | None = None
    prompt: str = attrs.field(default="<image>", validator=holds("<image>"))
    image_size: int | None = None
    layer: int = -2
    align_steps: int = attrs.field(default=100, validator=at_least(0))
    max_steps: int = attrs.field(default=500, validator=at_least(1))
    batch_size: int = attrs.field(default=16, validator=at_least(1))
    learning_rate: float = attrs.field(default=1e-3, validator=above(0))
    warmup_steps: int = attrs.field(default=20, validator=at_least(0))
    seed: int = attrs.field(default=0, validator=at_least(0))
