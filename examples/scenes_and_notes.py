"""The data of `see_and_hear.py`: scenes of emoji, notes that are played, questions about both.

Six of the instruments that ship as sounds are emoji too. Rows are of three kinds:

- hearing: a note, and which instrument plays it, for all fourteen;
- both: a picture of one thing and "Is this what you hear?", or of two and "Which of the things
  in the picture do you hear?", each beside a note of one of the six;
- seeing: a picture and the questions that the base learned to answer, beside no note.

What one sense tells is worth nothing in the rows of both: every picture has as many notes that
it shows as notes that it does not show, and every note sounds as often beside a picture that
shows it as beside one that does not. So whoever only looks, or only listens, is right in half of
them, which `priors` counts. The notes of a test are pitches that training never hears, its scenes
are colours behind an instrument, or pairs of instruments, that training never shows.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from safe_framework.data.questions import read_forms, with_article
from safe_framework.experimental.vision_language.scenes import (
    COLOURS,
    Question,
    Scene,
    SpriteSets,
    arranged,
    ask,
    scenes,
)
from safe_framework.utils.catalogue import FOLDER, questions_path
from safe_framework.utils.progress import ProgressCallback, no_progress

Part = Literal["train", "validation", "test"]

HEARD_AND_SEEN = ("flute", "guitar", "harp", "piano", "saxophone", "violin")
NEITHER = "none"
SIDE = 112

HEARING, BOTH = "hearing", ("match", "which")

NAMING = "naming.jsonl"
"""The bank that asks for a note's name: the catalogue's, answered as the questions of both begin,
so that what is learned of either is known in the other."""

_NAMED = "I hear {a label}."

_OTHERS = len(HEARD_AND_SEEN) - 1

# Two instruments stand in a picture at this distance in HEARD_AND_SEEN, the first on the left.
_DISTANCES: Mapping[Part, tuple[int, ...]] = {"test": (1,), "validation": (2,), "train": (3, 4, 5)}

# Of the eight colours, counted from the instrument's own place, those behind it when it is alone.
_HUES: Mapping[Part, slice] = {
    "test": slice(0, 2),
    "validation": slice(2, 3),
    "train": slice(3, None),
}


@attrs.frozen
class Amounts:
    """How many rows are made.

    Attributes:
        hearing: rows for each instrument; 0 for each note once.
        match: rounds of "Is this what you hear?", each of 30 pictures and 60 rows.
        which: rounds of "Which of ...?", each of 4 rows for each of 6 pictures a distance.
        seeing: pictures that are asked about alone.
        shown: more of them, of what can be heard, each with a note of it.
    """

    hearing: int
    match: int
    which: int
    seeing: int
    shown: int = 0


TRAIN = Amounts(hearing=30, match=12, which=9, seeing=360)
TEST = Amounts(hearing=0, match=1, which=3, seeing=60, shown=20)


@attrs.frozen
class Note:
    """One clip of an instrument."""

    instrument: str
    file: Path


@attrs.frozen
class Heard:
    """A question that needs a picture and a note."""

    kind: str
    scene: Scene
    note: Note
    answer: str


def read_notes(part: Part, *, with_validation: bool = True) -> dict[str, list[Note]]:
    """The clips that ship, by instrument.

    A fifth of each instrument's training notes, chosen by hash, are the validation's.

    Args:
        part: whose notes.
        with_validation: whether training has the validation's notes too, as it may once the
            settings are chosen.
    """
    folder = FOLDER / "data" / "instruments"
    file = folder / ("test.jsonl" if part == "test" else "train.jsonl")
    found: dict[str, list[Note]] = defaultdict(list)
    for row in map(json.loads, file.read_text("utf-8").splitlines()):
        found[row["answer"]].append(Note(row["answer"], folder / row["audio"]))
    for name, notes in found.items():
        notes.sort(key=lambda note: hashlib.sha256(note.file.name.encode()).digest())
        held_out = max(1, round(len(notes) / 5))
        if part == "validation":
            found[name] = notes[:held_out]
        elif part == "train" and not with_validation:
            found[name] = notes[held_out:]
    return dict(found)


def match_rows(
    part: Part, rounds: int, notes: Mapping[str, Sequence[Note]], rng: random.Random, styles: int
) -> list[Heard]:
    """Pictures of one instrument, each once beside a note of it and once beside another's.

    Every instrument sounds with the same notes beside its own pictures as beside those of the
    five others.
    """
    count = _OTHERS * rounds
    pictures, sounds = [], []
    for place, name in enumerate(HEARD_AND_SEEN):
        hues = [*COLOURS][place:] + [*COLOURS][:place]
        behind = hues[_HUES[part]]
        pictures.append(
            [arranged([name], behind[k % len(behind)], rng, styles=styles) for k in range(count)]
        )
        sounds.append([notes[name][k % len(notes[name])] for k in range(count)])
    found = []
    for place in range(len(HEARD_AND_SEEN)):
        for k in range(count):
            found.append(Heard("match", pictures[place][k], sounds[place][k], "yes"))
            turn, distance = divmod(k, _OTHERS)
            other = pictures[(place + distance + 1) % len(HEARD_AND_SEEN)]
            shown = other[turn * _OTHERS + distance]
            found.append(Heard("match", shown, sounds[place][k], "no"))
    return found


def which_rows(
    part: Part, rounds: int, notes: Mapping[str, Sequence[Note]], rng: random.Random, styles: int
) -> list[Heard]:
    """Pictures of two instruments, each beside a note of both and beside two of what is not there.

    Distances go round HEARD_AND_SEEN, so that every instrument is as often the sought one as one
    that is not there, and it sounds with the same notes both times.
    """
    found = []
    sought, absent = _Turns(notes), _Turns(notes)
    size = len(HEARD_AND_SEEN)
    for distance in _DISTANCES[part]:
        for _ in range(rounds):
            others = rng.sample([far for far in range(1, size) if far != distance], 2)
            for place, left in enumerate(HEARD_AND_SEEN):
                right = HEARD_AND_SEEN[(place + distance) % size]
                scene = arranged([left, right], rng.choice([*COLOURS]), rng, styles=styles)
                for name in (left, right):
                    found.append(Heard("which", scene, sought.next(name), name))
                for far in others:
                    name = HEARD_AND_SEEN[(place + far) % size]
                    found.append(Heard("which", scene, absent.next(name), NEITHER))
    return found


class _Turns:
    """Each instrument's notes, one after another."""

    def __init__(self, notes: Mapping[str, Sequence[Note]]) -> None:
        self.notes, self.taken = notes, Counter[str]()

    def next(self, name: str) -> Note:
        """The instrument's next note."""
        self.taken[name] += 1
        return self.notes[name][(self.taken[name] - 1) % len(self.notes[name])]


