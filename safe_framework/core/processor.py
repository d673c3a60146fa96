"""Turns texts, images and samples of new modalities into one batch."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from safe_framework.core.chat import Conversations, split_samples
from safe_framework.core.keywords import check_keywords, keywords_of
from safe_framework.core.markers.text import NOTHING_SAID, MarkerText, Said
from safe_framework.core.padding import PaddedRows, append_columns, gather_columns, per_token_inputs
from safe_framework.core.pictures import PicturePlaces, pictures_by_text
from safe_framework.data.chat_template import QUESTION, ChatTemplate
from safe_framework.data.frame_cache import prepare_inputs
from safe_framework.data.prompts import EARLIER, with_places
from safe_framework.data.transcripts import Transcripts
from safe_framework.data.windows import try_sample
from safe_framework.errors import DataError, SafeError, SampleError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.samples import Sample, Several, each_of, sample_counts, together
from safe_framework.interfaces.types import IGNORED
from safe_framework.pretrained.base_processor import takes_images, text_tokenizer

Rate = int | Mapping[str, int] | None

_OF_TOKENS = (
    "padding", "truncation", "max_length", "tokenizer_kwargs", "processor_kwargs",
    "return_assistant_tokens_mask",
)  # fmt: skip


_HALF = re.compile("[\ud800-\udfff]")


class SafeProcessor:
    """The base's own processor or tokenizer, which also takes samples of attached modalities.

    Args:
        tokenizer: the base's processor or tokenizer; copied, never changed.
        encoders: the attached encoders by modality.
        prompt: template with ``{question}``, as the recipe's data was prompted.
        spans: by modality with markers, the ids that stand where its sample is.
        chat: the base's chat template as the recipe uses it, in which the prompt is a user's
            message; None where it asks in no chat.
        words: by modality whose samples are transcribed, the ids of the base's words there.
        transcripts: what writes them.
        context: how many tokens the base reads; None where it does not say.

    Attributes:
        base_processor: the copy.
        columns: the keys of samples that it has put into batches.
        chat: as given, else the base's own chat template; None where it has none.
        markers: puts these ids into texts.
        pictures: puts the places of pictures into texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoders: Mapping[str, Encoder],
        *,
        prompt: str = "{question}",
        spans: Mapping[str, Sequence[int]] | None = None,
        chat: ChatTemplate | None = None,
        words: Mapping[str, range] = MappingProxyType({}),
        transcripts: Mapping[str, Transcripts] = MappingProxyType({}),
        context: int | None = None,
    ) -> None:
        self.base_processor = _with_padding(copy.deepcopy(tokenizer))
        self.transcripts, self._context = dict(transcripts), context
        self.encoders, self.columns = dict(encoders), set[str]()
        self._prompt, self._asks_in_chat = prompt, chat is not None
        self.chat = chat or ChatTemplate.of(self.base_processor)
        self.template = self._around(prompt)
        opening = None if chat is None else self._opening
        self.pictures = PicturePlaces(self.base_processor, opening)
        self.markers = MarkerText(
            self.base_processor,
            spans or {},
            names=self.encoders,
            ending=self.pictures.ending,
            words=words,
            opening=self._turn_opening,
        )

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        sampling_rate: int | Mapping[str, int] | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        **inputs: Any,
    ) -> Any:
        """A batch for ``model(**batch)`` and ``model.generate(**batch)``.

        A text may have several samples of a modality, and say by ``<NAME>`` where each of them
        is, in order. The markers of a modality that has some stand there, or before the text if it
        says nothing. They come on top of a ``max_length``. A text without a token of its own begins
        with the base's start token.

        Args:
            text: one text or several, as they are.
            question: instead of ``text``: questions, put into the recipe's prompt.
            images: pictures for the base's own processor, one for each text, or a list of them
                or None: Pillow images, arrays, file names. A text that does not name them by the
                base's placeholder has them at the front.
            videos: for the base's own processor, whose placeholders the texts must have.
            sampling_rate: of plain arrays given as samples, in hertz; by modality if they
                differ.
            return_tensors: ``"pt"``, the only form there is.
            padding: passed to the tokenizer.
            **inputs: for each attached modality a sample, a list of samples or None for each
                text; all else, such as ``max_length``, is a keyword of the base's own processor. A
                list of numbers is one sample.

        Raises:
            SampleError: a sample cannot be used, or there are not as many entries as texts, or a
                text names another number of samples or pictures than it has.
            KeywordError: a keyword is neither a modality nor known to the base's processor.
            SafeError: there are pictures or videos, and the base takes none.
        """
        if return_tensors != "pt":
            raise SafeError(f'`return_tensors` must be "pt", not {return_tensors!r}')
        asked = self._texts(text, question)
        seen = {"images": images, "videos": videos}
        inputs |= {name: value for name, value in seen.items() if value is not None}
        alone = isinstance(text if question is None else question, str)
        given = {
            name: _per_text(name, inputs.pop(name), None if alone else len(asked))
            for name in list(inputs)
            if name in self.encoders
        }
        if self.base_processor is None:
            raise SafeError(
                "the model has no tokenizer", hint="pass one: attach(base, tokenizer=...)"
            )
        check_keywords(inputs, self.base_processor, list(self.encoders))
        present = [
            sample_counts({name: samples[row] for name, samples in given.items()})
            for row in range(len(asked))
        ]
        texts = asked if question is None else list(map(self.prompt, asked, present))
        self._check_places(texts, present)
        texts = self._with_pictures(texts, inputs)
        plain = [
            with_start_token(self.base_processor, self.markers.strip_markers(text, names))
            for text, names in zip(texts, present, strict=True)
        ]
        inputs.setdefault("padding_side", "left")
        base = self.base_processor if inputs.keys() & seen.keys() else self._text_alone
        batch = base(text=plain, return_tensors="pt", padding=padding, **inputs)
        heard = self._heard(given, sampling_rate)
        self._insert(batch, texts, present, given)
        batch.update(heard)
        return batch

    def _heard(self, given: Mapping[str, list[Any]], rate: Rate) -> dict[str, Tensor]:
        """What modalities add to a batch; the samples in ``given`` are then as encoders take them.

        Args:
            given: by modality the samples of each text.
            rate: of plain arrays, in hertz.
        """
        found = dict[str, Tensor]()
        for name, rows in given.items():
            own = rate.get(name) if isinstance(rate, Mapping) else rate
            rows[:] = self._wrapped(name, rows, own)
            found |= self.modality(name, rows)
        return found

    def _insert(
        self,
        batch: Any,
        texts: Sequence[str],
        present: Sequence[Mapping[str, int]],
        given: Mapping[str, Sequence[Any]],
    ) -> None:
        """Put markers and what was said into a batch, where it is to stand.

        Args:
            batch: of the texts without either.
            texts: with the places of their samples.
            present: how many samples each has, by modality.
            given: these samples, by modality.

        Raises:
            SampleError: with what was said, a text is longer than the base reads.
        """
        rows = range(len(texts))
        said = [self.said({name: held[row] for name, held in given.items()}) for row in rows]
        batch.update(self.markers.insert_into_batch(batch, texts, present, said))
        if self._context is None or not any(said):
            return
        lengths = batch["attention_mask"].sum(1).tolist()
        for row, (length, own) in enumerate(zip(lengths, said, strict=True)):
            if own and length > self._context:
                raise SampleError(
                    f"text {row} has {length} tokens with what was said in its samples, and the "
                    f"base reads {self._context}",
                    hint="set `max_tokens` of `transcript`, or cut the recording",
                    row=row,
                )

    def said(self, samples: Mapping[str, Sample | Several[Sample] | None]) -> Said:
        """What was said in one text's samples, of those modalities that are transcribed.

        Args:
            samples: by modality, as encoders take them.

        Raises:
            SampleError: one cannot be used.
        """
        if not self.transcripts:
            return NOTHING_SAID
        return {
            name: [transcripts(sample, self.tokenizer) for sample in each_of(samples[name])]
            for name, transcripts in self.transcripts.items()
            if samples.get(name) is not None
        }

    @cached_property
    def _ends_before_user(self) -> str:
        """What the base's chat writes before what a user says, at the start and later on."""
        if self.chat is None:
            return ""
        asked = {"role": "user", "content": QUESTION}
        try:
            talks = [self.chat.question(QUESTION), self.chat.before_answer([*EARLIER, asked])]
        except SafeError:  # it takes no lone question
            return ""
        before = [reversed(talk.rpartition(QUESTION)[0]) for talk in talks]
        shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*before, strict=False))
        return "".join(letter for letter, _ in shared)[::-1]

    def _turn_opening(self) -> str:
        return self._ends_before_user

    def place_images(self, text: str, count: int) -> str:
        """A text with the base's own placeholder for each of its pictures.

        As it is, if it names as many already, or if the base's processor puts them in itself.
        Otherwise they stand at the front; in the recipe's chat, at the front of the user's
        message, as the base's chat template writes them.

        Args:
            text: as it will be given to the processor.
            count: of its pictures.

        Raises:
            SampleError: the text names another number of pictures.
            SafeError: there are some, and the base takes none.
        """
        return self.pictures.place(text, count)

    def _check_places(self, texts: Sequence[str], present: Sequence[Mapping[str, int]]) -> None:
        for row, (text, counts) in enumerate(zip(texts, present, strict=True)):
            try:
                self.markers.check_places(text, counts)
            except SampleError as error:
                place = f"text {row}: " if len(texts) > 1 else ""
                raise SampleError(f"{place}{error.message}", hint=error.hint, row=row) from error

    def _with_pictures(self, texts: list[str], inputs: dict[str, Any]) -> list[str]:
        """Texts with the places of their pictures, which ``inputs`` then has by text."""
        if "images" not in inputs:
            return texts if "videos" in inputs else [self.place_images(text, 0) for text in texts]
        by_text = pictures_by_text(inputs.pop("images"), texts, self.pictures.named)
        counts = list(map(len, by_text))
        placed = [self.place_images(text, n) for text, n in zip(texts, counts, strict=True)]
        self.pictures.check(counts)
        if any(counts):
            inputs["images"] = by_text
        return placed

    @cached_property
    def _text_alone(self) -> Any:
        """What takes texts without a picture: the base's processor, or its tokenizer if it refuses.

        PaliGemma's processor takes no text without a picture, though the model does.
        """
        if not takes_images(self.base_processor):
            return self.base_processor
        try:
            self.base_processor(text=["a"])
        except ValueError:
            return self.tokenizer
        return self.base_processor

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        sampling_rate: int | Mapping[str, int] | None = None,
        **options: Any,
    ) -> Any:
        """As the base's own method, of messages that may hold samples of attached modalities.

        A part ``{"type": NAME, "path": ...}`` (or ``"url"`` of a local file, or ``NAME`` itself
        with an array) becomes the sample of its conversation, and with markers ``<NAME>`` is put
        where it stood. All else is rendered, tokenized and, where the base has a processor for
        it, shown to it as by the base's own method: so are parts ``image`` and ``video``. Without
        any part of ours the result is the base's very own.

        Args:
            conversation: messages, or a list of conversations, with any number of samples in
                any of their messages.
            sampling_rate: of plain arrays, where their parts do not say it, in hertz.
            **options: as the base's, such as ``add_generation_prompt`` and ``tokenize``. Beside
                samples, ids come as tensors in rows, padded on the left.

        Raises:
            SampleError: a part is of an unknown type, or its sample cannot be used.
            DataError: beside samples, an option is one that nobody reads.
        """
        base, options = self._chat, {**self._chat_options, **options}
        given = split_samples(conversation, self.encoders, base, parted=self._parted)
        if not given.samples:  # the base's own, whatever it is
            plain = attrs.evolve(given, parted=False).without_samples
            return self._apply(plain if given.batched else plain[0], options)
        self._check_chat_options(options)
        wanted = {**_template_defaults(base), **options}
        tokenize, whole = wanted.pop("tokenize"), wanted.pop("return_dict")
        if wanted.pop("return_tensors", None) not in (None, "auto", "pt"):
            raise SafeError('`return_tensors` must be "pt" beside samples')
        if not tokenize:
            texts = self._render(given, wanted)
            return texts if given.batched else texts[0]
        batch = self._chat_batch(given, sampling_rate, wanted)
        return batch if whole else batch["input_ids"]

    def chat_batch(
        self, conversations: Sequence[Any], sampling_rate: Rate, options: Mapping[str, Any]
    ) -> Any:
        """Several conversations as one batch of tensors, with samples or without.

        Args:
            conversations: lists of messages.
            sampling_rate: of plain arrays, where their parts do not say it, in hertz.
            options: of the base's ``apply_chat_template``.
        """
        talks = list(map(list, conversations))
        given = split_samples(talks, self.encoders, self._chat, parted=self._parted)
        return self._chat_batch(given, sampling_rate, {**self._chat_options, **options})

    @property
    def _parted(self) -> bool:
        return self.chat is not None and self.chat.passes_texts_over

    def _check_chat_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that neither the base's own method nor its template reads.

        Raises:
            DataError: there is one.
        """
        known = inspect.signature(self._chat.apply_chat_template).parameters
        strange = [name for name in options if name not in known]
        if hasattr(self._chat, "tokenizer"):  # a processor hands them on to its parts
            read = keywords_of(self._chat)
            strange = [] if read is None else [name for name in strange if name not in read]
        if self.chat is not None:
            self.chat.check_options(strange, also=list(known))

    @property
    def _chat_options(self) -> Mapping[str, Any]:
        """The recipe's options of the base's chat template."""
        return {} if self.chat is None else self.chat.options

    def _apply(self, conversations: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """What the base's own template makes of messages.

        Raises:
            SafeError: it refuses them, or there is none.
        """
        if self.chat is None:
            raise DataError(
                "the base has no chat template, which a chat needs",
                hint="ask by `question` or `text`, or set `chat_template` of the tokenizer",
            )
        batched = bool(conversations) and isinstance(conversations[0], (list, tuple))
        messages = [m for talk in (conversations if batched else [conversations]) for m in talk]
        try:
            return self._chat.apply_chat_template(conversations, **options)
        except TemplateError as error:
            raise self.chat.refusal(messages, error) from error
        except SafeError:
            raise
        except Exception as error:  # a template raises what its author chose
            check_letters([one for message in messages for one in _words(message)])
            if _has_pictures(messages):  # which the base's own processor may refuse
                raise
            raise self.chat.refusal(messages, error) from error

    @property
    def _chat(self) -> Any:
        """What of the base has a chat template, else what was given.

        Raises:
            SafeError: nothing was.
        """
        if self.base_processor is None:
            raise SafeError(
                "the model has no tokenizer", hint="pass one: attach(base, tokenizer=...)"
            )
        return self.base_processor if self.chat is None else self.chat.renderer

    def _chat_batch(self, given: Conversations, rate: Rate, options: Mapping[str, Any]) -> Any:
        """The base's tokens of the text alone, and what the samples add."""
        whole = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        batch = self._apply(given.without_samples, {**_padded(self._chat, options), **whole})
        if not batch["attention_mask"].any(1).all():
            raise DataError(
                "the base's chat template makes an empty text of a chat",
                hint="look at `apply_chat_template(chat, tokenize=False)` of the base's tokenizer",
            )
        samples = {name: list(rows) for name, rows in given.samples.items()}
        heard = self._heard(samples, rate)
        if samples.keys() & self.markers.spans:
            texts, present = self._render(given, options), given.present
            self._check_places(texts, present)
            self._insert(batch, texts, present, samples)
        batch.update(heard)
        return batch

    def _render(self, given: Conversations, options: Mapping[str, Any]) -> list[str]:
        """Each conversation as text, with ``<NAME>`` for samples whose modality has markers."""
        rendering = {key: value for key, value in options.items() if key not in _OF_TOKENS}
        messages = given.with_placeholders(self.markers.spans)
        texts: list[str] = self._apply(messages, {**rendering, "tokenize": False})
        return texts

    def training_batch(
        self,
        text: str | Sequence[str],
        answers: str | Sequence[str | None] | None,
        samples: Mapping[str, Any],
        *,
        encoder_decoder: bool = False,
        sampling_rate: int | None = None,
    ) -> Any:
        """A batch of texts with the answers that follow them, and the labels to learn.

        Args:
            text: one text or several.
            answers: what should follow each text; None in a list is a text without a target.
            samples: by modality, one for each text or None; ``images`` too.
            encoder_decoder: whether labels are a text of their own, for the decoder.
            sampling_rate: of plain arrays given as samples, in hertz.

        Returns:
            Rows padded on the right; ``labels`` hold the answers' ids, with the end of the text
            (or of the assistant's turn) behind them, where they stand, and -100 everywhere else,
            at markers and padding too.

        Raises:
            SafeError: answers are missing or empty.
            SampleError: a sample cannot be used, or there are not as many as texts.
        """
        texts = [text] if isinstance(text, str) else list(text)
        batch = self(text=texts, sampling_rate=sampling_rate, padding_side="right", **samples)
        targets = self._targets(answers, texts)
        if encoder_decoder:
            batch["labels"] = _filled(targets, [0] * len(texts))
            return batch
        batch.update(with_answers(batch, targets, self.padding))
        return batch

    def save_pretrained(self, folder: str | Path, **options: Any) -> Any:
        """Write the base's own processor, as a Trainer does beside its checkpoints.

        What is ours in it is in the adapter.

        Args:
            folder: where to.
            **options: of the base's own method.
        """
        return self.base_processor.save_pretrained(folder, **options)

    def by_modality(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """The samples that are there, each known to a modality or to the base's own processor.

        Args:
            samples: by modality; those under ``images`` are the base's where no modality is
                called so.

        Raises:
            SafeError: there are images, and neither the base nor a modality takes them.
            SampleError: there is no such modality.
        """
        given = {name: value for name, value in samples.items() if value is not None}
        images = given.get("images") if "images" not in self.encoders else None
        if isinstance(images, (list, tuple)) and all(image is None for image in images):
            del given["images"]
        for name in given:
            if name not in self.encoders and name != "images":
                raise SampleError(
                    f"there is no modality `{name}`",
                    hint=f"attached modalities: {', '.join(self.encoders) or 'none'}",
                )
        return given

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the copy of the base's processor; that copy itself where it is one."""
        return text_tokenizer(self.base_processor)

    @property
    def padding(self) -> int:
        """The id that fills rows up; it is masked, so any would do."""
        return padding_id(self.base_processor, 0)

    def decode(self, ids: Tensor | Sequence[int], **options: Any) -> str:
        """The text of ids, markers among them, as the tokenizer's own ``decode``."""
        return self.markers.decode(ids, **options)

    def batch_decode(self, sequences: Tensor | Sequence[Any], **options: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(ids, **options) for ids in sequences]

    def modality(
        self,
        name: str,
        samples: Sequence[Sample | Several[Sample] | None],
        sampling_rate: int | None = None,
    ) -> dict[str, Tensor]:
        """One modality's part of a batch, a row for each entry, which may be several samples.

        Raises:
            SampleError: a sample cannot be used.
        """
        encoder, rows = self.encoders[name], self._wrapped(name, samples, sampling_rate)
        try:
            made = prepare_inputs(name, encoder, rows)
        except SampleError as error:
            raise _with_row(name, encoder, rows, error) from error
        self.columns |= made.keys()
        return made

    def _wrapped(
        self, name: str, samples: Sequence[Any], rate: int | None
    ) -> list[Sample | Several[Sample] | None]:
        """Each text's samples as the encoder takes them."""
        encoder = self.encoders[name]
        return [
            together([_wrap(name, encoder, one, rate) for one in each_of(held)]) for held in samples
        ]

    def _texts(self, text: Any, question: Any) -> list[str]:
        if (text is None) == (question is None):
            raise SafeError("give either `text` or `question`")
        given = text if text is not None else question
        texts = [given] if isinstance(given, str) else list(given)
        for row, one in enumerate(texts):
            if not isinstance(one, str):
                name = "question" if text is None else "text"
                raise SampleError(f"`{name}` {row} is no text: {one!r:.80}", row=row)
        check_letters(texts)
        return texts

    def prompt(self, question: str, present: Mapping[str, int] | None = None) -> str:
        """A question in the recipe's prompt.

        Args:
            question: as it is asked.
            present: how many samples it has, by modality, whose ``<NAME>`` alone stay in the
                prompt; None leaves the prompt as it is.
        """
        prompt = self._prompt
        if present is not None:
            prompt = self.markers.leave_out_absent(prompt, present)
            places = {name: n for name, n in present.items() if name in self.markers.names}
            prompt = with_places(prompt, question, places)
        return self._around(prompt.replace(QUESTION, question))

    def _around(self, prompt: str) -> str:
        """A prompt in the recipe's chat, if it asks in one."""
        return self.chat.question(prompt) if self.chat and self._asks_in_chat else prompt

    def _opening(self, images: int) -> str:
        """What a chat of the recipe puts before a user's first word, and so many pictures."""
        assert self.chat is not None
        return self.chat.question(QUESTION, images).partition(QUESTION)[0]

    def _targets(
        self, answers: str | Sequence[str | None] | None, texts: Sequence[str]
    ) -> list[list[int]]:
        """Ids of each answer with the end behind it."""
        listed = [answers] if isinstance(answers, str) else list(answers or ())
        if len(listed) != len(texts):
            raise SafeError(
                f"training mode needs an answer for each of {len(texts)} texts, not {len(listed)}",
                hint="give `answers`, None for a text without a target",
            )
        found = [
            [] if answer is None else self.answer_ids(answer, text)
            for answer, text in zip(listed, texts, strict=True)
        ]
        for row, (answer, ids) in enumerate(zip(listed, found, strict=True)):
            if answer is not None and not ids:
                raise SafeError(f"answers[{row}]: the answer {answer!r} has no tokens")
        return found

    def answer_ids(self, answer: str, prompt: str) -> list[int]:
        """Ids of an answer, with what ends it; none if the answer has none.

        Args:
            answer: as it is written.
            prompt: the text before it. Where that ends as the base's chat template opens the
                assistant's turn, the answer ends as it ends the turn; else with the text.
        """
        inner = self.tokenizer
        if self.chat is not None and self.chat.opens(prompt):
            return self.chat.answer_ids(answer)
        ids: list[int] = inner(answer, add_special_tokens=False)["input_ids"]
        return [*ids, inner.eos_token_id] if ids else []


def _per_text(name: str, given: Any, count: int | None) -> list[Sample | Several[Sample] | None]:
    """The samples of each text.

    Args:
        name: of the modality.
        given: as a caller gave them.
        count: of the texts; None for one text that is in no list, whose samples may be in none.
    """
    if count is None:
        nested = _is_list_of_samples(given) and len(given) == 1 and _is_list_of_samples(given[0])
        listed, count = list(given) if nested else [given], 1
    else:
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(listed) != count:
        raise SampleError(
            f"`{name}` has {len(listed)} samples for {count} texts",
            hint="give one for each text, or a list of them, None where there is none",
        )
    return [held_samples(f"{name}[{row}]", one) for row, one in enumerate(listed)]


def held_samples(place: str, entry: Any) -> Sample | Several[Sample] | None:
    """One text's samples: one, a list of them, or None.

    Args:
        place: of the entry, for messages.
        entry: as a caller gave it; a list of numbers is one sample.

    Raises:
        SampleError: one of several is None.
    """
    if not _is_list_of_samples(entry):
        return entry
    if all(one is None for one in entry):
        return None
    for number, one in enumerate(entry):
        if one is None:
            raise SampleError(
                f"`{place}[{number}]` is None among {len(entry)} samples",
                hint="leave it out: a text's samples are those that it has",
            )
    return together(list(entry))


def _is_list_of_samples(entry: Any) -> bool:
    """Whether it holds samples: a list of numbers is one."""
    return isinstance(entry, (list, tuple)) and not (
        entry and all(isinstance(one, (int, float, np.number)) for one in entry)
    )


def _wrap(name: str, encoder: Encoder, sample: Sample, rate: int | None) -> Sample:
    """A file, a plain array, a mapping or a decoder as a Waveform, if the encoder takes sound."""
    if encoder.sampling_rate is None:
        return sample
    from safe_framework.data.audio import Waveform
    from safe_framework.data.samples import as_sample, decoded

    sample = decoded(sample)
    if isinstance(sample, (Mapping, str, Path)):
        return as_sample(name, sample, encoder)
    if not isinstance(sample, (np.ndarray, Tensor, list)):
        return sample

    if rate is None:
        raise SampleError(
            f"`{name}` is a plain array, which does not say how fast it was sampled",
            hint=f"pass sampling_rate=..., in hertz; the encoder takes {encoder.sampling_rate}",
        )
    values = sample.detach().cpu() if isinstance(sample, Tensor) else sample
    return Waveform(np.asarray(values), rate)


def _with_row(
    name: str,
    encoder: Encoder,
    rows: Sequence[Sample | Several[Sample] | None],
    error: SampleError,
) -> SampleError:
    """The error with the row of the sample that is wrong, if it is wrong by itself."""
    for row, held in enumerate(rows):
        for number, sample in enumerate(each_of(held)):
            try:
                try_sample(encoder, sample)
            except SampleError as own:
                where = f"`{name}[{row}]`"
                if isinstance(held, Several):
                    where = f"`{name}[{row}][{number}]`"
                named = own.message.replace("`samples[0]`", where).replace("samples[0]", where)
                message = named if where in named else f"{where}: {own.message}"
                return SampleError(message, hint=own.hint, row=row)
    return error


def with_start_token(tokenizer: Any, text: str) -> str:
    """The text, or the base's start token where the tokenizer makes no token of the text.

    A model cannot continue nothing. Without a start token, the end-of-text token serves, behind
    which a base has seen texts begin.
    """
    inner = text_tokenizer(tokenizer)
    if text.strip() or inner(text)["input_ids"]:
        return text
    return inner.bos_token or inner.eos_token or text


def check_letters(texts: Sequence[str]) -> None:
    """Refuse a text that no tokenizer reads.

    Raises:
        SampleError: it holds half of a surrogate pair.
    """
    for row, text in enumerate(texts):
        if found := _HALF.search(text):
            raise SampleError(
                f"a text holds half of a surrogate pair, {found[0]!a}, which is no letter",
                hint="read the text in its own encoding, or leave the letter out",
                row=row,
            )


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}]


