"""Marker words around a modality's position in the text, in a table of their own.

A base's vocabulary is never resized. The ids of markers lie behind it, ``size + 3 * number`` and
the two that follow, and the base is never shown one: :mod:`safe_framework.core.markers.call`
replaces them, and a hook on the input embeddings puts their vectors where the replaced ids were
looked up.

The words of a transcript are the base's own, under ids that lie behind those of all markers: so
they can be told from the text's own words, and leave it where the modality is off.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.layer_discovery import decodes_separately
from safe_framework.core.special_tokens import ordinary_ids, special_ids, vocabulary_size
from safe_framework.errors import SafeError, UnsupportedBaseError
from safe_framework.interfaces.projector import Projector

_IDS = 3
_MOST = 4096  # modalities whose markers lie before all words of transcripts
_SAMPLE = 1024


@attrs.frozen
class Vocabulary:
    """What markers must know of a base's own words.

    Attributes:
        size: every smaller id is the base's: a word, or a name for something else.
        placeholder_id: an ordinary word, which the base is shown instead of a marker.
        special: ids that a base may replace itself, such as those of images.
        separate_decoder: whether a decoder looks up words of its own, beside the encoder's text.
    """

    size: int
    placeholder_id: int
    special: tuple[int, ...]
    separate_decoder: bool

    @classmethod
    def of(cls, base: nn.Module) -> Vocabulary:
        """The vocabulary of ``base``."""
        special = tuple(sorted(special_ids(base.config)))
        size = max([vocabulary_size(base), *(word + 1 for word in special)])  # images lie behind
        return cls(size, ordinary_ids(base, 1)[0], special, decodes_separately(base))


class Markers(nn.Module):
    """What one modality puts into a text: two markers with vectors of their own, or words.

    Both vectors begin as the mean of the base's word vectors. Tokens that stand between them are
    multiplied with the words' root mean square, so that tokens of unit size lie among the words.

    Args:
        vocabulary: of the base.
        number: of the modality among those with such ids, which decides them.
        sample: word vectors of the base, (words, width); None where there are no markers.
        tokens: how many tokens stand between the markers; None for none.
        transcript: whether words of the base may follow.

    Attributes:
        table: vectors of the start and the end, (2, width); None where there are no markers.
        first: id of the start; the end's and that of every position between follow.
        span: the ids that stand in a text for every sample.
        words: the ids of the base's words, in its own order, where they are a transcript's; empty
            where there are none.
    """

    scale: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        number: int,
        sample: Tensor | None,
        tokens: int | None = None,
        *,
        transcript: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary, self.number, self.tokens = vocabulary, number, tokens
        self.first, self.span = vocabulary.size + _IDS * number, tuple[int, ...]()
        first = vocabulary.size * (1 + number) + _IDS * _MOST
        self.words = range(first, first + vocabulary.size * transcript)
        self.table: nn.Parameter | None = None
        if sample is not None:
            self.span = (self.first, *[self.first + 2] * (tokens or 0), self.first + 1)
            words = sample.detach().float()
            self.table = nn.Parameter(words.mean(0).repeat(2, 1))
            self.register_buffer("scale", words.square().mean().sqrt())

    @property
    def marked(self) -> bool:
        """Whether it has markers, and not words alone."""
        return self.table is not None

    def holds(self, ids: Tensor) -> Tensor:
        """Where ``ids`` are this modality's."""
        return self.marks(ids) | self.says(ids)

    def marks(self, ids: Tensor) -> Tensor:
        """Where ``ids`` are its markers', or those of tokens between them."""
        count = 0 if not self.marked else 2 if self.tokens is None else _IDS
        return (ids >= self.first) & (ids < self.first + count)

    def says(self, ids: Tensor) -> Tensor:
        """Where ``ids`` are words of its transcripts."""
        return (ids >= self.words.start) & (ids < self.words.stop)

    def vectors(self, kinds: Tensor, inside: Tensor | None = None) -> Tensor:
        """The vectors of some positions of a text, (positions, width).

        Args:
            kinds: 0 for the start, 1 for the end, 2 for a token, (positions,).
            inside: the tokens of those that are, in order, (tokens, width).
        """
        assert self.table is not None
        vectors = self.table[kinds.clamp_max(1)]
        if inside is None:
            return vectors
        scaled = inside.to(vectors.dtype) * self.scale
        return vectors.index_put((kinds == 2,), scaled)


def make_markers(
    base: nn.Module,
    device: torch.device,
    hidden_size: int,
    taken: Iterable[Markers],
    tokens: int | None = None,
    *,
    marked: bool = True,
    transcript: bool = False,
) -> Markers:
    """Fresh markers with the first free ids.

    Args:
        base: with whose words they begin.
        device: where the base's input goes.
        hidden_size: of the base's layers.
        taken: markers of its other modalities.
        tokens: how many tokens stand between them; None for none.
        marked: whether there are any, and not the words of transcripts alone.
        transcript: whether there are such words.

    Raises:
        UnsupportedBaseError: the tokens are not as wide as the words.
    """
    numbers = {markers.number for markers in taken}
    free = next(number for number in range(len(numbers) + 1) if number not in numbers)
    vocabulary = Vocabulary.of(base)
    if not marked:
        return Markers(vocabulary, free, None, transcript=transcript)
    words = _word_vectors(base, vocabulary, device)
    width = words.shape[1]
    if tokens is not None and width != hidden_size:
        raise UnsupportedBaseError(
            f"`inline` cannot put tokens of width {hidden_size} among words of width {width}",
            hint="leave `inline` out; `markers` alone work with this base",
        )
    return Markers(vocabulary, free, words, tokens, transcript=transcript)


