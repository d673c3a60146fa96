"""Checkpoints without their weights: models of the right sizes on the meta device."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.errors import CheckpointError
from safe_framework.pretrained.cards import Card, read_card
from safe_framework.pretrained.location import override_resolve
from safe_framework.utils import catalogue
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

if TYPE_CHECKING:
    from torch import nn

_FILES = {"config": "config.json", "preprocessor": "preprocessor_config.json"}


@contextmanager
def meta_models() -> Iterator[None]:
    """Within the block, transformers' models are made from configs alone, without values.

    A config is that of a folder, or of the card that has the name or the hub id. Nothing is
    downloaded. Not for two threads at once: it replaces ``PreTrainedModel.from_pretrained``.
    """
    set_aside_broken_torchaudio()
    with (
        tempfile.TemporaryDirectory(prefix="safe-meta-models-") as scratch,
        override_resolve(partial(_place, Path(scratch))),
        _without_weights(),
    ):
        yield


def card_of(name: str) -> Card | None:
    """The card that has this name or this hub id, unless the name is a folder."""
    if Path(name).expanduser().is_dir():
        return None
    cards = (read_card(path) for path in catalogue.cards().values())
    found = [card for card in cards if name in (card.name, card.hub)]
    return next((card for card in found if card.name == name), found[0] if found else None)


def base_meta_model(name: str) -> nn.Module:
    """The base model called ``name``, within :func:`meta_models`."""
    import transformers

    from safe_framework.pretrained import quietly, resolve

    place = resolve(name)
    with quietly():
        config = transformers.AutoConfig.from_pretrained(place)
    kind = getattr(transformers, (config.architectures or ["missing"])[0], None)
    if kind is None:
        raise CheckpointError(f"the config of `{name}` names no `architectures` of transformers")
    model: nn.Module = kind.from_pretrained(place, config=config)
    return model


def write_configs(card: Card, folder: Path) -> None:
    """Write a card's config, and its preprocessor's if there is one, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, file in _FILES.items():
        if table := getattr(card, key):
            (folder / file).write_text(json.dumps(table, indent=2), "utf-8")


def _place(scratch: Path, name: str) -> str:
    folder = Path(name).expanduser()
    if (folder / _FILES["config"]).is_file():
        return str(folder)
    card = card_of(name)
    if card is None or not card.config:
        raise CheckpointError(
            f"the sizes of `{name}` are not known without its weights",
            hint="name a folder with a config.json, or a card with a `[config]` table",
        )
    write_configs(card, scratch / card.name)
    return str(scratch / card.name)


@contextmanager
def _without_weights() -> Iterator[None]:
    import transformers

    kind: Any = transformers.PreTrainedModel
    original = vars(kind)["from_pretrained"]
    kind.from_pretrained = classmethod(_from_config)
    try:
        yield
    finally:
        kind.from_pretrained = original


def _from_config(
    kind: Any,
    place: Any,
    /,
    *_: Any,
    config: Any = None,
    output_loading_info: bool = False,
    **__: Any,
) -> Any:
    import torch

    with torch.device("meta"):
        model = kind(config if config is not None else kind.config_class.from_pretrained(place))
    nothing: dict[str, set[str]] = {"missing_keys": set(), "unexpected_keys": set()}
    return (model.eval(), nothing) if output_loading_info else model.eval()
