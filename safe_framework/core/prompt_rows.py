"""Rows of a call: the token ids of a text and its pictures, as the base's own processor has them.

A base that sees is given more than ids. What its processor makes of one row at a time is joined
here into a batch: a tensor with a value for each token is padded as the ids are, and any other is
put behind those of the rows before, filled up with zeros where it is smaller.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.markers.text import NOTHING_SAID, MarkerText, Said
from safe_framework.core.model import SafeModel
from safe_framework.core.padding import (
    is_per_token,
    pad_left,
    pad_right,
    per_token_inputs,
)
from safe_framework.core.processor import SafeProcessor, with_start_token
from safe_framework.data.pictures import Picture
from safe_framework.data.tasks import NO_SAMPLES
from safe_framework.errors import SafeError, SampleError
from safe_framework.pretrained.base_processor import text_tokenizer
from safe_framework.utils.hashing import text_fingerprint

PIXELS = "pixel_"
"""How the names of the inputs begin that the image tower alone reads."""
_REPEATED = ("cross_attention_mask",)  # behind a prompt, as at its last token
_FIRST_TILE = "aspect_ratio_mask"  # where there is no picture, one tile is seen nevertheless


def _ids(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _images(values: Iterable[Picture]) -> tuple[Picture, ...]:
    return tuple(values)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen(cache_hash=True)
class PromptRow:
    """A text as a base reads it. Two are equal if a base gives the same for both.

    Attributes:
        ids: of the tokens, as the base's processor expands them, and of markers.
        images: the pictures, in order.
        target: what the decoder is given, where it reads a text of its own; empty where it reads
            ``ids``.
        text: of which the base's processor makes the ids; only needed with pictures.
        marked: the modality of each sample whose markers are among the ids.
        placeholders: ids that stand for a part of a picture, where nobody reads what comes next.
        said: in its samples, by modality; only needed with pictures.
        always: whether what was said stands there as the base's own words, whatever the gate is.
    """

    ids: tuple[int, ...] = attrs.field(converter=_ids)
    images: tuple[Picture, ...] = attrs.field(default=(), converter=_images)
    target: tuple[int, ...] = attrs.field(default=(), converter=_ids)
    text: str = attrs.field(default="", eq=False, repr=False)
    marked: tuple[str, ...] = attrs.field(default=(), eq=False, repr=False, converter=_names)
    placeholders: frozenset[int] = attrs.field(default=frozenset(), eq=False, repr=False)
    said: Said = attrs.field(default=NOTHING_SAID, eq=False, repr=False)
    always: bool = attrs.field(default=False, eq=False, repr=False)

    def __len__(self) -> int:
        """At how many positions the base predicts a next token."""
        return len(self.predicting)

    @property
    def reading(self) -> list[bool]:
        """At which of these positions the prediction is read."""
        return [one not in self.placeholders for one in self.predicting]

    @property
    def words(self) -> int:
        """At how many positions the prediction is read."""
        return sum(self.reading)

    @property
    def predicting(self) -> tuple[int, ...]:
        """The ids at whose positions the base predicts the next one."""
        return self.target or self.ids

    @property
    def identity(self) -> Any:
        """All that what a base gives for the row depends on, as JSON can hold it."""
        if not (self.images or self.target):
            return self.ids
        return self.ids, [picture.digest for picture in self.images], self.target

    def followed_by(self, ids: Sequence[int]) -> PromptRow:
        """The row with more ids behind those at which the base predicts."""
        if self.target:
            return attrs.evolve(self, target=(*self.target, *ids))
        return attrs.evolve(self, ids=(*self.ids, *ids))


Rows = Sequence[PromptRow]


def as_row(row: PromptRow | Sequence[int]) -> PromptRow:
    """A row as it is, or one of these ids without a picture.

    >>> as_row([3, 4])
    PromptRow(ids=(3, 4), images=(), target=())
    """
    return row if isinstance(row, PromptRow) else PromptRow(row)


def as_rows(rows: Iterable[PromptRow | Sequence[int]]) -> tuple[PromptRow, ...]:
    """Rows of which some may be ids alone."""
    return tuple(map(as_row, rows))


def groups_of(rows: Rows) -> list[list[int]]:
    """Which rows go into one call of the model: those without pictures, and those with some.

    >>> groups_of(as_rows([[3], [4]]))
    [[0, 1]]
    """
    plain = [number for number, row in enumerate(rows) if not row.images]
    seeing = [number for number, row in enumerate(rows) if row.images]
    return [group for group in (plain, seeing) if group]


def read_positions(rows: Rows) -> Tensor:
    """True at each position at which a row's prediction is read, (batch, length)."""
    return pad_right([row.reading for row in rows], False)


