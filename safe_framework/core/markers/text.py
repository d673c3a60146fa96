"""Where markers stand in tokenised text.

A text is tokenised without them and their ids are put in afterwards: the tokenizer never sees
them, and what is left when they are taken out again is the text's own tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from safe_framework.core.padding import PaddedRows, append_columns, gather_columns, per_token_inputs
from safe_framework.errors import SafeError, SampleError
from safe_framework.pretrained.base_processor import text_tokenizer

Said = Mapping[str, Sequence[str]]
"""What was said in a text's samples, by modality and in order, as it stands in the text."""

NOTHING_SAID: Said = MappingProxyType({})

_MERGED = 3  # ids at the edge of a cut that may come out otherwise in the whole text


class TokenAligner:
    """Finds positions in texts that a tokenizer has made ids of.

    Args:
        tokenizer: without a processor around it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def find(self, word: str, ids: Sequence[int], before: str, after: str) -> int:
        """How many ids come before a cut of the text, whose halves are tokenised to find it.

        A base's processor may put many ids for an image; the half without images decides.
        """
        first = len(self._edges[0]) if _begins(ids, self._edges[0]) else 0
        last = len(self._edges[1]) if _begins(ids[::-1], self._edges[1][::-1]) else 0
        if not before:
            return first
        position = _cut(ids[first : len(ids) - last], self._bare(before), self._bare(after))
        if position is None:
            raise SampleError(
                f"the place of `{word}` is not to be found between what else is in the text",
                hint=f"put `{word}` before or behind all images",
            )
        return first + position

    def _bare(self, text: str) -> list[int]:
        """Ids of a piece of text, without what the tokenizer puts around a whole one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        first = self._edges[0]
        return ids[len(first) :] if first and _begins(ids, first) else ids

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        bare: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("a")["input_ids"]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []


def _cut(body: Sequence[int], head: Sequence[int], tail: Sequence[int]) -> int | None:
    """Where a text's ids are cut, of whose halves one may have grown; None if it is not to be seen.

    >>> _cut([7, 7, 7, 7, 3, 4], [7, 3], [4])
    5
    >>> _cut([7, 7, 3, 4], [3], [4])  # a picture's ids stand before the text
    3
    """
    grown = Counter(body) - Counter([*head, *tail])
    same_head, same_tail = _common(body, head), _common(body[::-1], tail[::-1])
    positions = same_head, len(body) - same_tail
    missing = len(head) - same_head, len(tail) - same_tail
    sides = (0, 1)
    if len(body) > len(head) + len(tail):  # the half that is whole is the surer one
        sides = (0, 1) if missing[0] <= missing[1] else (1, 0)
    for side in sides:
        if not grown.keys() & set((head, tail)[side]) and missing[side] <= _MERGED:
            return positions[side]
    return positions[0] if positions[0] == positions[1] else None


def _begins(ids: Sequence[int], with_these: Sequence[int]) -> bool:
    return list(ids[: len(with_these)]) == list(with_these)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with together."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))


