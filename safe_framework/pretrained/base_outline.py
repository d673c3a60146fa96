"""What the config of a base says of it, read without torch and without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from safe_framework.pretrained.cards import read_card
from safe_framework.pretrained.location import composed_folder
from safe_framework.utils import catalogue

if TYPE_CHECKING:
    from safe_framework.config.schema import BaseSpec

CONFIG = "config.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""One of these is beside the config of a base whose processor can be loaded."""
_LAYERS = ("num_layers_per_stack", "num_hidden_layers", "n_layer", "num_layers", "n_layers")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers", "num_layers")
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder")


@attrs.frozen
class KnownType:
    """What is known of a type of model in some version of transformers.

    Attributes:
        tasks: ``"causal"``, ``"image_text"`` and ``"seq2seq"``, those that it has a model for.
        refused: why it cannot be given a modality; empty if it can.
        needs_picture: whether it runs on no text without a picture.
        torchvision: what its processor reads with torchvision alone: ``"videos"``, or
            ``"pictures"`` as well; empty if nothing.
    """

    tasks: tuple[str, ...] = attrs.field(converter=tuple)
    refused: str = ""
    needs_picture: bool = False
    torchvision: str = ""


@attrs.frozen
class BaseOutline:
    """A base as its config describes it.

    Attributes:
        config: the content of its ``config.json``.
        folder: where that file is; None if a card has its content.
    """

    config: Mapping[str, Any]
    folder: Path | None = None

    @property
    def model_type(self) -> str:
        """The name of its type in transformers; empty if the config has none."""
        return str(self.config.get("model_type", ""))

    @property
    def known(self) -> KnownType | None:
        """What is known of its type; None if it is not among the known ones."""
        return known_types().get(self.model_type)

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the config that describes the language model."""
        parts = (self.config.get(name) for name in _TEXT_PARTS)
        return next((part for part in parts if isinstance(part, Mapping)), self.config)

    @property
    def sees(self) -> bool:
        """Whether it is given pictures."""
        known = self.known
        return "vision_config" in self.config or (known is not None and "image_text" in known.tasks)

    @property
    def decodes_separately(self) -> bool:
        """Whether the text to be continued goes to a decoder of its own."""
        return any(part.get("is_encoder_decoder") is True for part in (self.config, self.text))

    @property
    def layers(self) -> int | None:
        """How many decoder layers it has, if the config says."""
        names = _DECODER_LAYERS if self.decodes_separately else _LAYERS
        found = (self.text.get(name) for name in names)
        return next((number for number in found if isinstance(number, int)), None)

    @property
    def picture_layers(self) -> frozenset[int]:
        """The layers that attend to pictures and run only beside one."""
        return frozenset(self.text.get("cross_attention_layers") or ())

    @property
    def has_processor(self) -> bool:
        """Whether the files of a processor are beside the config; True where nobody can tell."""
        folder = self.folder
        return folder is None or any((folder / name).is_file() for name in PROCESSORS)


def outline_of(spec: BaseSpec) -> BaseOutline | None:
    """The outline of what a recipe names; None if its config is not on this machine.

    Args:
        spec: its ``[base]``. Nothing is downloaded for it, and nothing converted.
    """
    folder = Path(spec.model).expanduser()
    if spec.gguf_file is not None:
        return None
    if folder.is_dir():
        return _read(folder)
    card = catalogue.cards().get(spec.model)
    if card is None and (made := composed_folder(spec.model)).is_dir():
        return _read(made)
    if card is None:
        return _cached(spec.model, spec.revision)
    found = read_card(card)
    if found.config:
        return BaseOutline(found.config)
    return None if found.package is not None else _cached(found.hub_id, found.revision)


def takes_pictures(spec: BaseSpec) -> bool | None:
    """Whether a base is given pictures; None if nothing on this machine says so."""
    if spec.compose is not None or spec.gguf_file is not None:
        return spec.gguf_file is None  # out of GGUF, transformers reads language models alone
    found = outline_of(spec)
    return None if found is None else found.sees and found.has_processor


@cache
def known_types() -> dict[str, KnownType]:
    """Every known type by its name, as the zoo wrote them down."""
    return {name: KnownType(**facts) for name, facts in _written()["types"].items()}


def known_release() -> str:
    """The version of transformers that the known types are of."""
    return str(_written()["transformers"])


@cache
def _written() -> dict[str, Any]:
    path = Path(__file__).with_name("known_types.json")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _cached(name: str, revision: str | None) -> BaseOutline | None:
    """The outline of a checkpoint that was downloaded from the hub before."""
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(name, CONFIG, revision=revision)
    except ValueError:  # not the form of a hub id: reading the recipe's base will say so
        return None
    return _read(Path(path).parent) if isinstance(path, str) else None


def _read(folder: Path) -> BaseOutline | None:
    try:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return BaseOutline(content, folder) if isinstance(content, dict) else None