def token_ids(
    tokenizer: Any,
    text: str,
    present: Mapping[str, int] = NO_SAMPLES,
    markers: MarkerText | None = None,
    said: Said = NOTHING_SAID,
) -> list[int]:
    """Token ids of a text, with the markers of its samples, which are counted by modality."""
    if markers is None:
        ids: list[int] = tokenizer(with_start_token(tokenizer, text))["input_ids"]
        return ids
    text = markers.leave_out_absent(text, present)
    plain = with_start_token(tokenizer, markers.strip_markers(text))
    return markers.insert_markers(text, tokenizer(plain)["input_ids"], present, said)


class PromptEncoder:
    """Makes rows of texts with pictures, and batches of rows.

    Args:
        tokenizer: of the base's text.
        processor: puts markers in, and shows pictures to the base's own processor; without it
            there are neither.
        start: the token with which the decoder begins, where it reads a text of its own.
        dtype: of the picture tensors; as the base's processor makes them if None.
        placeholders: ids that stand for a part of a picture.
        always_sees: whether the base reads no text without a picture.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: SafeProcessor | None = None,
        *,
        start: int | None = None,
        dtype: torch.dtype | None = None,
        placeholders: frozenset[int] = frozenset(),
        always_sees: bool = False,
    ) -> None:
        self.placeholders, self.always_sees = placeholders, always_sees
        self.tokenizer = text_tokenizer(tokenizer)
        self.processor, self.start, self.dtype = processor, start, dtype
        self._beside_pixels: dict[Any, dict[str, Tensor]] = {}

    @classmethod
    def of(cls, model: SafeModel) -> PromptEncoder:
        """Of a model, whose tokenizer and processor it uses."""
        start = decoder_start_id(model.base) if decodes_separately(model.base) else None
        dtype = next(model.base.parameters()).dtype
        return cls(
            model.tokenizer,
            model.processor,
            start=start,
            dtype=dtype,
            placeholders=placeholder_ids(model.base),
            always_sees=always_sees(model.base),
        )

    @property
    def markers(self) -> MarkerText | None:
        """Puts markers into texts; None without a processor."""
        return None if self.processor is None else self.processor.markers

    # Rows

    def prompt(
        self,
        text: str,
        images: Sequence[Picture] = (),
        present: Mapping[str, int] = NO_SAMPLES,
        said: Said = NOTHING_SAID,
        *,
        always: bool = False,
    ) -> PromptRow:
        """The row of a text that the base is to continue.

        Args:
            text: with the base's placeholders of its pictures, or without any.
            images: its pictures.
            present: how many samples it has of each modality, whose markers it gets.
            said: in these samples, by modality, where they are transcribed.
            always: put what was said there as the base's own words, whatever the gate is; else it
                is only there where the modality is on.

        Raises:
            SafeError: there are pictures, and the base takes none.
            SampleError: there are more or fewer places than samples, or placeholders than
                pictures, or there is no picture, without which the base reads nothing.
        """
        target = () if self.start is None else (self.start,)
        if not images and self.always_sees:
            raise SampleError(
                "this base reads no text without a picture", hint="give the row an `image`"
            )
        if not images:
            ids = token_ids(self.tokenizer, text, present, self.markers, said)
            return PromptRow(self._as_said(ids, always), target=target)
        if self.processor is None:
            raise SafeError("pictures need the model's processor")
        markers = self.processor.markers
        markers.check_places(text, present)
        text = markers.strip_markers(text, set(markers.names) - markers.spans.keys())
        marked = [name for name, n in present.items() for _ in range(n) if name in markers.spans]
        text = markers.leave_out_absent(text, marked)
        placed = self.processor.place_images(text, len(images))
        row = PromptRow((), images, target, placed, marked, self.placeholders, said, always)
        made = self._processed(row)
        found = attrs.evolve(row, ids=made["input_ids"][0].tolist())
        self._remember(found, made)
        return found

    def whole_text(
        self, text: str, images: Sequence[Picture] = (), present: Mapping[str, int] = NO_SAMPLES
    ) -> PromptRow:
        """The row of a text that the base is to predict, word by word.

        Where the decoder reads a text of its own, the base is given the first half of the words,
        and predicts the second: prefix language modelling (Raffel et al. 2020, arXiv:1910.10683).
        The arguments are those of ``prompt``.
        """
        if self.start is None:
            return self.prompt(text, images, present)
        first, second = halves(text)
        row = self.prompt(first, images, present)
        return row.followed_by(self.answer(second)[:-1])  # nothing follows its end

    def answer(self, text: str, prompt: str = "") -> list[int]:
        """Token ids of what follows a prompt, with what ends it; empty if it has none.

        That is the end-of-text token or, where the prompt is a chat, the end of the assistant's
        turn. A decoder with a text of its own is given it with its special tokens, as it was
        trained.
        """
        if self.start is None and self.processor is not None:
            return self.processor.answer_ids(text, prompt)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if self.start is None or not ids:
            return [*ids, end] if ids else []
        ids = self.tokenizer(text_target=text)["input_ids"]
        return list(ids) if ids[-1] == end else [*ids, end]

    # Batches

    def collate(
        self, rows: Rows, pad: int, *, left: bool = False, pixels: bool = True
    ) -> dict[str, Tensor]:
        """What a call of the base on some rows is given.

        Args:
            rows: all with pictures, or all without.
            pad: id that fills rows up; it is masked.
            left: pad on the left, ready for ``generate``, and not on the right.
            pixels: whether with what the image tower alone reads.

        Raises:
            SafeError: only some rows have pictures.
        """
        padded = pad_left if left else pad_right
        ids = [row.ids for row in rows]
        batch = {
            "input_ids": padded(ids, pad),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
        }
        if any(row.images for row in rows):
            if not all(row.images for row in rows):
                raise SafeError("rows with pictures and rows without need calls of their own")
            lengths = [len(row) for row in ids]
            longest = 0 if left else max(lengths)
            made = [self._inputs(row, longest, pixels=pixels) for row in rows]
            batch |= {
                name: _joined(name, [one[name] for one in made], lengths, left, pad)
                for name in made[0]
            }
        if rows[0].target:
            batch["decoder_input_ids"] = pad_right([row.target for row in rows], pad)
        return batch

    def settings(self) -> str:
        """Fingerprint of all that decides what the processor makes of a picture."""
        base = None if self.processor is None else self.processor.base_processor
        images = getattr(base, "image_processor", None)
        if images is None:
            return ""
        kinds = (str, int, float, list, tuple)
        own = {name: value for name, value in vars(base).items() if isinstance(value, kinds)}
        own.pop("chat_template", None)
        return text_fingerprint(type(base).__name__, own, images.to_dict())

    def _processed(self, row: PromptRow) -> dict[str, Tensor]:
        """All that the base's own processor makes of a row's prompt, with its markers."""
        assert self.processor is not None
        pictures = [picture.open() for picture in row.images]
        text = self.processor.markers.strip_markers(row.text)
        try:
            made = dict(self.processor(text=[text], images=[pictures], padding_side="right"))
        except SafeError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise SampleError(
                f"the base's processor cannot use {row.text!r} with "
                f"{len(pictures)} pictures: {error}",
                hint="give as many pictures as the text has placeholders",
            ) from error
        present = [Counter(row.marked)]
        markers = self.processor.markers
        made.update(markers.insert_into_batch(made, [row.text], present, [row.said]))
        made["input_ids"] = torch.tensor([self._as_said(made["input_ids"][0].tolist(), row.always)])
        made.setdefault("attention_mask", torch.ones_like(made["input_ids"]))
        return {
            name: value.to(self.dtype) if value.is_floating_point() and self.dtype else value
            for name, value in made.items()
            if isinstance(value, Tensor) and name != "labels"
        }

    def _as_said(self, ids: Sequence[int], always: bool) -> Sequence[int]:
        """Ids with the base's own for what was said, if it is there whatever the gate is."""
        return self.markers.as_own(ids) if always and self.markers is not None else ids

    def _remember(self, row: PromptRow, made: Mapping[str, Tensor]) -> None:
        """Keep what is small, so that a row whose image tower has run is not processed again."""
        self._beside_pixels[_prompt_of(row)] = {
            name: value for name, value in made.items() if not name.startswith(PIXELS)
        }

    def _inputs(self, row: PromptRow, longest: int, *, pixels: bool) -> dict[str, Tensor]:
        """A row's inputs but for ids and mask, those of each token as long as its ids.

        Padding up to ``longest`` on the right sees what the last token sees.
        """
        made: Mapping[str, Tensor] | None = None
        if not pixels:
            made = self._beside_pixels.get(_prompt_of(row))
        if made is None:
            made = self._processed(row)
            self._remember(row, made)
        shape, length = made["input_ids"].shape, len(row.ids)
        if not pixels:
            made = {name: value for name, value in made.items() if not name.startswith(PIXELS)}
        assert tuple(made["input_ids"][0].tolist()) == row.ids[: shape[1]]
        of_tokens = per_token_inputs(made, shape)
        return {
            name: self._lengthened(name, value, max(length, longest * name.endswith(_REPEATED)))
            if name in of_tokens
            else value
            for name, value in made.items()
            if name not in ("input_ids", "attention_mask")
        }

    def _lengthened(self, name: str, value: Tensor, length: int) -> Tensor:
        """A value of each token of a prompt, and of those that follow it."""
        missing = length - value.shape[1]
        if not missing:
            return value
        if name.endswith(_REPEATED):
            following = value[:, -1:].expand(-1, missing, *value.shape[2:])
        else:
            following = value.new_zeros(value.shape[0], missing, *value.shape[2:])
            if name == "token_type_ids" and self._answers_are_typed:
                following = following + 1
        return torch.cat([value, following], dim=1)

    @property
    def _answers_are_typed(self) -> bool:
        """Whether an answer's tokens are of another type than a prompt's, which see each other."""
        base = None if self.processor is None else self.processor.base_processor
        return "suffix" in inspect.signature(type(base).__call__).parameters


