"""A few test samples to listen to or look at, each with what was answered."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from safe_framework.data.audio import Waveform
from safe_framework.data.pictures import Picture
from safe_framework.evaluation.metrics import normalise
from safe_framework.evaluation.results import Answered, PictureQuestion, Seeing
from safe_framework.evaluation.vqa import vqa_score
from safe_framework.interfaces.samples import each_of
from safe_framework.runs.report.extras import ReportInputs
from safe_framework.runs.report.html import Markup, element

_MAX_CLIPS = 8
_CLIP_TYPES = {
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}
_PICTURE_TYPES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
_COLOURS = (3, 4)
_MAX_SIDE = 512  # pixels on a side of an array that is drawn
_MAX_FILE_BYTES = 400_000  # bytes of a file that goes into a page as it is
_MAX_PICTURES = 4  # of one row
_THUMBNAIL = 320  # pixels on a side: as wide as a card, on a fine screen
_EXACT_BYTES = 40_000  # of a thumbnail without loss


def clips(answers: Sequence[Answered], modality: str, extras: ReportInputs) -> list[Markup]:
    """A card for each of a few test examples, chosen by position and not by result."""
    return [
        _card(row, modality, number, _answers_at_gates(row, modality, extras))
        for number, row in enumerate(shown_samples(answers), start=1)
    ]


def _answers_at_gates(
    row: Answered, modality: str, extras: ReportInputs
) -> Sequence[tuple[float, str]]:
    """What a sweep measured, or the run itself; nothing where nobody asked at gate 0.5."""
    if found := extras.answers(modality, row.place):
        return found
    return [] if row.half_open is None else [(0, row.base), (0.5, row.half_open), (1, row.answer)]


def picture_questions(seeing: Seeing, modality: str) -> list[Markup]:
    """A card for each of a few questions about pictures alone, spread over their answers."""
    rows = choose_samples(seeing.questions)
    return [_picture_card(row, modality, number) for number, row in enumerate(rows, start=1)]


def _picture_card(row: PictureQuestion, modality: str, number: int) -> Markup:
    right = ", ".join(dict.fromkeys(row.expected))
    ways = [("base alone", row.base), (f"{modality} absent", row.absent)]
    ways += [(f"beside {kind} {modality}", given) for kind, given in row.irrelevant.items()]
    ways += [] if row.relevant is None else [(f"beside its own {modality}", row.relevant)]
    merged: dict[str, list[str]] = {}
    for way, given in ways:
        merged.setdefault(given, []).append(way)
    cells = []
    for given, names in merged.items():
        cells.append(element("dt", ", ".join(names)))
        cells.append(_answer_with_verdict(given, vqa_score(given, row.expected) > 0))
    name = f"picture question {number}"
    return element(
        "article",
        *_pictures(row.images, f"{name}: {right}"),
        *(_player(source, f"sound of {called}") for called, source in _sounds(row, name)),
        element("p", row.question, class_="question"),
        element("dl", element("dt", "expected"), element("dd", right), *cells),
        element("p", row.place, class_="place"),
        class_="clip",
    )


def shown_samples(answers: Sequence[Answered]) -> list[Answered]:
    """The examples that a report shows: some without pictures, and some with."""
    plain = [row for row in answers if not row.pictured]
    return [*choose_samples(plain), *choose_samples([row for row in answers if row.pictured])]


_Shown = TypeVar("_Shown", Answered, PictureQuestion)


def choose_samples(answers: Sequence[_Shown], most: int = _MAX_CLIPS) -> list[_Shown]:
    """The first example of each of ``most`` expected answers, spread evenly over the alphabet.

    Where there are fewer answers than that, their second and later examples follow.
    """
    rounds: list[list[_Shown]] = []
    seen: dict[str, int] = {}
    for row in answers:
        turn = seen.setdefault(_right_answer(row), 0)
        rounds += [[]] if turn == len(rounds) else []
        rounds[turn].append(row)
        seen[_right_answer(row)] += 1
    picked: list[_Shown] = []
    for candidates in rounds:
        candidates.sort(key=_right_answer)
        picked += _spread(candidates, most - len(picked))
    return picked


def _right_answer(row: Answered | PictureQuestion) -> str:
    expected = row.expected if isinstance(row.expected, str) else row.expected[0]
    return normalise(expected)


def _spread(rows: Sequence[_Shown], most: int) -> list[_Shown]:
    count = min(most, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _card(row: Answered, modality: str, number: int, gates: Sequence[tuple[float, str]]) -> Markup:
    return element(
        "article",
        *_pictures(row.images, f"picture of sample {number}: {row.expected}"),
        *_player_or_image(row, f"sample {number}: {row.expected}"),
        element("p", row.question, class_="question"),
        element(
            "dl",
            element("dt", "expected"),
            element("dd", row.expected),
            *(_at_gates(row, gates) if gates else _on_and_off(row, modality)),
        ),
        element("p", row.place, class_="place"),
        class_="clip",
    )


def _on_and_off(row: Answered, modality: str) -> list[Markup]:
    return [
        element("dt", f"with {modality}"),
        _answer_with_verdict(row.answer, row.right),
        element("dt", f"base, without {modality}"),
        element("dd", row.base or "(nothing)", class_="soft"),
    ]


def _at_gates(row: Answered, gates: Sequence[tuple[float, str]]) -> list[Markup]:
    cells: list[Markup] = []
    for gate, answer in gates:
        note = ": the base" if gate == 0 else ""
        cells.append(element("dt", f"gate {gate:g}{note}"))
        right = normalise(answer) == normalise(row.expected)
        base = element("dd", answer or "(nothing)", class_="soft")
        cells.append(base if gate == 0 and not right else _answer_with_verdict(answer, right))
    return cells


def _answer_with_verdict(answer: str, right: bool) -> Markup:
    verdict = "right" if right else "wrong"
    return element("dd", answer or "(nothing)", element("span", verdict), class_=verdict)


def _player_or_image(row: Answered, name: str) -> list[Markup]:
    """A player for each sound, an image for each picture, nothing for the rest."""
    if sounds := _sounds(row, name):
        return [_player(source, called) for called, source in sounds]
    images = [(called, picture(*one)) for called, one in _named_samples(row, name)]
    return [element("img", src=_data_uri(*i), alt=called) for called, i in images if i]


def _named_samples(
    row: Answered | PictureQuestion, name: str
) -> list[tuple[str, tuple[Any, Path | None]]]:
    """Each of a row's samples with its file, and what it is called."""
    pairs = list(zip_longest(each_of(row.sample), each_of(row.file)))
    numbers = [f" ({number} of {len(pairs)})" for number in range(1, len(pairs) + 1)]
    called = [name + (number if len(pairs) > 1 else "") for number in numbers]
    return list(zip(called, pairs, strict=True))