def inline_tokens(projector: Projector) -> int:
    """How many tokens a projector puts between the markers.

    Raises:
        SafeError: it does not say.
    """
    if projector.tokens is None:
        raise SafeError(
            f"`inline` needs to know how many tokens `{type(projector).__name__}` gives",
            hint="use a projector that sets `tokens`, such as `standard`, or leave `inline` out",
        )
    return projector.tokens


def embeddings_of(base: nn.Module) -> list[nn.Module]:
    """Every module that looks words up in the base's table of input embeddings.

    An encoder-decoder often has one for each side and one that is never called.

    Raises:
        UnsupportedBaseError: the base does not say where its table is.
    """
    try:
        named: nn.Module = base.get_input_embeddings()  # type: ignore[operator]  # a method
    except (AttributeError, NotImplementedError) as error:
        raise UnsupportedBaseError(
            f"`{type(base).__name__}` does not name its input embeddings",
            hint="leave `markers` and `inline` out",
        ) from error
    weight = getattr(named, "weight", None)
    sharing: list[nn.Module] = [
        module
        for module in base.modules()
        if isinstance(module, nn.Embedding) and module.weight is weight
    ]
    return sharing or [named]


@torch.no_grad()
def _word_vectors(base: nn.Module, vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """What the embedding gives for evenly spaced ordinary words, (words, width).

    Its output, not its weight: some scale inside, and an offloaded weight cannot be read.
    """
    size = vocabulary_size(base)
    spaced = range(0, size, max(1, size // _SAMPLE))
    ids = [word for word in spaced if word not in vocabulary.special] or [vocabulary.placeholder_id]
    vectors: Tensor = embeddings_of(base)[0](torch.tensor([ids], device=device))
    return vectors.flatten(0, -2)


# Puts the vectors of markers where a base looks up the words of its prompt.


@attrs.define(eq=False)
class MarkerInjection:
    """The positions in one call's prompt where one modality's vectors stand.

    A base may look its prompt up at once, in chunks, again and again behind a growing text, or
    for several copies of each row; other look-ups must pass by.

    Attributes:
        ids: the prompt as the base is shown it, (batch, length).
        compared: True where a look-up must find the same id, (batch, length).
        positions: row and column of each vector, (positions, 2).
        vectors: what stands there, (positions, width).
        once: whether the prompt is looked up only once, as an encoder's text is.
        reached: how many columns have been looked up, or lie in a cache.
    """

    ids: Tensor
    compared: Tensor
    positions: Tensor
    vectors: Tensor
    once: bool
    reached: int = 0

    @property
    def complete(self) -> bool:
        """Whether every vector has been put in."""
        return int(self.positions[:, 1].max()) < self.reached

    def embed(self, ids: object, embedded: Tensor) -> Tensor | None:
        """What a look-up of ``ids`` should have given, or None if it is not the prompt's.

        Args:
            ids: that were looked up, (batch * copies, columns).
            embedded: the base's own vectors, (batch * copies, columns, width).
        """
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[0] % len(self.ids):
            return None
        start = self._start(ids.shape[1])
        stop = min(start + ids.shape[1], self.ids.shape[1])
        if start >= stop or not self._matches(ids[:, : stop - start], start):
            return None
        self.reached = max(self.reached, stop)
        return self._placed(embedded, start, stop)

    def _start(self, columns: int) -> int:
        """The prompt's column at which a look-up of so many columns begins."""
        whole = columns >= self.ids.shape[1] and not self.once
        return 0 if whole else self.reached

    def _matches(self, ids: Tensor, start: int) -> bool:
        columns = slice(start, start + ids.shape[1])
        copies = len(ids) // len(self.ids)
        wanted, compared = (
            tensor[:, columns].to(ids.device).repeat_interleave(copies, 0)
            for tensor in (self.ids, self.compared)
        )
        return bool(((ids == wanted) | ~compared).all())

    def _placed(self, embedded: Tensor, start: int, stop: int) -> Tensor:
        copies = len(embedded) // len(self.ids)
        rows, columns = self.positions.to(embedded.device).unbind(1)
        here = (columns >= start) & (columns < stop)
        copy = torch.arange(copies, device=embedded.device)
        row = (rows[here, None] * copies + copy).flatten()
        column = (columns[here] - start).repeat_interleave(copies)
        vectors = self.vectors.to(embedded.device, embedded.dtype)[here]
        return embedded.index_put((row, column), vectors.repeat_interleave(copies, 0))
