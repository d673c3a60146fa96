"""A base that sees learns to hear, goes on seeing, and answers what needs both senses.

    pip install -c .ci/constraints.txt -e '.[demo]'
    python examples/see_and_hear.py

The base is made once, of DINOv2-small and SmolLM2-135M, as `safe compose see-and-hear` does it.
Then, for each seed, it is given a sense of hearing, trained on notes to name, on pictures to
compare with notes, and on pictures whose questions have nothing to do with the note beside them.
What is measured, on notes and scenes that training never had:

- hearing, against the same recipe on the language model alone, which has no eyes;
- seeing: the base's answers about pictures, with the sense absent, beside notes that do not matter
  and beside notes of what is shown;
- both: "Is this what you hear?" and "Which of the things in the picture do you hear?", against
  the picture alone and the note alone.

The rows, the adapters, `table.md` and a report for each run are written to `runs/see-and-hear`.
`scenes_and_notes.py` says how the rows are made.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import attrs
from rich.console import Console
from scenes_and_notes import BOTH, HEARING, NAMING, Amounts, write_data

from safe_framework.config.read import parse_recipe
from safe_framework.evaluation.both_senses import PICTURE_ALONE, SAMPLE_ALONE
from safe_framework.evaluation.results import Evaluation, Relevance
from safe_framework.experimental.vision_language.scenes import SpriteSets
from safe_framework.pretrained.sprite_sets import sprite_folder
from safe_framework.runs.finished import read_metrics
from safe_framework.runs.run import run_recipe
from safe_framework.training.relevance_calls import HELD_OUT, TRAINED
from safe_framework.utils.catalogue import FOLDER, recipe_path
from safe_framework.utils.progress import WorkProgress

QUICK = Amounts(hearing=2, match=1, which=1, seeing=12, shown=6)

CHAT = "<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
"""How the composed base's own template puts a question, in which `chat = true` uses it."""

PROMPT = "<audio>{question}"

_DATA = """\
[data]
retention = "{rows}/{kept}.jsonl"
retention_test = "{rows}/{kept}_test.jsonl"
foreign = "{shipped}/foreign/train.jsonl"
foreign_test = "{shipped}/foreign/test.jsonl"
prompt = {prompt}
chat = {chat}
"""

_MIX = """
[[data.mix]]
name = "{name}"
train = "{rows}/{name}.jsonl"
test = "{rows}/{name}_test.jsonl"
question = {question}
"""

_NAMED = '{{ bank = "{rows}/{naming}", thing = "instrument" }}'
_COMPARED = '"pictures-and-sounds"'


def recipe_on(text: str, rows: Path, seed: int, *, eyes: bool = True) -> str:
    """A recipe with another seed, and with the rows of both senses instead of its own `[data]`.

    Without eyes it is the same recipe on the language model alone, with the rows that have no
    picture, in the same words; what is not shown of it, other wordings and the gate that decides,
    is left out.
    """
    data = _data(rows, "kept", [HEARING, *BOTH], chat=True)
    if not eyes:
        compose = parse_recipe(text).base.compose
        assert compose is not None
        base = f'[base]\nmodel = "{compose.language}"\n'
        text = _with_table(text, "base", base)
        data = _data(rows, "texts", [HEARING], chat=False)
        text = text.replace("[modalities.audio]\n", "[modalities.audio]\nrelevance = false\n")
        text = re.sub(r"(?m)^wordings = .*$", "wordings = 0", text)
    text = _with_table(text, "data", data)
    return text.replace("[training]\n", f"[training]\nseed = {seed}\n")


def with_whole_paths(text: str, folder: Path) -> str:
    """A recipe of `folder` as it can be read in another one: with the texts of its base in full."""

    def whole(found: re.Match[str]) -> str:
        """The line with the file's whole name."""
        return f"{found[1]} = {json.dumps(str((folder / found[2]).resolve()))}"

    return re.sub(r'(?m)^(texts|texts_test) = "(.+)"$', whole, text)


def _with_table(text: str, name: str, table: str) -> str:
    """The recipe with a table, and all tables in it, replaced."""
    own = rf"(?ms)^\[{name}\]\n.*?(?=^\[(?!\[?{name}\b)|\Z)"
    return re.sub(own, lambda _: table + "\n", text)


def _data(rows: Path, kept: str, names: Sequence[str], *, chat: bool) -> str:
    prompt = json.dumps(PROMPT if chat else CHAT.replace("{asked}", PROMPT))
    known = {
        **{"rows": rows.resolve(), "kept": kept, "shipped": FOLDER / "data"},
        **{"chat": str(chat).lower(), "prompt": prompt},
    }
    named = _NAMED.format(naming=NAMING, **known)
    mixed = [
        _MIX.format(name=name, question=named if name == HEARING else _COMPARED, **known)
        for name in names
    ]
    return _DATA.format(**known) + "".join(mixed)


