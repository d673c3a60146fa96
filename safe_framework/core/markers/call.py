"""A call whose text holds markers, as the base is shown it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from safe_framework.core.injection import ActiveModality
from safe_framework.core.markers.embeddings import MarkerInjection, Markers
from safe_framework.core.padding import PaddedRows, gather_columns, per_token_inputs
from safe_framework.errors import SafeError, SampleError
from safe_framework.interfaces.types import IGNORED


@attrs.frozen(eq=False)
class PreparedCall:
    """What the base is called with, and where markers stand in it.

    Attributes:
        args: positional arguments.
        inputs: keyword arguments.
        prompts: by modality, where its vectors stand.
        given: of ``generate``, the ids of the base's text, markers among them; None without any.
        fed: the same as the base is shown them.
        columns: which of the call's own columns each one of the base's holds, (batch, length),
            where some were taken out.
    """

    args: Sequence[Any]
    inputs: Mapping[str, Any]
    prompts: Mapping[str, MarkerInjection] = attrs.field(factory=dict)
    given: Tensor | None = None
    fed: Tensor | None = None
    columns: Tensor | None = None

    def moved(self, first: Tensor | None) -> Tensor | None:
        """Columns of the call, (batch,), as those of what the base is given."""
        if first is None or self.columns is None:
            return first
        behind = self.columns >= first.cpu()[:, None]  # (batch, length)
        return torch.where(behind.any(1), behind.int().argmax(1), behind.shape[1])

    def restored(self, out: Any) -> Any:
        """What ``generate`` returned, with the markers' ids back in the prompts."""
        if self.given is None:
            return out
        if isinstance(out, Tensor):
            return self._restored(out)
        out["sequences"] = self._restored(out["sequences"])
        return out

    def _restored(self, sequences: Tensor) -> Tensor:
        assert self.given is not None
        assert self.fed is not None
        copies, width = len(sequences) // len(self.fed), self.fed.shape[1]
        begins = self.fed.to(sequences.device).repeat_interleave(copies, 0)
        if not torch.equal(sequences[:, :width], begins):  # an answer alone, without its prompt
            return sequences
        given = self.given.to(sequences.device).repeat_interleave(copies, 0)
        return torch.cat([given, sequences[:, width:]], dim=1)


def prepare_call(
    method: Callable[..., Any],
    args: Sequence[Any],
    inputs: Mapping[str, Any],
    markers: Mapping[str, Markers],
    modalities: Sequence[ActiveModality],
    pad: Callable[[], int],
) -> PreparedCall:
    """Take markers out of a call's text: out of it where their modality is off, else out of band.

    Args:
        method: that will be called.
        args: its positional arguments.
        inputs: its keyword arguments.
        markers: of every attached modality that has some.
        modalities: those that are on.
        pad: gives the id that fills rows up.

    Raises:
        SampleError: an id is no modality's, or a text has room for another number of tokens.
        SafeError: positions that the call names would move.
    """
    ids = args[0] if args else inputs.get("input_ids", inputs.get("inputs"))
    if not markers or not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return PreparedCall(args, inputs)
    size = next(iter(markers.values())).vocabulary.size
    if not (ids >= size).any():
        return PreparedCall(args, inputs)
    named = by_keyword(method, args) | dict(inputs)
    active_markers = _active_markers(ids, markers, modalities, size)
    generating = not isinstance(method, nn.Module)  # but the base's ``generate``
    call = _MarkerCall(named, markers, generating=generating)
    if bool((inactive := (ids >= size) & ~active_markers).any()):
        call.remove_markers(inactive, pad())
    if not active_markers.any():
        return PreparedCall((), call.inputs, columns=call.columns)
    return _streaming(call.replace_markers(modalities), size, pad)


