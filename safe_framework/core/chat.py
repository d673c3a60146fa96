"""Chat messages with samples: what goes to the base's template, and what to encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from safe_framework.core.pictures import opened
from safe_framework.data.samples import as_sample
from safe_framework.errors import SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample, Several, sample_counts, together

Message = Mapping[str, Any]

_OWN_PARTS = {
    "image_processor": ("image", "image_url"),
    "video_processor": ("video",),
    "feature_extractor": ("audio",),
}
"""Types of parts by the attribute of a base's processor that reads them."""


@attrs.frozen
class Conversations:
    """Conversations, and the samples that their parts hold.

    Attributes:
        conversations: messages as they were given.
        samples: by modality what each conversation has of it, in the order of its parts; only
            modalities that are used.
        batched: whether several conversations were given, or one alone.
        joined: give the base's template the texts of a message's parts as one text, since many
            templates of a tokenizer take nothing else.
        parted: give it a message's text as a part, since it passes over anything else.
    """

    conversations: Sequence[Sequence[Message]]
    samples: Mapping[str, Sequence[Sample | Several[Sample] | None]]
    batched: bool
    joined: bool
    parted: bool = False

    @property
    def present(self) -> list[dict[str, int]]:
        """How many samples each conversation has, by modality."""
        return [
            sample_counts({name: held[row] for name, held in self.samples.items()})
            for row in range(len(self.conversations))
        ]

    @property
    def without_samples(self) -> list[list[Message]]:
        """What the base's template is given: all but the samples."""
        return self.with_placeholders(())

    def with_placeholders(self, names: Collection[str]) -> list[list[Message]]:
        """The same with ``<NAME>`` where the samples of these modalities were."""
        return [
            [self._with_placeholders(message, names) for message in conversation]
            for conversation in self.conversations
        ]

    def _with_placeholders(self, message: Message, names: Collection[str]) -> Message:
        parts = message.get("content")
        if isinstance(parts, str) and self.parted:
            return {**message, "content": [{"type": "text", "text": parts}]}
        if not isinstance(parts, (list, tuple)):
            return message
        kept = [
            {"type": "text", "text": f"<{part['type']}>"} if part["type"] in names else part
            for part in parts
            if part["type"] not in self.samples or part["type"] in names
        ]
        content = "".join(part["text"] for part in kept) if self.joined else kept
        return {**message, "content": content}


def split_samples(
    conversation: Any, encoders: Mapping[str, Encoder], tokenizer: Any, *, parted: bool = False
) -> Conversations:
    """Read the samples in one conversation, or in each of several.

    Args:
        conversation: messages in transformers' form, or a list of such lists.
        encoders: of the attached modalities, whose names are types of parts.
        tokenizer: the base's tokenizer or processor, which may take parts of its own.
        parted: whether its template reads a text in a part alone.

    Raises:
        SampleError: a message is none, a part is of an unknown type, or its sample cannot be read.
    """
    batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
    several = [list(map(_checked, one)) for one in (conversation if batched else [conversation])]
    if "image" not in encoders:
        several = list(map(_with_pictures, several))
    kinds = [kind for key, own in _OWN_PARTS.items() if hasattr(tokenizer, key) for kind in own]
    held = [_samples(messages, encoders, ("text", *encoders, *kinds)) for messages in several]
    used = [name for name in encoders if any(name in samples for samples in held)]
    columns = {name: [together(samples.get(name, [])) for samples in held] for name in used}
    joined = not parted and not hasattr(tokenizer, "tokenizer")
    return Conversations(several, columns, batched, joined, parted)


def _checked(message: Any) -> Message:
    """A message, its parts in a list.

    Raises:
        SampleError: it is none.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise SampleError(
            f"a chat holds {message!r:.80}, which is no message with a `role`",
            hint='write {"role": "user", "content": "..."}',
        )
    content: Any = message.get("content")
    if hasattr(content, "tolist"):  # of NumPy, as pandas and Parquet hold lists
        return {**message, "content": content.tolist()}
    if content is None or isinstance(content, (str, list, tuple)):
        return message
    raise SampleError(
        f"`content` of a message must be a text or a list of parts, not {content!r:.80}",
        hint='write "..." or [{"type": "text", "text": "..."}]',
    )


def _with_pictures(conversation: Sequence[Message]) -> list[Message]:
    """The messages, with pictures as the base's own processor takes them: files are opened."""
    return [
        {**message, "content": list(map(_with_picture, message["content"]))}
        if isinstance(message.get("content"), (list, tuple))
        else message
        for message in conversation
    ]


def _with_picture(part: Any) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    return {
        key: opened(value) if key in ("image", "path", "url") and value is not None else value
        for key, value in part.items()
    }


def _samples(
    conversation: Sequence[Message], encoders: Mapping[str, Encoder], known: Collection[str]
) -> dict[str, list[Sample]]:
    """The samples of one conversation by modality, in order."""
    found = dict[str, list[Sample]]()
    for message in conversation:
        parts = message.get("content")
        for part in parts if isinstance(parts, (list, tuple)) else ():
            kind = str(part.get("type", "")) if isinstance(part, Mapping) else ""
            wordless = kind == "text" and not isinstance(part.get("text"), str)
            if wordless or not isinstance(part, Mapping):
                raise SampleError(
                    f"a part of a message holds neither a text nor a sample: {part!r:.80}",
                    hint='write {"type": "text", "text": "..."}',
                )
            if kind not in known:
                raise SampleError(
                    f"a part of type {kind!r} is taken by neither a modality nor the base",
                    hint=f"types of parts: {', '.join(f'`{one}`' for one in known)}",
                )
            if kind in encoders:
                found.setdefault(kind, []).append(_sample(kind, part, encoders[kind]))
    return found


def _sample(name: str, part: Message, encoder: Encoder) -> Sample:
    found = [part[key] for key in (name, "path", "url") if part.get(key) is not None]
    if len(found) != 1:
        raise SampleError(
            f"a `{name}` part holds {len(found)} samples: {', '.join(part)}",
            hint=f"give one of `{name}`, `path` and `url`",
        )
    rate = part.get("sampling_rate")
    value = found[0] if rate is None else {"array": found[0], "sampling_rate": rate}
    return as_sample(name, value, encoder)
