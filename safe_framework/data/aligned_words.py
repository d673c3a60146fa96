"""The words that alignment draws a row's samples to: what the row says, or else its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_framework.data.conversations import has_messages, sent_last
from safe_framework.data.readers import Row
from safe_framework.data.tasks import text_in
from safe_framework.errors import DataError


def align_of(row: Row, present: Mapping[str, int]) -> str | tuple[str, ...] | None:
    """The words that alignment draws the row's samples to: a text, one for each, or nothing.

    An empty list draws them nowhere.

    Args:
        row: that may say it.
        present: how many samples it has, by modality.

    Raises:
        DataError: it says something else, or has words for another number of samples.
    """
    value = row.values.get("align")
    if value is None and has_messages(row) and not sent_last(row, present):
        return ()  # what goes on about a sample does not name it
    if not isinstance(value, (list, tuple)):
        return None if value is None else text_in(row, "align")
    if not all(isinstance(one, str) and one.strip() for one in value):
        raise DataError(f"{row.place}: `align` must hold texts that are not empty, not {value!r}")
    if has_messages(row):  # whose later samples are yet to come
        value = value[: max(present.values(), default=0)]
    if value and present and len(value) not in present.values():
        found = ", ".join(f"{count} of `{name}`" for name, count in present.items())
        raise DataError(
            f"{row.place}: `align` has {len(value)} texts, and the row's samples are {found}",
            hint="give one for each sample, in order, or one text for all",
        )
    return tuple(value)


def aligned_words(
    answer: str, align: str | tuple[str, ...] | None, present: Mapping[str, int]
) -> tuple[str, ...]:
    """The words that alignment draws a row's samples to: one for all, one for each, or none.

    Args:
        answer: which names the sample, where there is one and nothing else is said.
        align: what else is said.
        present: how many samples there are, by modality.
    """
    if align is not None:
        return (align,) if isinstance(align, str) else align
    return () if any(count > 1 for count in present.values()) else (answer,)


def words_for(aligned: Sequence[str], count: int) -> Sequence[str]:
    """A word for each of a modality's samples; none where it is not known which is whose."""
    if len(aligned) == 1:
        return [aligned[0]] * count
    return aligned if len(aligned) == count else []
