"""A model in one call: texts, questions or chats with samples in, answers out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_framework.core.build import load
from safe_framework.core.modality import RowGates, checked_gate, checked_gates
from safe_framework.core.model import SafeModel
from safe_framework.core.processor import held_samples
from safe_framework.core.relevance import Strength
from safe_framework.core.turn_end import TurnEnd
from safe_framework.data.pictures import FIELDS
from safe_framework.data.samples import as_sample
from safe_framework.errors import KeywordError, SafeError, SampleError
from safe_framework.evaluation.answers import eval_mode, new_tokens
from safe_framework.interfaces.samples import each_of, sample_counts, together
from safe_framework.pretrained.base_outline import known_types
from safe_framework.serving.options import check_options, checked_count, with_defaults
from safe_framework.serving.streaming import AnswerStreamer, streamed
from safe_framework.utils.suggest import nearest
from safe_framework.utils.tensors import checked_device

Gate = RowGates | Mapping[str, RowGates]
Rate = int | Mapping[str, int] | None

_TEXTS = ("text", "question")


def pipeline(
    model: SafeModel | str | Path,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    trust_remote_code: bool = False,
) -> SafePipeline:
    """What answers in one call.

    Args:
        model: an adapter's folder, which is loaded with its base, or a model.
        device: where to put it.
        batch_size: inputs at a time.
        trust_remote_code: let the base's checkpoint run code of its own.

    Raises:
        SafeError: it cannot be loaded, or an argument is out of its range.
    """
    if isinstance(model, SafeModel):
        if device is not None:
            model.to(checked_device(device))
    elif isinstance(model, (str, Path)):
        model = load(model, device=device, trust_remote_code=trust_remote_code)
    else:
        raise SafeError(
            f"a pipeline is of a model or an adapter's folder, not of a {type(model).__name__}",
            hint="give `safe_framework.attach(base, tokenizer)` its modalities first",
        )
    return SafePipeline(model, batch_size=batch_size)


class SafePipeline:
    """What ``pipeline`` gives.

    Args:
        model: with its tokenizer.
        batch_size: inputs at a time.

    Attributes:
        model: as given; its gates may be moved between calls.
    """

    def __init__(self, model: SafeModel, *, batch_size: int = 8) -> None:
        self.model, self.batch_size = model, checked_count("batch_size", batch_size)

    def __call__(
        self,
        inputs: Any,
        *,
        gate: Gate | None = None,
        sampling_rate: Rate = None,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Any]:
        """The answer to each input as ``{"generated_text": ...}``, without what was asked.

        With ``num_return_sequences`` above 1, a list of that many answers to each input. Where a
        gate is ``"auto"``, ``"opened"`` beside the text says of each such modality whether it was
        listened to.

        An input is a text; or ``{"text": ...}``, or ``{"question": ...}`` for the recipe's prompt,
        with samples by the names of their modalities, each one or a list of them, and, for a base
        that sees, ``"image"`` or a list of ``"images"``; or a chat: a list of messages, whose parts
        may be samples and pictures. Where its gate is 0, a sample is as good as absent. A chat that
        ends with words of the assistant's is continued behind them; an answer in a chat ends where
        the base's chat template ends a turn.

        Args:
            inputs: one, or a list of them.
            gate: strength for this call instead of the modalities' own: one, one for each input,
                or either by name; or ``"auto"``.
            sampling_rate: of samples that are plain arrays, in hertz.
            max_new_tokens: limit of an answer's length; 64, unless ``max_length`` or a
                ``generation_config`` says it.
            batch_size: inputs at a time in this call, instead of the pipeline's own.
            template_options: of the base's chat template, such as ``enable_thinking``, besides
                those of the recipe; for inputs that are chats.
            **options: of ``generate``.

        Raises:
            SafeError: an input is none of these, or a gate is not from 0 to 1.
            SampleError: a sample cannot be used; the message names its input.
            KeywordError: an option is none of a pipeline's nor of ``generate``.
        """
        options = {**options, "max_new_tokens": max_new_tokens}
        check_options(options, self.model.base)
        options = with_defaults(options, self.model.tokenizer)
        listed = _listed(inputs)
        gates = self._gates(gate, len(listed))
        _check_template_options(template_options, listed)
        size = self.batch_size if batch_size is None else checked_count("batch_size", batch_size)
        found = dict[int, list[dict[str, Any]]]()
        with eval_mode(self.model):
            for indices in self._batches(listed, size):
                some = [listed[index] for index in indices]
                strengths = {name: _of_rows(one, indices) for name, one in gates.items()}
                settings = self._enabled(strengths), sampling_rate, template_options
                try:
                    batch = self._batch(some, *settings)
                except SafeError as error:
                    raise self._of_input(error, listed, indices, settings) from error
                end = self._turn_end(some[0])
                ending = {} if end is None else end.options(options)
                out = self.model.generate(**batch, gate=strengths, **{**options, **ending})
                new = list(new_tokens(self.model, getattr(out, "sequences", out), batch))
                new = new if end is None else list(map(end.cut, new))
                texts = self.model.processor.batch_decode(new, skip_special_tokens=True)
                each = len(texts) // len(indices)  # answers, where several sequences are asked for
                opened = _opened(self.model.last_gates, len(indices))
                answers = [
                    {"generated_text": text.strip(), **opened[number // each]}
                    for number, text in enumerate(texts)
                ]
                found |= {i: answers[n * each : (n + 1) * each] for n, i in enumerate(indices)}
        ordered = [found[index] for index in range(len(listed))]
        if options.get("num_return_sequences", 1) > 1:
            return ordered
        return [answer for answers in ordered for answer in answers]

    def stream(
        self,
        one: Any,
        *,
        gate: Gate | None = None,
        sampling_rate: Rate = None,
        max_new_tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        opened: dict[str, bool] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The answer to one input, in pieces as it is made, that joined are the whole.

        An ``off()`` block around the loop over it holds for it. The arguments are those of a call,
        and ``opened``, into which is put, by the end of the stream, which modalities of gate
        ``"auto"`` were listened to.

        Raises:
            SafeError: the input is none, or several, or several answers are asked for.
            SampleError: a sample cannot be used.
            KeywordError: an option is none of a pipeline's nor of ``generate``.
        """
        options = {**options, "max_new_tokens": max_new_tokens}
        for name in ("num_beams", "num_return_sequences"):
            if checked_count(name, options.get(name) or 1) > 1:
                raise SafeError(
                    f"a stream gives one answer as it is made, not `{name} = {options[name]}`",
                    hint="call the pipeline itself for several",
                )
        check_options(options, self.model.base)
        options = with_defaults(options, self.model.tokenizer)
        if "streamer" in options:
            raise KeywordError(
                "a stream has a streamer of its own, and takes no other",
                hint="call `model.generate(**batch, streamer=...)` itself",
            )
        if not _is_one(one):
            raise SafeError(
                "a stream answers one input, not a list of them",
                hint="call the pipeline itself for several",
            )
        _check_template_options(template_options, [one])
        gates, end = self._gates(gate, 1), self._turn_end(one)
        batch = self._batch([one], self._enabled(gates), sampling_rate, template_options)
        ending = {} if end is None else end.options(options)
        given = {**batch, "gate": gates, **options, **ending}
        with eval_mode(self.model):
            streamer = AnswerStreamer(self.model.tokenizer, end)

            def generate(**arguments: Any) -> None:
                """Answer, and say what was listened to."""
                self.model.generate(**arguments)
                if opened is not None:
                    opened.update(_opened(self.model.last_gates, 1)[0].get("opened", {}))

            yield from streamed(generate, streamer, given)

    def _turn_end(self, one: Any) -> TurnEnd | None:
        """Where the answer to an input ends, if that is asked in a chat."""
        if _is_chat(one):
            return TurnEnd.of(self.model)
        if not isinstance(one, (str, Mapping)):
            return None
        text = one if isinstance(one, str) else one.get("text")
        if text is None and isinstance(one, Mapping) and isinstance(one.get("question"), str):
            text = self.model.processor.prompt(one["question"])
        return TurnEnd.of(self.model, [text]) if isinstance(text, str) else None

    def _gates(self, gate: Gate | None, count: int) -> dict[str, Strength | list[Strength]]:
        """What a call says of each modality's gate, one number or one for each input."""
        names = list(self.model.modalities)
        given = gate if isinstance(gate, Mapping) else dict.fromkeys(names, gate)
        found = dict[str, Strength | list[Strength]]()
        for name, asked in given.items():
            self.model.modality(name)  # or an error that names it
            if asked is None:
                continue
            strength = checked_gates(asked)
            if isinstance(strength, Tensor):
                listed = [checked_gate(one) for one in strength.flatten().tolist()]
                strength = listed[0] if strength.ndim == 0 else listed
            if isinstance(strength, list) and len(strength) != count:
                raise SafeError(
                    f"`gate` must hold {count} strengths, one for each input, not {len(strength)}"
                )
            found[name] = strength
        return found

    def _enabled(self, gates: Mapping[str, Strength | list[Strength]]) -> set[str]:
        """The modalities whose samples change anything in this call."""
        held = {**self.model.gates, **gates}
        off = {
            name
            for name, gate in held.items()
            if not (any(one != 0 for one in gate) if isinstance(gate, list) else gate != 0)
        }
        return {n for n in self.model.modalities if n not in off and self.model.is_enabled(n)}

    def _of_input(
        self, error: SafeError, listed: Sequence[Any], indices: Sequence[int], settings: Any
    ) -> SafeError:
        """The error with the place of its input, where only its place in a batch was known.

        Args:
            error: about one of some inputs.
            listed: all of them.
            indices: of those that went together.
            settings: with which they did.
        """
        row = getattr(error, "row", None)
        if row is None and len(listed) > 1:
            for place in indices:
                try:
                    self._batch([listed[place]], *settings)
                except SafeError as own:
                    message = f"inputs[{place}]: {own.message.replace('[0]', '', 1)}"
                    return type(own)(message, hint=own.hint)
        if row is None:
            return error
        place = indices[row]
        message = error.message.replace(f"[{row}]", "", 1)
        return SampleError(f"inputs[{place}]: {message}", hint=error.hint, row=place)

    def _batches(self, inputs: Sequence[Any], size: int) -> list[list[int]]:
        """The indices of what goes through the model together.

        Apart are chats, those that are continued, pictures, and what ends otherwise.
        """
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for index, one in enumerate(inputs):
            ends = self._turn_end(one) is not None
            kind = (_is_chat(one), _continued(one), self._has_pictures(one), ends)
            kinds.setdefault(kind, []).append(index)
        return [
            kind[start : start + size]
            for kind in kinds.values()
            for start in range(0, len(kind), size)
        ]

    @property
    def _needs_picture(self) -> bool:
        known = known_types().get(getattr(self.model.base.config, "model_type", ""))
        return known is not None and known.needs_picture

    def _has_pictures(self, one: Any) -> bool:
        return isinstance(one, Mapping) and bool(self._pictures(one))

    def _pictures(self, one: Mapping[str, Any]) -> list[Any]:
        """An input's pictures for the base itself."""
        fields = [name for name in FIELDS if name not in self.model.modalities]
        found = [one[name] for name in fields if one.get(name) is not None]
        if len(found) > 1:
            raise SafeError("an input has both `image` and `images`", hint="put all into `images`")
        listed = [list(p) if isinstance(p, (list, tuple)) else [p] for p in found]
        return [picture for pictures in listed for picture in pictures]

    def _batch(
        self,
        inputs: Sequence[Any],
        enabled: Collection[str],
        rate: Rate,
        template_options: Mapping[str, Any] | None,
    ) -> Any:
        processor = self.model.processor
        if _is_chat(inputs[0]):
            disabled = self.model.modalities.keys() - set(enabled)
            chats = [_without(chat, disabled) for chat in inputs]
            if template_options and processor.chat is not None:
                processor.chat.check_options(template_options)
            way = "continue_final_message" if _continued(inputs[0]) else "add_generation_prompt"
            batch = processor.chat_batch(chats, rate, {**(template_options or {}), way: True})
        else:
            rows = [self._row(one, enabled) for one in inputs]
            names = {name for _, row in rows for name, value in row.items() if value is not None}
            columns: dict[str, Any] = {name: [row.get(name) for _, row in rows] for name in names}
            texts = [text for text, _ in rows]
            batch = processor(text=texts, sampling_rate=rate, **columns)
        return batch.to(self.model.device)

    def _row(self, one: Any, enabled: Collection[str]) -> tuple[str, dict[str, Any]]:
        """An input's text, its samples by modality, of those enabled, and its pictures."""
        one = {"text": one} if isinstance(one, str) else one
        texts = [key for key in _TEXTS if key in one] if isinstance(one, Mapping) else []
        if len(texts) != 1:
            raise _no_input(one)
        if not isinstance(one[texts[0]], str):
            raise SafeError(f"`{texts[0]}` of an input must be a text, not {one[texts[0]]!r:.60}")
        samples = {key: value for key, value in one.items() if key not in _TEXTS}
        known = list(self.model.modalities)
        if strange := samples.keys() - {*known, *FIELDS}:
            name = min(strange)
            hint = f"attached: {', '.join(known) or 'none'}; pictures are `images`"
            raise SafeError(
                f"an input names `{name}`, which is no modality of the model",
                hint=f"{nearest(name, [*known, *FIELDS])} {hint}".strip(),
            )
        processor = self.model.processor
        held = {name: held_samples(name, samples[name]) for name in known if name in samples}
        read = {
            name: together([as_sample(name, v, processor.encoders[name]) for v in each_of(value)])
            for name, value in held.items()
            if value is not None
        }
        given = {name: value for name, value in read.items() if name in enabled}
        counts = sample_counts(given)
        text = one["text"] if texts == ["text"] else processor.prompt(one["question"], counts)
        text = processor.markers.strip_markers(text, read.keys() - given.keys())
        pictures = self._pictures(one)
        if not pictures and self._needs_picture:
            raise SafeError(
                f"`{type(self.model.base).__name__}` answers no text without a picture",
                hint='add an "image" to the input',
            )
        return text, {**given, "images": pictures} if pictures else given


