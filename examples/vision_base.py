"""The composed vision-language base of `examples/add_depth_modality.py --vision`.

It is what `examples/compose_stamps.py` and `safe compose` make of SmolLM2-135M and DINOv2; where it
is not there yet, it is made here, once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compose_stamps import captioned, prepare
from rich.console import Console
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from safe_framework import SafeModel
from safe_framework.cli.compose import lines
from safe_framework.config.read import read_recipe
from safe_framework.core.base_model import freeze
from safe_framework.errors import SafeError
from safe_framework.experimental.vision_language.pictures import read_picture
from safe_framework.experimental.vision_language.train import NOTE, compose_recipe
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal

BASE, RECIPE = "base", "recipe.toml"


def composed(folder: Path, stamps: Path, console: Console) -> Path:
    """The base in `folder`, composed now from the pictures in `stamps` if it is not there.

    Raises:
        SafeError: neither is there.
    """
    base = folder / BASE
    if (base / NOTE).is_file():
        return base
    if not stamps.is_dir() or not captioned(stamps):
        raise SafeError(
            f"there is no composed base in `{base}`, and there are no captioned pictures in"
            f" `{stamps}` to make it with",
            hint="apt-get download tuxpaint-stamps-default && "
            f"dpkg-deb -x tuxpaint-stamps-default_*.deb {stamps}",
        )
    prepare(stamps, folder)
    with WorkProgress(console).showing() as progress:
        _, scores = compose_recipe(read_recipe(str(folder / RECIPE)), progress, base)
    if scores is not None:
        console.print("\n".join(lines(scores)), markup=False)
    return base


class Seen(NamedTuple):
    """A picture's caption, the unwrapped base's answer, and whether depth off gives the same."""

    caption: str
    answer: str
    same: bool


@torch.no_grad()
def captions_with_depth_off(
    model: SafeModel, folder: Path, samples: Mapping[str, Tensor], count: int = 6
) -> list[Seen]:
    """Caption held-out pictures with the composed base as it is on disk, and with ours beside it.

    Args:
        model: with a depth modality attached.
        folder: that `composed` filled.
        samples: one present depth map, which is given with each picture and switched off.
        count: pictures to caption.
    """
    note = json.loads((folder / BASE / NOTE).read_text("utf-8"))
    unwrapped = freeze(LlavaForConditionalGeneration.from_pretrained(folder / BASE))
    kind: Any = LlavaProcessor  # which does not declare its types
    processor = kind.from_pretrained(folder / BASE)
    rows = [json.loads(line) for line in _test_rows(folder, note, count)]
    return [_seen(model, unwrapped, processor, note, row, folder, samples) for row in rows]


def _test_rows(folder: Path, note: Mapping[str, Any], count: int) -> Sequence[str]:
    name: str = note["compose"]["test"] or note["compose"]["train"]
    return (folder / name).read_text("utf-8").splitlines()[:count]


def _seen(
    model: SafeModel,
    unwrapped: Any,
    processor: Any,
    note: Mapping[str, Any],
    row: Mapping[str, str],
    folder: Path,
    samples: Mapping[str, Tensor],
) -> Seen:
    picture = read_picture(folder / row["image"])
    prompt = note["compose"]["prompt"]
    batch = processor(images=[picture], text=[prompt], return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = unwrapped.generate(**batch, **options)
    with model.off():
        words = model.generate(**batch, **samples, **options)
        same = bitwise_equal(model(**batch, **samples).logits, unwrapped(**batch).logits)
    answer = processor.tokenizer.decode(
        expected[0, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return Seen(row["caption"], answer.strip(), same and torch.equal(words, expected))