class MarkerText:
    """Puts the markers of modalities, and what was said, into texts; shows them in decoded ones.

    Args:
        tokenizer: the base's processor or tokenizer.
        spans: by modality, the ids that stand where its sample is: start, tokens, end; there may be
            none where there are words.
        names: of all modalities, with such ids or without.
        ending: the ids that the base's processor puts behind a text of a batch for its pictures.
        words: by modality whose samples are transcribed, the ids of the base's words there.
        opening: what stands before a user's words in a text; without a place of their own,
            transcripts stand behind its last occurrence.

    Attributes:
        names: of the modalities whose ``<NAME>`` in a text with a sample is the sample's place.

    Raises:
        SafeError: the base's own vocabulary has the ``<NAME>`` of a modality with such ids.
    """

    def __init__(
        self,
        tokenizer: Any,
        spans: Mapping[str, Sequence[int]],
        *,
        names: Collection[str] = (),
        ending: Callable[[str, Collection[str]], Sequence[int]] = lambda text, inputs: (),
        words: Mapping[str, range] = MappingProxyType({}),
        opening: Callable[[], str] = str,
    ) -> None:
        self.tokenizer = text_tokenizer(tokenizer)
        self.aligner = TokenAligner(self.tokenizer)
        self.spans = {name: tuple(span) for name, span in spans.items()}
        self.word_ids = {name: ids for name, ids in words.items() if len(ids)}
        self.ending, self.opening = ending, opening
        taken = () if tokenizer is None else filter(self._is_word, {*self.spans, *names})
        self.names = tuple(sorted({*self.spans, *names} - set(taken)))
        for name in self.spans:
            if name not in self.names:
                raise SafeError(
                    f"modality `{name}` cannot have a place in texts, as markers and transcripts "
                    f"need: `<{name}>` is a word of the base",
                    hint="give the modality another name",
                )

    def strip_markers(self, text: str, names: Collection[str] | None = None) -> str:
        """The text without the ``<NAME>`` of these modalities; of all, if none are given."""
        for name in self.names:
            if names is None or name in names:
                text = text.replace(f"<{name}>", "")
        return text

    def leave_out_absent(self, text: str, present: Collection[str]) -> str:
        """A text of the data without the ``<NAME>`` of samples that it has not.

        In data, a ``<NAME>`` says where a sample is; in any other text without one, it is a word.
        """
        return self.strip_markers(text, [name for name in self.names if name not in present])

    def keep_fitting(self, text: str, present: Mapping[str, int]) -> str:
        """A text beside samples of others, with as many ``<NAME>`` as there are, or none.

        Args:
            text: with any number of ``<NAME>``.
            present: how many samples there are, by modality.
        """
        other = [name for name in self.names if text.count(f"<{name}>") != present.get(name, 0)]
        return self.strip_markers(text, other)

    def check_places(self, text: str, present: Mapping[str, int]) -> None:
        """Refuse a text that names another number of places than it has samples; none is right.

        Args:
            text: with any number of ``<NAME>``.
            present: how many samples it has, by modality.

        Raises:
            SampleError: the numbers differ.
        """
        for name, count in present.items():
            places = text.count(f"<{name}>") if name in self.names else 0
            if places and count and places != count:
                raise SampleError(
                    f"the text names {places} place{'s' * (places > 1)} `<{name}>` for {count} "
                    f"sample{'s' * (count > 1)}: {text!r:.200}",
                    hint=f"write `<{name}>` once for each sample, or nowhere: then all stand at "
                    "the front",
                )

    def insert_markers(
        self,
        text: str,
        ids: Sequence[int],
        present: Mapping[str, int],
        said: Said = NOTHING_SAID,
    ) -> list[int]:
        """The ids of a text with the spans of its samples.

        Args:
            text: with a ``<NAME>`` for each sample of a modality, or none.
            ids: of the text without those of ``present``, without padding.
            present: how many samples it has, by modality.
            said: in the samples that are transcribed.

        Raises:
            SampleError: there are more or fewer of a ``<NAME>`` than samples, or the place of one
                is not to be found.
        """
        whole = list(ids)
        for position, span in reversed(self._positions(text, whole, present, said)):
            whole[position:position] = span
        return whole

    def insert_into_batch(
        self,
        batch: Mapping[str, Any],
        texts: Sequence[str],
        present: Sequence[Mapping[str, int]],
        said: Sequence[Said] = (),
    ) -> dict[str, Tensor]:
        """What changes in a padded batch when spans are put into its texts.

        Args:
            batch: of the texts without the ``<NAME>`` of the samples that they have.
            texts: as they were given, with the places of their pictures.
            present: how many samples each has, by modality.
            said: in those of each text that are transcribed; in none if empty.
        """
        if not any(name in self.spans for counts in present for name in counts):
            return {}
        ids: Tensor = batch["input_ids"]
        mask: Tensor = batch.get("attention_mask", torch.ones_like(ids))
        rows = PaddedRows.of(mask)
        contents, new = [], []
        spoken = said or [NOTHING_SAID] * len(texts)
        for text, counts, own, row, bounds in zip(
            texts, present, spoken, ids.tolist(), rows.bounds, strict=True
        ):
            ending = self.ending(text, batch.keys())
            columns, added = self._columns(text, counts, own, row, bounds, ending)
            contents.append(columns)
            new.append(added)
        width = rows.width(contents)
        moving = per_token_inputs({**batch, "attention_mask": mask}, ids.shape)
        longer = append_columns(moving, new)
        return gather_columns(longer, rows.index(contents, width), self.tokenizer.pad_token_id)

    def words(self, ids: Tensor) -> Tensor:
        """Where ids are the text's own, and neither markers nor what was said."""
        markers = [marker for span in self.spans.values() for marker in span]
        own = ~torch.isin(ids, torch.tensor(markers, dtype=ids.dtype, device=ids.device))
        for words in self.word_ids.values():
            own &= (ids < words.start) | (ids >= words.stop)
        return own

    def as_own(self, ids: Sequence[int]) -> list[int]:
        """Ids with the base's own for words that were said."""
        found = list(ids)
        for words in self.word_ids.values():
            found = [one - words.start if one in words else one for one in found]
        return found

    def decode(self, ids: Tensor | Sequence[int], **options: Any) -> str:
        """The text of ids; markers are shown as ``<NAME>`` and ``</NAME>``, as special tokens."""
        spans = {name: span for name, span in self.spans.items() if span}
        names = {span[0]: f"<{name}>" for name, span in spans.items()}
        names |= {span[-1]: f"</{name}>" for name, span in spans.items()}
        names |= {inside: "" for span in self.spans.values() for inside in span[1:-1]}
        if options.get("skip_special_tokens"):
            names = dict.fromkeys(names, "")
        listed = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return "".join(self._shown(self.as_own(listed), names, options))

    def _shown(
        self, ids: Sequence[int], names: Mapping[int, str], options: Mapping[str, Any]
    ) -> Iterator[str]:
        for marked, group in groupby(ids, key=names.__contains__):
            if marked:
                yield from (names[one] for one in group)
            else:
                yield self.tokenizer.decode(list(group), **options)

    def _columns(
        self,
        text: str,
        present: Mapping[str, int],
        said: Said,
        row: Sequence[int],
        bounds: range,
        ending: Sequence[int],
    ) -> tuple[list[int], list[int]]:
        """A row's columns, where those behind the row's last one are new, and the new ids."""
        columns, new = list(bounds), list[int]()
        ids = [row[column] for column in bounds]
        if ending and _begins(ids[::-1], ending[::-1]):
            ids = ids[: -len(ending)]
        positions = self._positions(text, ids, present, said)
        for position, span in reversed(positions):
            columns[position:position] = range(len(row) + len(new), len(row) + len(new) + len(span))
            new += span
        return columns, new

    def _positions(
        self, text: str, ids: Sequence[int], present: Mapping[str, int], said: Said
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Before which id each span comes, in the text's order."""
        self.check_places(text, present)
        found = []
        for name, span in self.spans.items():
            spoken = said.get(name, ())
            for number, (at, end) in enumerate(self._places(text, name, present.get(name, 0))):
                words = self._words(name, spoken[number]) if spoken else ()
                if not (span or words):
                    continue
                position = self.aligner.find(
                    f"<{name}>",
                    ids,
                    self.strip_markers(text[: max(at, 0)], present),
                    self.strip_markers(text[end:], present),
                )
                found.append((position, at, (*span, *words)))
        return [(position, span) for position, _, span in sorted(found, key=lambda one: one[:2])]

    def _places(self, text: str, name: str, count: int) -> list[tuple[int, int]]:
        """From where to where each sample's ``<NAME>`` stands; at one place if it stands nowhere.

        That is the front of the text, or the user's words of what was said: there it was heard.
        """
        if not count:
            return []
        if places := [match.span() for match in re.finditer(re.escape(f"<{name}>"), text)]:
            return places
        opening = self.opening() if name in self.word_ids else ""
        at = text.rfind(opening) if opening else -1
        at = -1 if at < 0 else at + len(opening)
        return [(at, max(at, 0))] * count

    def _words(self, name: str, said: str) -> tuple[int, ...]:
        """The ids of what was said, none of which is a special token, whatever it sounds like."""
        ids: list[int] = self.tokenizer(said, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        special = set(self.tokenizer.all_special_ids)
        return tuple(self.word_ids[name][one] for one in ids if one not in special)

    def _is_word(self, name: str) -> bool:
        found = self.tokenizer.convert_tokens_to_ids(f"<{name}>")
        return found is not None and found != self.tokenizer.unk_token_id
