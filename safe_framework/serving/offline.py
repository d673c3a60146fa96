"""``safe generate``: a file of questions answered into a file, which a kill does not spoil.

Answers are written in the order of the rows, each line whole and on the disk before the next. Rows
are answered in blocks, which begin together, so that which rows share a batch does not depend on
when a run was killed: a run that goes on answers the unfinished block once more, and writes what
is missing of it. What it writes is what an uninterrupted run would have.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import Strength
from safe_framework.data.addresses import file_of, listed, named_file
from safe_framework.data.pictures import FIELDS, Picture
from safe_framework.data.readers import Row, iterate_rows
from safe_framework.data.samples import read_for
from safe_framework.errors import DataError, SafeError
from safe_framework.serving.embedded import EmbeddedEngine, PreparedRequest
from safe_framework.serving.engine import Event, Failed, Heard, Message, Piece, Request, Sampling
from safe_framework.utils.files import atomic_write
from safe_framework.utils.progress import ProgressCallback, no_progress
from safe_framework.utils.sequences import batched
from safe_framework.utils.suggest import nearest

_BLOCK = 8
"""Batches of a block: at its end rows wait for the longest of its answers."""
_KEPT = ("id", "question", "answer", "messages", "gate", "seed", "max_tokens")
_LABEL = "answers"


@attrs.frozen
class GenerateOptions:
    """How a file is answered.

    Attributes:
        sampling: of every row; a row's ``max_tokens`` and ``seed`` come first.
        gate: strength of all modalities; None for the model's own. A row's own comes first.
        max_batch: rows that are decoded together.
        restart: begin anew where another run's answers are.
    """

    sampling: Sampling = attrs.field(factory=Sampling)
    gate: Strength | None = None
    max_batch: int = 8
    restart: bool = False


def generate(
    model: SafeModel,
    data: Path,
    out: Path,
    options: GenerateOptions | None = None,
    *,
    identity: str = "",
    progress: ProgressCallback = no_progress,
) -> int:
    """Answer the rows of a file.

    Args:
        model: that answers.
        data: rows with a ``question`` or ``messages``, and samples by modality.
        out: where the answers go, a line of JSON each; what is there already is not made again.
        options: how.
        identity: of the model, by which a run that goes on knows that it is the same.
        progress: called with how many rows are done.

    Returns:
        How many rows could not be answered; their lines say why.

    Raises:
        DataError: the data cannot be read, or the answers there are of another run.
    """
    options = options or GenerateOptions()
    rows = list(iterate_rows(data))
    done = _begun(out, _fingerprint(data, options, identity), len(rows), options.restart)
    engine = EmbeddedEngine(model, max_batch=options.max_batch, max_tokens=2**31)
    size = _BLOCK * options.max_batch
    first = done // size * size
    failed = _failures(out)
    progress(_LABEL, done, len(rows))
    if done == len(rows):
        return failed
    with out.open("ab") as file, ThreadPoolExecutor(1) as reader:
        blocks = list(batched(range(first, len(rows)), size))
        reading = [reader.submit(_prepared, engine, rows, b, options) for b in blocks[:1]]
        for number in range(len(blocks)):
            prepared = reading.pop().result()
            following = blocks[number + 1 : number + 2]
            reading = [reader.submit(_prepared, engine, rows, b, options) for b in following]
            for row, line in _answered(engine, prepared, rows):
                if row < done:  # written before the run was killed
                    continue
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                failed += "error" in line
                progress(_LABEL, row + 1, len(rows))
    return failed


# What is there already


def _fingerprint(data: Path, options: GenerateOptions, identity: str) -> str:
    told = attrs.asdict(attrs.evolve(options, restart=False))
    told["sampling"]["logit_bias"] = sorted(told["sampling"]["logit_bias"].items())
    content = data.read_bytes() if data.is_file() else str(data).encode()
    parts = (hashlib.sha256(content).hexdigest(), json.dumps(told, sort_keys=True), identity)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _begun(out: Path, fingerprint: str, rows: int, restart: bool) -> int:
    """How many answers are there; half a line at the end is cut off.

    Raises:
        DataError: they are of another run.
    """
    state = out.with_name(f"{out.name}.run")
    if restart or not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        atomic_write(state, fingerprint)
        return 0
    if not state.is_file() or state.read_text("utf-8") != fingerprint:
        raise DataError(
            f"`{out}` holds answers to other rows, of another model or with other options",
            hint="give another `--out`, or `--restart` to begin anew",
        )
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return min(whole.count(b"\n"), rows)


def _failures(out: Path) -> int:
    if not out.exists():
        return 0
    return sum("error" in json.loads(line) for line in out.read_bytes().splitlines())


# Rows


_Read = Sequence[tuple[int, PreparedRequest | SafeError]]


def _prepared(
    engine: EmbeddedEngine, rows: Sequence[Row], block: Sequence[int], options: GenerateOptions
) -> _Read:
    """The rows of a block as the engine takes them, or why it does not."""
    found = list[tuple[int, PreparedRequest | SafeError]]()
    for number in block:
        try:
            found.append((number, engine.prepare(_request(engine.model, rows[number], options))))
        except SafeError as error:
            found.append((number, error))
    return found


def _request(model: SafeModel, row: Row, options: GenerateOptions) -> Request:
    """What a row asks.

    Raises:
        DataError: a field is not known, or has no such value.
    """
    if row.error is not None:
        raise row.error
    values, names = row.values, list(model.modalities)
    pictures = [name for name in FIELDS if name not in names]
    for name in values:
        if name not in (*_KEPT, *names, *pictures):
            hint = f"{nearest(name, [*_KEPT, *names, *pictures])} fields: {', '.join(names)}"
            raise DataError(f"{row.place}: nothing reads `{name}`", hint=hint)
    asked = [name for name in ("question", "messages") if values.get(name)]
    if len(asked) != 1:
        raise DataError(f"{row.place}: a row has a `question` or `messages`")
    sampling = attrs.evolve(
        options.sampling,
        max_tokens=values.get("max_tokens", options.sampling.max_tokens),
        seed=values.get("seed", _seed(options.sampling.seed, row.place)),
    )
    gate = values.get("gate", options.gate)
    if asked == ["messages"]:
        messages = [_message(model, one, row) for one in values["messages"]]
        return Request(messages, gate, sampling)
    parts: list[Message] = [
        {"type": name, name: _sample(model, name, one, row)}
        for name in names
        for one in listed(values.get(name), name, row.place)
    ]
    parts += [_picture(one, row) for name in pictures for one in _each(values.get(name), row)]
    parts.append({"type": "text", "text": values["question"]})
    return Request([{"role": "user", "content": parts}], gate, sampling, as_question=True)


def _seed(seed: int | None, place: str) -> int:
    """A seed for a row, the same in every run."""
    digest = hashlib.sha256(f"{seed or 0}/{place}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _each(value: Any, row: Row) -> list[Any]:
    return listed(value, "images", row.place)


def _message(model: SafeModel, message: Any, row: Row) -> Message:
    """A message whose samples and pictures are read."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return {"role": str(message.get("role")), "content": content}
    if not isinstance(content, list):
        raise DataError(f"{row.place}: a message has `role` and `content`")
    return {"role": str(message.get("role")), "content": [_part(model, p, row) for p in content]}