def _sounds(row: Answered | PictureQuestion, name: str) -> list[tuple[str, str]]:
    """What each of a row's sounds is called, and it as a data URI."""
    found = [(called, _sound_uri(*one)) for called, one in _named_samples(row, name)]
    return [(called, source) for called, source in found if source]


def _player(source: str, name: str) -> Markup:
    return element("audio", controls="", preload="none", src=source, aria_label=name)


def _pictures(images: Sequence[Picture], alt: str) -> list[Markup]:
    """The first few of a row's pictures, small."""
    found = []
    for number, one in enumerate(images[:_MAX_PICTURES], start=1):
        name = alt if len(images) == 1 else f"{alt} ({number} of {len(images)})"
        found.append(element("img", src=_data_uri(*thumbnail(one)), alt=name))
    return found


def thumbnail(picture: Picture) -> tuple[bytes, str]:
    """Content and type of a picture of at most ``_THUMBNAIL`` pixels on a side.

    A drawing stays exact; what would take too many bytes so, as a photograph does, is a JPEG.
    """
    image = picture.open()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    exact, smaller = io.BytesIO(), io.BytesIO()
    image.save(exact, "PNG", optimize=True)
    if exact.tell() <= _EXACT_BYTES:
        return exact.getvalue(), "image/png"
    image.save(smaller, "JPEG", quality=80)
    return smaller.getvalue(), "image/jpeg"


def _sound_uri(sample: Any, file: Path | None) -> str:
    """The sound as a data URI: the file itself where browsers play its kind, else a WAV."""
    kind = _CLIP_TYPES.get(file.suffix.lower()) if file else None
    if file and kind and file.is_file():
        return _data_uri(file.read_bytes(), kind)
    if isinstance(sample, Waveform):
        return _data_uri(wav(sample), "audio/wav")
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


def picture(sample: Any, file: Path | None) -> tuple[bytes, str] | None:
    """Content and type of an image that a browser shows, or None if it is nothing to see.

    Args:
        sample: an array (height, width) of depths or greys, (height, width, 3) of colours, or
            (pictures, height, width, 3), of which the middle one is shown.
        file: where it was read.
    """
    kind = _PICTURE_TYPES.get(file.suffix.lower()) if file else None
    if file and kind and file.is_file() and file.stat().st_size <= _MAX_FILE_BYTES:
        return file.read_bytes(), kind
    values = _displayable(sample)
    return None if values is None else (_png(values), "image/png")


def _displayable(sample: Any) -> Any:
    if not isinstance(sample, np.ndarray) or not sample.size or sample.dtype.kind not in "fiub":
        return None
    if sample.ndim == 4:
        sample = sample[len(sample) // 2]
    coloured = sample.ndim == 3 and sample.shape[-1] in _COLOURS
    if not coloured and (sample.ndim != 2 or min(sample.shape) < 8):
        return None
    step = max(1, -(-max(sample.shape[:2]) // _MAX_SIDE))
    return sample[::step, ::step]


def _png(values: Any) -> bytes:
    from matplotlib.image import imsave

    written = io.BytesIO()
    if values.ndim == 3:
        top = 255 if values.dtype.kind in "iu" else max(float(np.nanmax(values)), 1e-9)
        imsave(written, np.clip(np.nan_to_num(values) / top, 0, 1), format="png")
    else:
        real = values[np.isfinite(values)]
        low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 1.0)
        imsave(written, values, vmin=low, vmax=high, cmap="gray", format="png")
    return written.getvalue()
