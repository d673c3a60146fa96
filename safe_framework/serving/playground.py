"""A page to try a sense in: both models' answers side by side, and a conversation of many turns.

A question is asked with a sample and, where the base sees, a picture, at any gate; in a
conversation each turn may bring its own, and all of them stay in it. A sense of sound also listens
to the microphone, and is asked about the last of what it heard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.core.relevance import AUTO, Strength
from safe_framework.data.audio import read_audio
from safe_framework.data.listening import Listener
from safe_framework.data.pictures import Picture
from safe_framework.data.samples import read_for
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.side_by_side import SideBySide, side_by_side
from safe_framework.interfaces.samples import Sample
from safe_framework.pretrained.base_processor import takes_images
from safe_framework.serving.conversation import Message, check_size, say, shown
from safe_framework.serving.listening import listen, reply
from safe_framework.utils.formatting import clock, percent
from safe_framework.utils.optional_imports import require

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel

_STYLE = """
.badge { border-radius: 0.5rem; padding: 0.6rem 0.9rem; font-weight: 600; }
.badge.same { background: #d9f2ee; color: #0a4f4f; }
.badge.other { background: #fbe6d9; color: #7c2f10; }
"""


def respond(
    model: SafeModel,
    modality: str,
    file: str | None,
    question: str,
    gate: Strength,
    max_new_tokens: int = 32,
    picture: str | None = None,
) -> tuple[str, str, str]:
    """The badge as HTML, the base's answer, and the answer with the sense.

    Args:
        model: that is tried; left as it was.
        modality: whose sample and gate are given.
        file: of the sample; None for none.
        question: put into the recipe's prompt.
        gate: strength, from 0 to 1, or ``"auto"``.
        max_new_tokens: limit of an answer's length.
        picture: file of a picture that both see; None for none.
    """
    try:
        if not question.strip():
            raise DataError("there is no question", hint="write one")
        sample = None if file is None else _sample(model, modality, Path(file))
        images = [] if picture is None else [_picture(model, Path(picture))]
        found = side_by_side(
            model, modality, question, sample,
            gate=gate, max_new_tokens=max_new_tokens, images=images,
        )  # fmt: skip
    except SafeError as error:
        return _badge("other", str(error)), "", ""
    return badge(found, sample is not None, gate), found.base, found.safe


def _sample(model: SafeModel, modality: str, file: Path) -> Sample:
    """The modality's sample in a file."""
    check_size(file)
    return read_for(model.modality(modality).encoder, file, file.name)


def _picture(model: SafeModel, file: Path) -> Picture:
    """The picture in a file, for the base's own processor."""
    if not takes_images(model.base_processor):
        raise DataError(
            f"`{type(model.base).__name__}` has no image processor", hint="remove the picture"
        )
    check_size(file)
    return Picture(file, file.name)


def badge(found: SideBySide, given: bool, gate: Strength) -> str:
    """Whether every bit that was compared is the base's."""
    if found.bitwise:
        why = "no sample" if not given else _named(gate, found.opened)
        return _badge("same", f"bitwise the base ({why}): all logits and tokens were compared")
    kept = percent(found.agreement)
    answer = "the same answer" if found.same_answer else "another answer"
    return _badge(
        "other",
        f"not the base ({_named(gate, found.opened)}): {answer}; {kept} of the question's next "
        "tokens unchanged",
    )


def _named(gate: Strength, opened: bool | None = None) -> str:
    """A gate in words, with what a head decided where it was left to one."""
    if isinstance(gate, str):
        decided = {True: ", which opened", False: ", which stayed closed", None: ""}
        return f"gate {gate}{decided[opened]}"
    return f"gate {gate:g}"


def _badge(kind: str, text: str) -> str:
    return f'<div class="badge {kind}" role="status">{escape(text)}</div>'


def converse(
    model: SafeModel,
    modality: str,
    sent: dict[str, Any],
    gate: Strength,
    messages: Sequence[Message],
    max_new_tokens: int = 128,
) -> Iterator[tuple[list[dict[str, Any]], list[Message], dict[str, Any], str]]:
    """A turn of the conversation, as the page shows it while the answer grows.

    Args:
        model: that answers.
        modality: whose samples the files are, and whose gate is given.
        sent: the ``text`` and the ``files`` of the user's message.
        gate: strength, from 0 to 1, or ``"auto"``.
        messages: of the conversation so far.
        max_new_tokens: limit of the answer's length.

    Yields:
        What the chat shows, the conversation, what is left to send, and what is wrong as HTML.
        Where something is, the conversation is as it was, and the message is there to be corrected.
    """
    text, files = sent.get("text") or "", list(sent.get("files") or ())
    turns = say(model, modality, messages, text, files, gate=gate, max_new_tokens=max_new_tokens)
    try:
        for talk in turns:
            yield shown(talk), talk, {"text": "", "files": []}, ""
    except SafeError as error:
        known = list(messages)
        yield shown(known), known, {"text": text, "files": files}, _badge("other", str(error))


def hear(
    model: SafeModel,
    modality: str,
    seconds: float | None,
    file: str | None,
    listener: Listener | None,
) -> tuple[Listener | None, str]:
    """A listener that has heard one chunk more, and what the page says of it as HTML.

    Args:
        model: that listens.
        modality: by which it does.
        seconds: that are heard at most; None for what it takes, up to half a minute.
        file: of the chunk; None where there is none.
        listener: to the recording so far; None where it begins.
    """
    if file is None:
        return listener, ""
    try:
        chunk = read_audio(file)
        listener = listener or listen(model, modality, seconds, chunk.sampling_rate)
        listener.add(chunk)
    except SafeError as error:
        return listener, _badge("other", str(error))
    last = min(listener.total, listener.seconds)
    return listener, _badge("same", f"heard {clock(listener.total)}, of it the last {last:.1f} s")


def ask_heard(
    model: SafeModel,
    listener: Listener | None,
    question: str,
    gate: Strength,
    chat: Sequence[Any],
    max_new_tokens: int = 32,
) -> tuple[list[Any], str]:
    """The chat with an answer about what is heard now, and what is wrong as HTML.

    Args:
        model: that answers; left as it was.
        listener: to the recording; None where none has begun.
        question: put into the recipe's prompt.
        gate: strength, from 0 to 1, or ``"auto"``.
        chat: so far, in which every question is by itself.
        max_new_tokens: limit of the answer's length.
    """
    try:
        if listener is None:
            raise DataError("nothing was heard yet", hint="record with the microphone")
        if not question.strip():
            raise DataError("there is no question", hint="write one")
        now, last = listener.total, listener.heard().seconds
        answer = reply(model, listener, question, gate, max_new_tokens)
    except SafeError as error:
        return list(chat), _badge("other", str(error))
    asked = f"{question}\n\n*at {clock(now)}, about the last {last:.1f} s*"
    said = {"role": "assistant", "content": answer, "metadata": {"title": _named(gate)}}
    return [*chat, {"role": "user", "content": asked}, said], ""


def needed_gradio() -> Any:
    """Gradio, which then does not call home.

    Raises:
        DataError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    return require("gradio", "play", "the playground needs `gradio`")


def playground(
    model: SafeModel,
    modality: str,
    *,
    question: str = "",
    max_new_tokens: int = 32,
    listening: bool = False,
    seconds: float | None = None,
) -> Any:
    """The page, a ``gradio.Blocks`` to launch.

    Args:
        model: to try.
        modality: the sense to try.
        question: what stands in its field at first.
        max_new_tokens: limit of an answer's length.
        listening: show at first where the microphone is listened to.
        seconds: of its sound that are heard at most; None for what the sense takes, up to half a
            minute.

    Raises:
        DataError: Gradio is not installed.
        SafeError: it is to listen, and the sense is none of sound, or takes less than ``seconds``.
    """
    gradio = needed_gradio()
    sound = model.modality(modality).encoder.sampling_rate is not None
    if listening:
        listen(model, modality, seconds)
    with gradio.Blocks(title=f"{modality}: base and SAFE", analytics_enabled=False) as page:
        gradio.HTML(f"<style>{_STYLE}</style>")
        gradio.Markdown(f"# {modality}: base and SAFE")
        with gradio.Tabs(selected="listen" if listening else "side"):
            with gradio.Tab("Side by side", id="side"):
                _side_by_side(gradio, model, modality, question, max_new_tokens)
            with gradio.Tab("Conversation", id="talk"):
                _conversation(gradio, model, modality)
            if sound:
                with gradio.Tab("Listen", id="listen"):
                    _listening(gradio, model, modality, question, max_new_tokens, seconds)
    return page


def _side_by_side(
    gradio: Any, model: SafeModel, modality: str, question: str, max_new_tokens: int
) -> None:
    """One question at a time, to both."""

    def ask(
        file: str | None,
        picture: str | None,
        asked: str,
        gate: float,
        chat: list[Any],
        auto: bool,
    ) -> tuple[str, str, str, list[Any]]:
        """What the page shows for a file, a picture, a question and a gate."""
        chosen = AUTO if auto else gate
        badge, base, safe = respond(model, modality, file, asked, chosen, max_new_tokens, picture)
        given = [path for path in (picture, file) if path is not None]
        return badge, base, safe, [*chat, *turn(given, asked, chosen, modality, base, safe)]

    with gradio.Row():
        with gradio.Column():
            sample = _sample_field(gradio, model, modality)
            picture = _picture_field(gradio, model)
            asked = gradio.Textbox(question, label="Question", elem_id="question")
            gate = _gate_field(gradio, model, modality, "gate")
            auto = _auto_field(gradio, model, modality, "auto")
            button = gradio.Button("Ask both", variant="primary", elem_id="ask")
        with gradio.Column():
            told = gradio.HTML(elem_id="badge")
            base = gradio.Textbox(label="Base", lines=3, elem_id="base")
            safe = gradio.Textbox(label=f"With {modality}", lines=3, elem_id="safe")
    chat = _chat_field(gradio, "Asked so far, each by itself", "chat")
    given, results = [sample, picture, asked, gate, chat, auto], [told, base, safe, chat]
    _wire(ask, given, results, button.click, gate.release)


def _conversation(gradio: Any, model: SafeModel, modality: str) -> None:
    """Turn after turn, each with what is sent in it."""

    def turns(
        sent: dict[str, Any], gate: float, messages: list[Message], auto: bool
    ) -> Iterator[Any]:
        """What the page shows while a message is answered."""
        yield from converse(model, modality, sent, AUTO if auto else gate, messages)

    sound = model.modality(modality).encoder.sampling_rate is not None
    kinds = ["audio"] if sound else ["image", ".npy", ".npz"]
    kinds += ["image"] if sound and takes_images(model.base_processor) else []
    messages = gradio.State([])
    chat = _chat_field(gradio, "Conversation", "talk")
    told = gradio.HTML(elem_id="told")
    message = gradio.MultimodalTextbox(
        label="Message",
        placeholder="Write a message, and add what it is about",
        file_count="multiple",
        file_types=kinds,
        sources=["upload", "microphone"] if sound else ["upload"],
        elem_id="message",
    )
    gate = _gate_field(gradio, model, modality, "talk-gate")
    auto = _auto_field(gradio, model, modality, "talk-auto")
    again = gradio.Button("Start again", elem_id="again")
    given, results = [message, gate, messages, auto], [chat, messages, message, told]
    message.submit(turns, inputs=given, outputs=results)
    for emptied in (again.click, chat.clear):
        emptied(lambda: ([], [], ""), outputs=[chat, messages, told])


def _listening(
    gradio: Any,
    model: SafeModel,
    modality: str,
    question: str,
    max_new_tokens: int,
    seconds: float | None,
) -> None:
    """Questions about the last of what the microphone hears."""

    def heard(file: str | None, listener: Listener | None) -> tuple[Listener | None, str]:
        """What is kept and shown when a chunk has come."""
        return hear(model, modality, seconds, file, listener)

    def ask_now(
        asked: str, gate: float, chat: list[Any], listener: Listener | None, auto: bool
    ) -> tuple[list[Any], str]:
        """What the page shows for a question."""
        chosen = AUTO if auto else gate
        return ask_heard(model, listener, asked, chosen, chat, max_new_tokens)

    listener = gradio.State(None)
    with gradio.Row():
        with gradio.Column():
            microphone = gradio.Audio(
                sources=["microphone"],
                streaming=True,
                type="filepath",
                label=modality,
                elem_id="microphone",
            )
            told = gradio.HTML(elem_id="heard")
            asked = gradio.Textbox(question, label="Question", elem_id="heard-question")
            gate = _gate_field(gradio, model, modality, "heard-gate")
            auto = _auto_field(gradio, model, modality, "heard-auto")
            button = gradio.Button("Ask now", variant="primary", elem_id="ask-heard")
        with gradio.Column():
            chat = _chat_field(gradio, "Asked so far, each by itself", "heard-chat")
            wrong = gradio.HTML(elem_id="heard-wrong")
    microphone.start_recording(lambda: None, outputs=[listener])
    microphone.stream(
        heard, inputs=[microphone, listener], outputs=[listener, told], stream_every=0.5,
        time_limit=None, show_progress="hidden",
    )  # fmt: skip
    given = [asked, gate, chat, listener, auto]
    for event in (button.click, asked.submit):
        event(ask_now, inputs=given, outputs=[chat, wrong])


def turn(
    files: Sequence[str], question: str, gate: Strength, modality: str, base: str, safe: str
) -> list[dict[str, Any]]:
    """A question and both answers as messages of a chat; none where there was no answer."""
    if not base and not safe:
        return []
    user: list[Any] = [*({"path": file} for file in files), question]
    answers = {"Base": base, f"With {modality}, {_named(gate)}": safe}
    return [
        *({"role": "user", "content": part} for part in user),
        *(
            {"role": "assistant", "content": text, "metadata": {"title": title}}
            for title, text in answers.items()
        ),
    ]


def _wire(
    ask: Callable[..., Any], given: list[Any], shown: list[Any], *events: Callable[..., Any]
) -> None:
    for event in events:
        event(ask, inputs=given, outputs=shown, trigger_mode="always_last")


def _chat_field(gradio: Any, label: str, name: str) -> Any:
    """Where what was said is shown. Nothing of it can be sent on to another host."""
    return gradio.Chatbot(label=label, elem_id=name, buttons=["copy", "copy_all"])


def _gate_field(gradio: Any, model: SafeModel, modality: str, name: str) -> Any:
    """Where the sense is made stronger or weaker."""
    own = model.gates[modality]
    value = 1.0 if own == AUTO else own
    return gradio.Slider(0, 1, value, step=0.05, label="Gate", elem_id=name)


def _auto_field(gradio: Any, model: SafeModel, modality: str, name: str) -> Any:
    """Where the gate is left to the relevance head; nothing without one."""
    if model.modality(modality).relevance is None:
        return gradio.State(False)
    label = "Auto: listen only where the question is about it"
    return gradio.Checkbox(model.gates[modality] == AUTO, label=label, elem_id=name)


def _sample_field(gradio: Any, model: SafeModel, modality: str) -> Any:
    """Where a sound is recorded or uploaded, or a file of anything else is put."""
    if model.modality(modality).encoder.sampling_rate is not None:
        return gradio.Audio(
            sources=["upload", "microphone"], type="filepath", label=modality, elem_id="sample"
        )
    kinds = ["image", ".npy", ".npz"]
    return gradio.File(file_types=kinds, type="filepath", label=modality, elem_id="sample")


def _picture_field(gradio: Any, model: SafeModel) -> Any:
    """Where a picture is dropped, pasted or uploaded, seen and removed; nothing if none is seen."""
    if not takes_images(model.base_processor):
        return gradio.State(None)
    field = gradio.Image(
        sources=["upload", "clipboard"], type="filepath", label="picture", elem_id="picture"
    )
    # Gradio's own would read the file, and say nothing but "Error" of a broken one.
    field.preprocess = lambda uploaded: uploaded and uploaded.path
    return field