def _prompt_of(row: PromptRow) -> Any:
    """What the base's processor is given of a row."""
    said = tuple((name, *texts) for name, texts in row.said.items())
    return row.text, row.images, row.marked, said, row.always


def _joined(
    name: str, values: Sequence[Tensor], lengths: Sequence[int], left: bool, pad: int
) -> Tensor:
    """One input of a batch, of what it is in each row.

    Per-token ones have one row each, (1, length of the text, ...). Behind a first axis of one row,
    or of as many pictures (or patches) as the row has, all are filled up to the largest.
    """
    size = [max(value.shape[axis] for value in values) for axis in range(values[0].ndim)]
    per_token = [value.shape[1:2] == (n,) for value, n in zip(values, lengths, strict=True)]
    moved = left and is_per_token(name) and all(per_token)
    filled = [_filled(name, value, size, moved, pad) for value in values]
    return torch.cat(filled)


def _filled(name: str, value: Tensor, size: Sequence[int], left: bool, pad: int) -> Tensor:
    """A tensor as large as ``size`` says, but for its first axis."""
    if list(value.shape[1:]) == list(size[1:]):
        return value
    whole = value.new_full((len(value), *size[1:]), pad if name.endswith("input_ids") else 0)
    if name.endswith(_FIRST_TILE):
        whole[..., 0] = 1
    at = [slice(None), *(slice(length) for length in value.shape[1:])]
    if left:
        at[1] = slice(size[1] - value.shape[1], None)
    whole[tuple(at)] = value
    return whole


