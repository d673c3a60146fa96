"""An evaluation as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from safe_framework.evaluation.base_drift import describe_change
from safe_framework.evaluation.results import Evaluation
from safe_framework.evaluation.summary import headlines, sections
from safe_framework.runs.report.attention import attention_maps
from safe_framework.runs.report.curves import monitor_figure, training_curves
from safe_framework.runs.report.extras import ReportInputs
from safe_framework.runs.report.gates import gate_sweep
from safe_framework.runs.report.html import Markup, element, join
from safe_framework.runs.report.results import (
    certificate_section,
    confusion_matrix,
    form_table,
    headline_cards,
    kind_tables,
    per_class,
    table,
    tables,
)
from safe_framework.runs.report.samples import clips, picture_questions
from safe_framework.utils.files import atomic_write
from safe_framework.utils.formatting import count


def write_report(
    path: Path,
    evaluation: Evaluation,
    *,
    curves: Sequence[Mapping[str, Any]],
    recipe_text: str,
    versions: Mapping[str, str],
    title: str,
    targets: Mapping[str, float] | None = None,
    extras: ReportInputs | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report; equal input gives equal bytes.

    Args:
        path: of the HTML file.
        evaluation: what was measured; clips are shown if it still holds its samples.
        curves: rows of training, each with ``step`` and any of ``loss``, ``task_loss``,
            ``retention_loss`` and ``gate``; empty where nothing was trained.
        recipe_text: the recipe as it was written.
        versions: of what the result depends on, by name.
        title: of the page.
        targets: least values of some results, to be marked met or not.
        extras: certificate, gate sweeps and attention, where there are any.
        events: of the run's monitor; empty where there was none.

    Raises:
        DataError: Matplotlib is not installed, or a target is unknown.
    """
    page = render(evaluation, curves, recipe_text, versions, title, targets, extras, events)
    atomic_write(path, page)


def render(
    evaluation: Evaluation,
    rows: Sequence[Mapping[str, Any]],
    recipe_text: str,
    versions: Mapping[str, str],
    title: str,
    targets: Mapping[str, float] | None = None,
    extras: ReportInputs | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page that ``write_report`` writes."""
    inputs = extras or ReportInputs()
    unlogged = element("p", "No training was logged.", class_="soft")
    parts: dict[str, Sequence[str]] = {
        "title": [title],
        "lede": [_lede(evaluation)],
        "style": [Markup(_packaged("page.css"))],
        "headlines": headline_cards(headlines(evaluation)),
        "clips": clips(evaluation.answers, evaluation.modality, inputs),
        "seeing": _seeing_section(evaluation),
        "certificate": certificate_section(inputs.certificate),
        "gates": [
            *_calibrated(evaluation),
            *(
                [part for found in inputs.sweeps.values() for part in gate_sweep(found)]
                or [_command("safe sweep RUN", "measures how far to open the gate.")]
            ),
        ],
        "attention": attention_maps(inputs.attention, evaluation.answers)
        if inputs.attention
        else [_command("safe report RUN", "looks at what the answers attend to.")],
        "tables": [
            *tables(sections(evaluation, targets)),
            *form_table(evaluation.wordings),
        ],
        "per_class": [per_class(evaluation.gain.per_class)],
        "monitor": monitor_figure(events),
        "curves": training_curves(rows) or [unlogged],
        "matrix": [confusion_matrix(evaluation.gain.confusion)],
        "method": [_method(evaluation)],
        "recipe": [recipe_text],
        "versions": [table("Versions", ("", "version"), list(versions.items()))],
    }
    filled = {name: join(list(children)) for name, children in parts.items()}
    return Template(_packaged("page.html")).substitute(filled)


def _seeing_section(evaluation: Evaluation) -> list[Markup]:
    """Questions about pictures, by which the base's seeing was measured; nothing without any."""
    parts = kind_tables(evaluation)
    if evaluation.seeing is not None:
        intro = (
            "Questions about pictures that were never trained on. The sense is absent, or its gate "
            f"is at 1 beside {evaluation.modality} that has nothing to do with the picture, or "
            "beside the picture's own. A verdict is right if anybody gave that answer."
        )
        cards = picture_questions(evaluation.seeing, evaluation.modality)
        parts = [
            element("p", intro, class_="soft"),
            element("div", *cards, class_="clips"),
            *parts,
        ]
    if not parts:
        return []
    title = element("h2", "What it still sees", id="seeing")
    return [element("section", title, *parts, aria_labelledby="seeing"), Markup("\n\n")]


def _calibrated(evaluation: Evaluation) -> list[Markup]:
    """What was shown of the gate that decides, in one sentence; nothing without one."""
    found = evaluation.relevance
    if found is None:
        return []
    if not found.sentence:
        return [_command("safe calibrate RUN", "bounds how often the gate opens by mistake.")]
    return [element("p", found.sentence)]


def _command(command: str, does: str) -> Markup:
    text = ("Not measured yet: ", element("code", command), f" {does}")
    return element("p", *text, class_="soft")


def _lede(evaluation: Evaluation) -> str:
    size, name = count(evaluation.base_parameters), evaluation.modality
    if evaluation.base_changed is not None:
        change = describe_change(evaluation.base_changed)
        return f"A language model of {size} parameters was given a new sense: {name}. {change}"
    return (
        f"A frozen language model of {size} parameters was given a new sense: {name}. "
        "With the sense absent or switched off, it is meant to be the same model bit for bit."
    )


def _method(evaluation: Evaluation) -> str:
    return (
        f"Answers are greedy, of at most {evaluation.max_new_tokens} tokens, and right if they "
        "equal the expected one but for case, outer punctuation and blanks. Intervals hold 95 % "
        f"of {evaluation.resamples} bootstrap resamples of whole examples or texts; gains are "
        f"paired. The seed is {evaluation.seed}.{_method_of_seeing(evaluation)}"
    )


def _method_of_seeing(evaluation: Evaluation) -> str:
    if evaluation.seeing is None:
        return ""
    return (
        " An answer about a picture is scored by VQA accuracy (Antol et al. 2015): as far as those "
        "who were asked agree with it. The retention score is the model's accuracy over the base's."
    )


def _packaged(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