@attrs.frozen
class Found:
    """What one seed gave; shares.

    Attributes:
        hearing: of notes that are named right, by the base that sees.
        eyeless: the same by the language model alone.
        seen: of questions about pictures that the base answers right.
        absent: whether every logit and token was the base's without a note.
        irrelevant: of those questions, answered right beside a note that does not matter.
        unchanged: of those, answered with the very words of the base.
        relevant: answered right beside a note of what is shown.
        both: by kind: answered right with both senses, from the picture alone, the note alone.
        opens: with `gate = "auto"`: of questions about the note in wordings that training had, in
            others, and of calls that are not about it, which open.
    """

    hearing: float
    eyeless: float
    seen: float
    absent: bool
    irrelevant: float
    unchanged: float
    relevant: float | None
    both: dict[str, tuple[float, float, float]]
    opens: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, sees: Evaluation, eyeless: Evaluation) -> "Found":
        """From the numbers of the two runs."""
        seeing, both = sees.seeing, sees.both_senses
        assert seeing is not None
        assert both is not None
        scores = seeing.scores
        return cls(
            hearing=sees.datasets[HEARING].score.value,
            eyeless=eyeless.gain.accuracy.value,
            seen=scores.base.value,
            absent=seeing.identical and sees.retention.absent.identical,
            irrelevant=scores.overall.accuracy.value,
            unchanged=scores.overall.unchanged.value,
            relevant=None if scores.relevant is None else scores.relevant.accuracy.value,
            both={
                kind: (
                    found.accuracy.value,
                    found.baselines[PICTURE_ALONE].accuracy.value,
                    found.baselines[SAMPLE_ALONE].accuracy.value,
                )
                for kind, found in both.kinds.items()
            },
            opens=None if sees.relevance is None else _opens(sees.relevance),
        )


def _opens(relevance: Relevance) -> tuple[float, float, float]:
    """Shares of calls for which the gate that decides opens."""
    shut = relevance.false_opens.values()
    return (
        relevance.opens[TRAINED].share,
        relevance.opens[HELD_OUT].share,
        sum(one.count for one in shut) / sum(one.calls for one in shut),
    )


def table(found: Sequence[Found]) -> str:
    """What was measured, as Markdown: the mean over the seeds, and the least and the largest."""
    kinds = {"match": "Is this what you hear?", "which": "Which of the things ... do you hear?"}
    absent = "**bit for bit the base**" if all(one.absent for one in found) else "NOT the base"
    rows = [
        ("names unseen notes, of 14 instruments", _mean([one.hearing for one in found])),
        ("... the same recipe without eyes", _mean([one.eyeless for one in found])),
        ("answers questions about pictures, before", _mean([one.seen for one in found])),
        ("... sound absent", absent),
        ("... beside a sound that does not matter", _mean([one.irrelevant for one in found])),
        ("... ... with the base's very words", _mean([one.unchanged for one in found])),
    ]
    relevant = [one.relevant for one in found if one.relevant is not None]
    if relevant:
        rows.append(("... beside the sound of what is shown", _mean(relevant)))
    for kind, question in kinds.items():
        with_both, picture, note = (
            _mean([one.both[kind][way] for one in found]) for way in range(3)
        )
        rows.append((f'"{question}"', f"**{with_both}**"))
        rows.append(("... from the picture alone; from the sound alone", f"{picture}; {note}"))
    if opens := [one.opens for one in found if one.opens is not None]:
        trained, others, false = (_mean(each) for each in zip(*opens, strict=True))
        rows.append(
            ('`gate = "auto"` opens in trained wordings; in others', f"{trained}; {others}")
        )
        rows.append(("... on texts and picture questions that no sound answers", false))
    seeds = "seed" if len(found) == 1 else f"{len(found)} seeds: mean (least to largest)"
    lines = [f"| held-out notes and scenes, {seeds} | right |", "|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)]) + "\n"


def _mean(values: Sequence[float]) -> str:
    """The mean, and where there are several the least and the largest.

    >>> _mean([0.5]), _mean([0.5, 0.7])
    ('50.0 %', '60.0 % (50.0 to 70.0)')
    """
    mean = f"{100 * sum(values) / len(values):.1f} %"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def train(text: str, folder: Path) -> Evaluation:
    """Run a recipe in a folder, or go on with it, and read its numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.toml"
    file.write_text(text, "utf-8")
    run_recipe(str(file), output=folder)
    return read_metrics(folder)


def sprite_sets(text: str) -> SpriteSets:
    """The emoji that the base of a recipe was trained on."""
    compose = parse_recipe(text).base.compose
    if compose is None or compose.scenes is None:
        raise SystemExit("the recipe must have [base.compose.scenes], whose sprites are drawn")
    return SpriteSets([sprite_folder(name) for name in compose.scenes.sprites])


def main() -> None:
    """For each seed make the rows, train with eyes and without, and show what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=recipe_path("see-and-hear"))
    parser.add_argument("--output", type=Path, default=Path("runs/see-and-hear"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--on",
        choices=("validation", "test"),
        default="test",
        help="what is measured on; settings are chosen on the validation",
    )
    parser.add_argument("--quick", action="store_true", help="few rows, to try it out")
    chosen = parser.parse_args()
    console = Console(highlight=False)
    text = with_whole_paths(chosen.recipe.read_text("utf-8"), chosen.recipe.parent)
    amounts = {"train": QUICK, "test": QUICK} if chosen.quick else {}
    sprites, found = sprite_sets(text), []
    for seed in chosen.seeds:
        folder = chosen.output / f"{chosen.on}-{seed}"
        rows = folder / "rows"
        with WorkProgress(console).showing() as progress:
            write_data(rows, sprites, seed=seed, on=chosen.on, progress=progress, **amounts)
        sees = train(recipe_on(text, rows, seed), folder / "sees")
        eyeless = train(recipe_on(text, rows, seed, eyes=False), folder / "without-eyes")
        found.append(Found.of(sees, eyeless))
        console.print(table(found), markup=False, soft_wrap=True)
    (chosen.output / f"{chosen.on}.md").write_text(table(found), "utf-8")


if __name__ == "__main__":
    main()