def placeholder_ids(base: nn.Module) -> frozenset[int]:
    """The ids with which a base's processor keeps the places of pictures and videos."""
    names = (f"{kind}_token_{ending}" for kind in ("image", "video") for ending in ("id", "index"))
    found = (getattr(base.config, name, None) for name in names)
    return frozenset(one for one in found if isinstance(one, int))


def always_sees(base: nn.Module) -> bool:
    """Whether a base takes no call without a picture."""
    pixels = inspect.signature(base.forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty


def halves(text: str) -> tuple[str, str]:
    """A text's first half of the words, and its second, which begins with its white space.

    >>> halves("one two three four five")
    ('one two three', ' four five')
    >>> halves("one")
    ('one', '')
    """
    words = text.split(" ")
    middle = (len(words) + 1) // 2
    first, second = " ".join(words[:middle]), " ".join(words[middle:])
    return (first, " " + second) if second else (first, "")


def decoder_start_id(base: nn.Module) -> int:
    """The token with which the decoder of an encoder-decoder begins.

    Raises:
        SafeError: the base does not say.
    """
    configs: list[Any] = [getattr(base, "generation_config", None), base.config]
    configs.append(base.config.get_text_config())  # type: ignore[union-attr, operator]
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            if isinstance(found := getattr(config, name, None), int):
                return found
    raise SafeError(
        f"`{type(base).__name__}` does not say with which token its decoder begins",
        hint="set `decoder_start_token_id` in its generation config",
    )