def _opened(gates: Mapping[str, Tensor], rows: int) -> list[dict[str, dict[str, bool]]]:
    """Of each input, what is said of the gates that heads decided on; nothing if none did."""
    if not gates:
        return [{} for _ in range(rows)]
    each = {name: (gate != 0).tolist() for name, gate in gates.items()}
    return [{"opened": {name: each[name][row] for name in each}} for row in range(rows)]


def _listed(inputs: Any) -> list[Any]:
    """The inputs of a call.

    Raises:
        SafeError: they are none.
    """
    if _is_one(inputs):
        return [inputs]
    if not isinstance(inputs, Iterable) or isinstance(inputs, (bytes, bytearray)):
        raise _no_input(inputs)
    return list(inputs)


def _no_input(one: Any) -> SafeError:
    return SafeError(
        f"an input of a pipeline is a text, a mapping or a chat, not {one!r:.60}",
        hint='give {"text": ...} or {"question": ...}, or a list of messages',
    )


def _of_rows(gate: Strength | list[Strength], rows: Sequence[int]) -> Strength | list[Strength]:
    return [gate[row] for row in rows] if isinstance(gate, list) else gate


def _check_template_options(options: Mapping[str, Any] | None, inputs: Sequence[Any]) -> None:
    """Refuse options of a chat's template where there is no chat.

    Raises:
        SafeError: there is none, or they are no options.
    """
    if options is not None and not isinstance(options, Mapping):
        raise SafeError(f"`template_options` must be options by name, not {options!r:.60}")
    if options and inputs and not any(map(_is_chat, inputs)):
        raise SafeError(
            "`template_options` are of a chat's template, and no input is a chat",
            hint='give [{"role": "user", "content": "..."}] for a text',
        )


def _is_chat(one: Any) -> bool:
    return isinstance(one, (list, tuple)) and bool(one) and _is_message(one[0])


def _continued(one: Any) -> bool:
    """Whether an input is a chat that ends with the assistant's words."""
    return _is_chat(one) and _is_message(one[-1]) and one[-1]["role"] == "assistant"


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and "role" in one


def _is_one(inputs: Any) -> bool:
    return isinstance(inputs, (str, Mapping)) or _is_chat(inputs)


def _without(chat: Sequence[Mapping[str, Any]], names: Collection[str]) -> list[Any]:
    """A chat without the parts of these modalities."""
    return [
        {**message, "content": [part for part in parts if _type_of(part) not in names]}
        if _is_message(message) and isinstance(parts := message.get("content"), (list, tuple))
        else message
        for message in chat
    ]


def _type_of(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None
