"""Pictures of a call: which belong to which text, and where in it the base wants them.

Most bases want a placeholder in the text for each picture (`<image>`), whose own processor then
puts as many tokens there as it makes of the picture. Some put the picture's place in themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from safe_framework.data.pictures import Picture
from safe_framework.data.prompts import picture_places
from safe_framework.errors import SafeError, SampleError
from safe_framework.pretrained.base_processor import takes_images, text_tokenizer
from safe_framework.utils.quiet import quietly

_ADDRESSES = ("http://", "https://", "data:")
_SIDE = 64
"""Pixels of a side of the grey picture with which a processor is tried."""


class PicturePlaces:
    """Where a base's own processor wants the pictures of a text.

    Args:
        processor: the base's processor or tokenizer.
        opening: what the recipe's chat puts before a user's first word, by the number of pictures
            that the message begins with; None where the recipe asks in no chat.
    """

    def __init__(self, processor: Any, opening: Callable[[int], str] | None = None) -> None:
        self.processor, self.opening = processor, opening

    def place(self, text: str, count: int) -> str:
        """The text with a placeholder for each picture, where the base wants one.

        A text that names none has them at the front; in the recipe's chat, at the front of the
        user's message.

        Raises:
            SafeError: the base takes no pictures.
            SampleError: the text names another number of pictures than there are.
        """
        named = self.named(text)
        if not count and not named:
            return text
        if count and not takes_images(self.processor):
            raise SafeError(
                "the base takes no images: the model has no processor for them",
                hint="attach a modality `images`, or give the base's own processor",
            )
        if named and self.placed_by_base:
            raise SampleError(
                f"the text names a picture (`{self.token}`), as the base's processor does itself",
                hint=f"leave `{self.token}` out of the text",
            )
        if self.placed_by_base or named == count:
            return text
        if named:
            raise SampleError(
                f"the text names {_pictures(named)} (`{self.token}`), but {count} "
                f"{'is' if count == 1 else 'are'} given: {text!r:.80}",
                hint=f"write `{self.token}` once for each picture, or not at all",
            )
        return self._in_front(text, count)

    def check(self, counts: Sequence[int]) -> None:
        """Refuse numbers of pictures by text that the base's own processor cannot tell apart.

        Raises:
            SampleError: it takes one with every text, or none with any.
        """
        if any(counts) and self.placed_by_base and set(counts) != {1}:
            place = next(place for place, count in enumerate(counts) if count != 1)
            raise SampleError(
                f"the base takes one picture with each text, or none with any: text {place} has "
                f"{counts[place]}",
                hint="give texts without a picture a call of their own",
            )

    def named(self, text: str) -> int:
        """How many pictures a text names."""
        return text.count(self.token) if self.token else 0

    @cached_property
    def token(self) -> str:
        """The placeholder of a picture; empty where the base has none."""
        if not takes_images(self.processor):
            return ""
        found = getattr(self.processor, "image_token", None)
        return str(getattr(found, "content", found) or "")  # the word itself, or an AddedToken

    @cached_property
    def placed_by_base(self) -> bool:
        """Whether the base's own processor puts the place of a picture into a text that names none.

        Raises:
            SafeError: it makes nothing of a picture at all.
        """
        alone = self._ids("a")
        named = self._ids(f"{self.token}a")
        itself = not isinstance(alone, Exception) and (
            not self.token
            or text_tokenizer(self.processor).convert_tokens_to_ids(self.token) in alone
        )
        if itself and (isinstance(named, Exception) or named != alone):
            return True
        if isinstance(named, Exception):
            raise SafeError(
                f"the base's `{type(self.processor).__name__}` makes nothing of a picture: {named}"
            ) from named
        return False

    def ending(self, text: str, inputs: Collection[str]) -> list[int]:
        """The ids that the base's processor put behind a text for its pictures.

        Args:
            text: as it was given to it.
            inputs: names of what it gave.
        """
        if not any(name.startswith("pixel_") for name in inputs):
            return []
        return self._ending if self.named(text) or self.placed_by_base else []

    @cached_property
    def _ending(self) -> list[int]:
        ids = self._ids(self.place("a", 1))
        words = text_tokenizer(self.processor)("a", add_special_tokens=False)["input_ids"]
        if isinstance(ids, Exception):
            return []
        last = len(ids) - 1 - ids[::-1].index(words[-1]) if words and words[-1] in ids else len(ids)
        return ids[last + 1 :]

    def _ids(self, text: str) -> list[int] | Exception:
        """The ids of a text with a grey picture, or why there are none."""
        grey = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
        try:
            with quietly():
                ids: list[int] = self.processor(text=[text], images=[[grey]])["input_ids"][0]
        except Exception as error:  # each processor has errors of its own
            return error
        return list(ids)

    def _in_front(self, text: str, count: int) -> str:
        """The text with its pictures before the first word of the user."""
        before = self.opening(0) if self.opening is not None else ""
        if self.opening is not None and before and text.startswith(before):
            return self.opening(count) + text.removeprefix(before)
        places = picture_places(self.processor, count)
        if places is None or (self.token and places.count(self.token) != count):
            places = self.token * count
        return places + text


def pictures_by_text(
    images: Any, texts: Sequence[str], named: Callable[[str], int]
) -> list[list[Any]]:
    """The pictures of each text, as the base's own processor takes them.

    Args:
        images: one picture; or for each text one, a list of them, or None; or one list for all,
            of as many as the texts name.
        texts: to which they belong.
        named: how many pictures a text names.

    Raises:
        SampleError: there are not as many as texts.
        DataError: one is missing or cannot be read.
    """
    if _is_picture(images):
        images = list(images) if getattr(images, "ndim", 0) == 4 else [images]  # a batch
    listed = list(images)
    if all(map(_is_picture, listed)):
        wanted = list(map(named, texts))
        if len(texts) == 1:
            listed = [listed]
        elif sum(wanted) == len(listed):
            rest = iter(listed)
            listed = [[next(rest) for _ in range(count)] for count in wanted]
    if len(listed) != len(texts):
        raise SampleError(
            f"`images` has {len(listed)} entries for {len(texts)} texts",
            hint="give one for each text: a picture, a list of them, or None where there is none",
        )
    return [_opened_all(entry) for entry in listed]


def _opened_all(entry: Any) -> list[Any]:
    if entry is None:
        return []
    return [opened(one) for one in ([entry] if _is_picture(entry) else entry)]


def _is_picture(value: Any) -> bool:
    return value is not None and not isinstance(value, (list, tuple))


def opened(picture: Any) -> Any:
    """A picture as the base's own processor takes it: files are read, all else is left as it is.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if isinstance(picture, Picture):
        return picture.open()
    if isinstance(picture, bytes):
        return Picture(picture).open()
    if isinstance(picture, Path) or (
        isinstance(picture, str) and not picture.startswith(_ADDRESSES)
    ):
        return Picture(Path(picture)).open()
    return picture


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