class _WordsStreamer:
    """A streamer that is given a prompt without the words that stand in for its markers.

    Args:
        streamer: that is given the text.
        fed: the prompt with these words, (batch, length).
        words: the prompt without its markers.
    """

    def __init__(self, streamer: Any, fed: Tensor, words: Tensor) -> None:
        self.streamer, self.fed, self.words = streamer, fed, words

    def put(self, value: Tensor) -> None:
        """Pass on the prompt's own words, or new ones."""
        prompt = value.shape == self.fed.shape and torch.equal(value, self.fed.to(value.device))
        self.streamer.put(self.words.to(value.device) if prompt else value)

    def end(self) -> None:
        """Pass on that there are no more."""
        self.streamer.end()


def _streaming(call: PreparedCall, size: int, pad: Callable[[], int]) -> PreparedCall:
    """The call, whose streamer, if it has one, is shown no stand-in words.

    Args:
        call: whose markers were replaced.
        size: of the base's vocabulary, above which ids are markers.
        pad: gives the id that stands for a marker where rows have different numbers of them.
    """
    if call.inputs.get("streamer") is None or call.given is None:
        return call
    given, fed = call.given, call.fed
    assert fed is not None
    own = given < size
    words = given[own][None] if len(given) == 1 else given.masked_fill(~own, pad())
    streamer = _WordsStreamer(call.inputs["streamer"], fed, words)
    return attrs.evolve(call, inputs={**call.inputs, "streamer": streamer})


def cached_columns(inputs: Mapping[str, Any]) -> int:
    """How many of the text's columns ``generate`` will not read again, for they lie in a cache."""
    length = getattr(inputs.get("past_key_values"), "get_seq_length", None)
    ids, mask = inputs.get("input_ids", inputs.get("inputs")), inputs.get("attention_mask")
    new_alone = (
        isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape[1] != ids.shape[1]
    )
    return 0 if length is None or new_alone else int(length())