def priors(rows: Iterable[Heard]) -> dict[str, float]:
    """The largest share of answers that the picture alone, or the note alone, can get right.

    A note alone may name its instrument, or say that it is not shown; a picture alone may give
    the commonest of its answers.
    """
    rows = list(rows)
    groups: Mapping[str, Callable[[Heard], object]] = {
        "picture": lambda row: row.scene,
        "note": lambda row: row.note,
        "instrument": lambda row: row.note.instrument,
    }
    return {name: _best_guess(rows, key) for name, key in groups.items()}


def _best_guess(rows: Sequence[Heard], key: Callable[[Heard], object]) -> float:
    answers: dict[object, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[row.kind, key(row)][row.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(rows)


@attrs.define
class Writer:
    """Draws scenes and writes rows into a folder.

    Args:
        folder: gets `*.jsonl` and `pictures/`.
        sprites: to draw with.
    """

    folder: Path
    sprites: SpriteSets
    drawn: dict[Scene, str] = attrs.field(factory=dict)

    def draw(self, scene: Scene) -> str:
        """The file of a scene's picture, relative to the folder."""
        if scene not in self.drawn:
            name = f"pictures/{len(self.drawn):05d}.png"
            (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
            self.sprites.draw(scene, SIDE).save(self.folder / name)
            self.drawn[scene] = name
        return self.drawn[scene]

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A file of rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(lines, "utf-8")


def write_data(
    folder: Path,
    sprites: SpriteSets,
    *,
    seed: int = 0,
    on: Literal["validation", "test"] = "test",
    train: Amounts = TRAIN,
    test: Amounts = TEST,
    progress: ProgressCallback = no_progress,
) -> dict[str, dict[str, float]]:
    """Write everything that the recipe's `[data]` names, all of it from a seed.

    Args:
        folder: to write.
        sprites: to draw with.
        seed: of scenes and of what is asked; the held-out ones are the same for every seed.
        on: what `*_test.jsonl` hold: the validation, on which settings are chosen, or the test.
        train: how much is trained on.
        test: how much is measured on.
        progress: called after every file.

    Returns:
        The `priors` of the rows of both that are trained and measured on.
    """
    writer = Writer(folder, sprites)
    parts: list[tuple[Part, str, Amounts, int]] = [
        ("train", "", train, seed),
        (on, "_test", test, 0),
    ]
    found: dict[str, dict[str, float]] = {}
    for at, (part, ending, amounts, own) in enumerate(parts):
        rng = random.Random(f"{part} {own}")
        notes = read_notes(part, with_validation=on == "test")
        both = _both(part, amounts, notes, rng, len(sprites))
        found[part] = priors(both)
        writer.write(f"hearing{ending}", hearing_rows(notes, amounts.hearing))
        for kind in BOTH:
            some = [row for row in both if row.kind == kind]
            writer.write(f"{kind}{ending}", [_row_of(row, writer) for row in some])
        seeing = _seeing(part, amounts, own, notes, writer, rng)
        texts = _texts(part)
        writer.write(f"texts{ending}", texts)
        writer.write(f"kept{ending}", [*texts, *seeing])
        progress("drawing scenes", at + 1, len(parts))
    writer.write(NAMING.removesuffix(".jsonl"), _naming_forms())
    return found


def _naming_forms() -> list[dict[str, Any]]:
    forms = read_forms(questions_path("labelled-clips"))
    return [
        {"question": form.question, "answer": _NAMED, "held_out": form.held_out}
        for form in forms
        if form.kind == "name"
    ]


def _both(
    part: Part,
    amounts: Amounts,
    notes: Mapping[str, Sequence[Note]],
    rng: random.Random,
    styles: int,
) -> list[Heard]:
    return [
        *match_rows(part, amounts.match, notes, rng, styles),
        *which_rows(part, amounts.which, notes, rng, styles),
    ]


def hearing_rows(notes: Mapping[str, Sequence[Note]], each: int) -> list[dict[str, str]]:
    """Notes to name: `each` rows for each instrument, or every note once."""
    return [
        {
            "audio": str(some[k % len(some)].file),
            "answer": name,
            "kind": HEARING,
            "align": name,
        }
        for name, some in notes.items()
        for k in range(each or len(some))
    ]


def _row_of(row: Heard, writer: Writer) -> dict[str, str]:
    """The row, which a bank asks; `other` is what is seen, and `align` what is heard."""
    return {
        "image": writer.draw(row.scene),
        "audio": str(row.note.file),
        "answer": row.answer,
        "kind": row.kind,
        "align": row.note.instrument,
        "other": " and ".join(map(with_article, row.scene.names)),
    }


def _seeing(
    part: Part,
    amounts: Amounts,
    seed: int,
    notes: Mapping[str, Sequence[Note]],
    writer: Writer,
    rng: random.Random,
) -> list[dict[str, str]]:
    """Questions about pictures; where one shows what can be heard, a test has a note of it too."""
    found = []
    for number, scene in enumerate(scenes(amounts.seeing, seed, part, styles=len(writer.sprites))):
        asked = rng.choice(ask(scene, f"{part} {seed} {number}"))
        found.append(_question(asked, writer.draw(scene)))
    for number in range(amounts.shown):
        name = HEARD_AND_SEEN[number % len(HEARD_AND_SEEN)]
        scene = arranged([name], rng.choice([*COLOURS]), rng, styles=len(writer.sprites))
        asked = rng.choice(ask(scene, f"{part} {seed} shown {number}"))
        sound = {"audio": str(rng.choice(notes[name]).file)}
        found.append(_question(asked, writer.draw(scene)) | sound)
    return found


def _question(asked: Question, picture: str) -> dict[str, str]:
    return {"image": picture, "question": asked.text, "answer": asked.answer, "kind": asked.kind}


def _texts(part: Part) -> list[dict[str, str]]:
    folder = FOLDER / "data" / "text"
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
        if (name == "test") is (part == "test")
    ]
    if part == "test":
        return rows
    return [row for at, row in enumerate(rows) if (at % 5 == 0) is (part == "validation")]