def _words(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message."""
    return [part["text"] for part in _parts(message) if isinstance(part.get("text"), str)]


def _has_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    kinds = {part.get("type") for message in messages for part in _parts(message)}
    return bool(kinds & {"image", "image_url", "video"})


def _template_defaults(base: Any) -> dict[str, Any]:
    """Whether the base's own method gives ids, and more than them, if nothing is said."""
    known = inspect.signature(base.apply_chat_template).parameters
    return {key: known[key].default for key in ("tokenize", "return_dict")}


def _padded(base: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under which rows become one batch, padded on the left unless they say otherwise."""
    if hasattr(base, "tokenizer"):
        own = {"padding": True, "padding_side": "left", **(options.get("processor_kwargs") or {})}
        return {**options, "processor_kwargs": own}
    own = {"padding_side": "left", **(options.get("tokenizer_kwargs") or {})}
    return {"padding": True, **options, "tokenizer_kwargs": own}


def padding_id(tokenizer: Any, default: int) -> int:
    """The id with which a processor of ``tokenizer`` pads; ``default`` where it has none."""
    inner = text_tokenizer(tokenizer)
    named = (getattr(inner, "pad_token_id", None), getattr(inner, "eos_token_id", None))
    return next((found for found in named if type(found) is int), default)


def _with_padding(tokenizer: Any) -> Any:
    """Give our copy a pad token where the base's tokenizer has none."""
    inner = text_tokenizer(tokenizer)
    if inner is not None and getattr(inner, "pad_token", None) is None:
        inner.pad_token = inner.eos_token
    return tokenizer


_SEEN, _TYPES = "cross_attention_mask", "token_type_ids"


def with_answers(batch: Any, answers: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """What changes in a batch, padded on the right, when ids follow its texts; ``labels`` too.

    Args:
        batch: of texts.
        answers: the ids that follow each; none for a text without a target.
        pad: id that fills rows up.
    """
    ids: Tensor = batch["input_ids"]
    mask: Tensor = batch.get("attention_mask", torch.ones_like(ids))
    lengths, width = mask.sum(1).tolist(), ids.shape[1]
    rows = PaddedRows(False, [range(length) for length in lengths], width)
    contents = [
        [*range(length), *range(width, width + len(answer))]
        for length, answer in zip(lengths, answers, strict=True)
    ]
    longer = append_columns(per_token_inputs({**batch, "attention_mask": mask}, ids.shape), answers)
    index = rows.index(contents, max(map(len, contents)))
    moved = gather_columns(longer, index, pad)
    for row, (start, answer) in enumerate(zip(lengths, answers, strict=True)):
        behind = slice(start, start + len(answer))
        if _SEEN in moved:  # what follows a prompt sees the pictures that its last token sees
            moved[_SEEN][row, behind] = moved[_SEEN][row, start - 1]
        if _TYPES in moved and "labels" in batch:  # PaliGemma's, where a prompt sees itself whole
            moved[_TYPES][row, behind] = 1
    return {**moved, "labels": _filled(answers, lengths)}


def _filled(answers: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
    """Labels that hold each answer from its start on, (batch, length)."""
    ends = [start + len(answer) for start, answer in zip(starts, answers, strict=True)]
    labels = torch.full((len(answers), max(ends)), IGNORED)
    for row, (start, end, answer) in enumerate(zip(starts, ends, answers, strict=True)):
        labels[row, start:end] = torch.tensor(answer, dtype=labels.dtype)
    return labels