def by_keyword(method: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments by their names."""
    function = getattr(method, "forward", method)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds] or ["input_ids"]
    return dict(zip(names, args, strict=False))


def _active_markers(
    ids: Tensor, markers: Mapping[str, Markers], modalities: Sequence[ActiveModality], size: int
) -> Tensor:
    """True at the markers of modalities that are on in their row, (batch, length)."""
    active_markers, known = torch.zeros_like(ids, dtype=torch.bool), ids < size
    on = {active.name: active.rows.to(ids.device) for active in modalities}
    for name, one in markers.items():
        mine = one.holds(ids)
        known |= mine
        rows = on.get(name, ids.new_empty(0))
        active_markers[rows] |= mine[rows]
    if not known.all():
        unknown = sorted(set(ids[~known].tolist()))
        raise SampleError(
            f"the text holds ids {unknown}, which neither the base (below {size}) nor a marker of "
            f"{', '.join(f'`{name}`' for name in markers)} has",
            hint="make the batch with this model's `processor`",
        )
    return active_markers


class _MarkerCall:
    """The keyword arguments of one call while markers are taken out of them."""

    def __init__(
        self, inputs: dict[str, Any], markers: Mapping[str, Markers], *, generating: bool
    ) -> None:
        self.inputs, self.markers = inputs, markers
        self.vocabulary = next(iter(markers.values())).vocabulary
        self.key = "input_ids" if "input_ids" in inputs else "inputs"
        self.generating = generating
        self.cached = cached_columns(inputs) if generating else 0
        self.columns: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The text's ids, (batch, length)."""
        found: Tensor = self.inputs[self.key]
        return found

    def mask(self) -> Tensor:
        """The call's attention mask on this text."""
        found = self.inputs.get("attention_mask")
        if found is None:
            return torch.ones_like(self.ids)
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise SafeError(
                "markers need an `attention_mask` of (rows, length)",
                hint="give the mask that the processor made",
            )
        return found[:, -self.ids.shape[1] :]

    def remove_markers(self, inactive: Tensor, pad: int) -> None:
        """Take out the columns ``inactive``, and those that are then only padding."""
        self._check_movable()
        ids, mask = self.ids, self.mask()
        rows = PaddedRows.of(mask)
        marked = inactive.tolist()
        contents = [
            [column for column in bounds if not row[column]]
            for row, bounds in zip(marked, rows.bounds, strict=True)
        ]
        self.columns = index = rows.index(contents, rows.width(contents))
        moving = per_token_inputs(
            self.inputs, ids.shape, separate_decoder=self.vocabulary.separate_decoder
        )
        if bool((index < 0).any()):
            moving["attention_mask"] = mask
        self.inputs |= gather_columns(moving, index, pad)

    def replace_markers(self, modalities: Sequence[ActiveModality]) -> PreparedCall:
        """The call with an ordinary word instead of every marker, and those of transcripts."""
        given = self.ids
        marked = given >= self.vocabulary.size
        shown = given.masked_fill(marked, self.vocabulary.placeholder_id)
        for one in self.markers.values():
            shown = torch.where(one.says(given), given - one.words.start, shown)
        self.inputs[self.key] = shown
        labels = self.inputs.get("labels")
        if (
            isinstance(labels, Tensor)
            and labels.shape == given.shape
            and not self.vocabulary.separate_decoder
        ):
            self.inputs["labels"] = labels.masked_fill(marked, IGNORED)
        found = {active.name: self._prompt(given, marked, active) for active in modalities}
        prompts = {name: prompt for name, prompt in found.items() if prompt is not None}
        before, fed = (given, shown) if self.generating else (None, None)
        return PreparedCall((), self.inputs, prompts, before, fed, self.columns)

    def _prompt(
        self, given: Tensor, marked: Tensor, active: ActiveModality
    ) -> MarkerInjection | None:
        markers = self.markers.get(active.name)
        if markers is None or not (mine := markers.marks(given)).any():
            return None
        positions = mine.nonzero()  # by row, then column
        kinds = given[mine] - markers.first
        inside = None
        if bool((kinds == 2).any()):
            inside = self._tokens(positions[kinds == 2], active)
        assert markers.table is not None
        special = torch.tensor(self.vocabulary.special, device=given.device)
        return MarkerInjection(
            self.ids,
            marked | ~torch.isin(given, special),
            positions,
            markers.vectors(kinds.to(markers.table.device), inside),
            self.vocabulary.separate_decoder,
            self.cached,
        )

    def _tokens(self, positions: Tensor, active: ActiveModality) -> Tensor:
        """The tokens that stand at ``positions``, which the mask hides where they are masked."""
        assert active.tokens is not None
        rows, counts = torch.unique(positions[:, 0], return_counts=True)
        samples = torch.searchsorted(active.rows, rows.to(active.rows.device))
        room = active.tokens.lengths[samples].to(counts.device)
        if bool((wrong := counts != room).any()):
            raise SampleError(
                f"the text has room for {counts[wrong][0]} tokens of `{active.name}`, its "
                f"projector gives {room[wrong][0]}",
                hint="make the batch with this model's `processor`",
            )
        samples = samples.repeat_interleave(counts.to(samples.device))
        numbers = torch.cat([torch.arange(count) for count in counts.tolist()]).to(samples.device)
        self._hide(positions[~active.tokens.mask[samples, numbers].to(positions.device)])
        return active.tokens.values[samples, numbers]

    def _hide(self, positions: Tensor) -> None:
        if not len(positions):
            return
        whole = self.inputs.get("attention_mask")
        hidden = (self.mask() if whole is None else whole).clone()
        before = hidden.shape[1] - self.ids.shape[1]  # what lies in a cache
        hidden[positions[:, 0], positions[:, 1] + before] = 0
        self.inputs["attention_mask"] = hidden

    def _check_movable(self) -> None:
        """Refuse what would silently mean another position once a span is gone."""
        kept = self.inputs.get("logits_to_keep")
        mask = self.inputs.get("attention_mask")
        longer = isinstance(mask, Tensor) and mask.shape[1] != self.ids.shape[1]
        for wrong, what in (
            (isinstance(kept, Tensor), "`logits_to_keep` names positions"),
            (self.cached or longer, "`past_key_values` holds text"),
        ):
            if wrong:
                raise SafeError(
                    f"{what}, which would move: the text holds markers of a modality that is off",
                    hint="leave its samples out when the batch is made",
                )
