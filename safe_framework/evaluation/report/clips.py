"""A few test samples to listen to, each with what was answered."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence

import numpy as np

from safe_framework.data.audio import Waveform
from safe_framework.evaluation.metrics import normalise
from safe_framework.evaluation.report.markup import Markup, element
from safe_framework.evaluation.results import Answered

_CLIPS = 8
_TYPES = {
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}


def clips(answers: Sequence[Answered], modality: str) -> list[Markup]:
    """A card for each of a few test examples, chosen by place and not by result."""
    return [_card(row, modality, number) for number, row in enumerate(chosen(answers), start=1)]


def chosen(answers: Sequence[Answered], most: int = _CLIPS) -> list[Answered]:
    """The first example of each of ``most`` expected answers, spread evenly over the alphabet.

    Where there are fewer answers than that, their second and later examples follow.
    """
    rounds: list[list[Answered]] = []
    seen: dict[str, int] = {}
    for row in answers:
        turn = seen.setdefault(normalise(row.expected), 0)
        rounds += [[]] if turn == len(rounds) else []
        rounds[turn].append(row)
        seen[normalise(row.expected)] += 1
    picked: list[Answered] = []
    for candidates in rounds:
        candidates.sort(key=lambda row: normalise(row.expected))
        picked += _spread(candidates, most - len(picked))
    return picked


def _spread(rows: Sequence[Answered], most: int) -> list[Answered]:
    count = min(most, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def _card(row: Answered, modality: str, number: int) -> Markup:
    verdict = "right" if row.right else "wrong"
    source = _source(row)
    name = f"clip {number}: {row.expected}"
    player = [element("audio", controls="", preload="none", src=source, aria_label=name)]
    return element(
        "article",
        *(player if source else []),
        element("p", row.question, class_="question"),
        element(
            "dl",
            element("dt", "expected"),
            element("dd", row.expected),
            element("dt", f"with {modality}"),
            element("dd", row.answer or "(nothing)", element("span", verdict), class_=verdict),
            element("dt", f"base, without {modality}"),
            element("dd", row.base or "(nothing)", class_="soft"),
        ),
        element("p", row.place, class_="place"),
        class_="clip",
    )


def _source(row: Answered) -> str:
    """The sound as a data URI: the file itself where browsers play its kind, else a WAV."""
    kind = _TYPES.get(row.file.suffix.lower()) if row.file else None
    if row.file and kind and row.file.is_file():
        return _data_uri(row.file.read_bytes(), kind)
    if isinstance(row.sample, Waveform):
        return _data_uri(wav(row.sample), "audio/wav")
    return ""


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def wav(waveform: Waveform) -> bytes:
    """A waveform as a 16-bit mono WAV file; amplitudes beyond 1 are clipped."""
    scaled = np.rint(np.clip(waveform.values, -1, 1) * 32767).astype("<i2")
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(waveform.sampling_rate)
        file.writeframes(scaled.tobytes())
    return content.getvalue()