def _part(model: SafeModel, part: Any, row: Row) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(kind, str) and kind in model.modalities:
        return {"type": kind, kind: _sample(model, kind, part.get(kind, part.get("path")), row)}
    if kind == "image":
        return _picture(part.get("image", part.get("path")), row)
    known = ", ".join(["text", "image", *model.modalities])
    raise DataError(f"{row.place}: a part is of type {kind!r}", hint=f"types: {known}")


def _sample(model: SafeModel, name: str, value: Any, row: Row) -> Any:
    source = named_file(value, name, row.folder, row.place)
    return read_for(model.modality(name).encoder, source, f"{row.place}: `{name}`")


def _picture(value: Any, row: Row) -> Message:
    if not isinstance(value, str):
        raise DataError(f"{row.place}: a picture is the name of a file")
    return {
        "type": "image",
        "image": Picture(file_of(value, "image", row.folder, row.place)).open(),
    }


# Answers


def _answered(
    engine: EmbeddedEngine, block: _Read, rows: Sequence[Row]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """A line for each row of a block, in order, each as soon as those before it are there."""
    lines = {number: _Line(number, rows[number]) for number, _ in block}
    for number, prepared in block:
        if isinstance(prepared, SafeError):
            lines[number].take(Failed(prepared))
        else:
            engine.submit(prepared, lines[number].take)
    for number, line in lines.items():
        engine.run_until(line.is_whole)
        yield number, line.told


class _Line:
    """What becomes of a row."""

    def __init__(self, number: int, row: Row) -> None:
        self.told: dict[str, Any] = {"row": number}
        if row.values.get("id") is not None:
            self.told["id"] = row.values["id"]
        self.whole, self._text = False, ""

    def is_whole(self) -> bool:
        """Whether nothing more will come."""
        return self.whole

    def take(self, event: Event) -> None:
        """Take an event of the row's request."""
        if isinstance(event, Heard):
            self.told["gates"] = dict(event.gates)
        elif isinstance(event, Failed):
            self.told["error"] = str(event.error)
            self.whole = True
        elif isinstance(event, Piece):
            self._text += event.text
            if event.finish is not None:
                self.told |= {"answer": self._text, "finish_reason": event.finish}
                self.told["tokens"] = event.count
                self.whole = True
