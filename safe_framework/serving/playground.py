"""A page to try a sense in: a sample, a question, a gate, and both models' answers side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.data.samples import read_sample
from safe_framework.errors import DataError, SafeError
from safe_framework.evaluation.side_by_side import SideBySide, side_by_side
from safe_framework.utils.formatting import percent
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
    gate: float,
    max_new_tokens: int = 32,
) -> tuple[str, str, str]:
    """The badge as HTML, the base's answer, and the answer with the sense.

    Args:
        model: that is tried; left as it was.
        modality: whose sample and gate are given.
        file: of the sample; None for none.
        question: put into the recipe's prompt.
        gate: strength, from 0 to 1.
        max_new_tokens: limit of an answer's length.
    """
    try:
        if not question.strip():
            raise DataError("there is no question", hint="write one")
        rate = model.modality(modality).encoder.sampling_rate
        sample = None if file is None else read_sample(Path(file), rate, Path(file).name)
        found = side_by_side(
            model, modality, question, sample, gate=gate, max_new_tokens=max_new_tokens
        )
    except SafeError as error:
        return _badge("other", str(error)), "", ""
    return badge(found, sample is not None, gate), found.base, found.safe


def badge(found: SideBySide, given: bool, gate: float) -> str:
    """Whether every bit that was compared is the base's."""
    if found.bitwise:
        why = "no sample" if not given else f"gate {gate:g}"
        return _badge("same", f"bitwise the base ({why}): all logits and tokens were compared")
    kept = percent(found.agreement)
    answer = "the same answer" if found.same_answer else "another answer"
    return _badge(
        "other", f"not the base: {answer}; {kept} of the question's next tokens unchanged"
    )


def _badge(kind: str, text: str) -> str:
    return f'<div class="badge {kind}" role="status">{escape(text)}</div>'


def playground(
    model: SafeModel, modality: str, *, question: str = "", max_new_tokens: int = 32
) -> Any:
    """The page, a ``gradio.Blocks`` to launch.

    Args:
        model: to try.
        modality: the sense to try.
        question: what stands in its field at first.
        max_new_tokens: limit of an answer's length.

    Raises:
        DataError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would call home when imported
    gradio = require("gradio", "play", "the playground needs `gradio`")

    def ask(file: str | None, asked: str, gate: float) -> tuple[str, str, str]:
        """What the page shows for a file, a question and a gate."""
        return respond(model, modality, file, asked, gate, max_new_tokens)

    with gradio.Blocks(title=f"{modality}: base and SAFE", analytics_enabled=False) as page:
        gradio.HTML(f"<style>{_STYLE}</style>")
        gradio.Markdown(f"# {modality}: base and SAFE side by side")
        with gradio.Row():
            with gradio.Column():
                sample = _sample_field(gradio, model, modality)
                asked = gradio.Textbox(question, label="Question", elem_id="question")
                gate = gradio.Slider(
                    0, 1, model.gates[modality], step=0.05, label="Gate", elem_id="gate"
                )
                button = gradio.Button("Ask both", variant="primary", elem_id="ask")
            with gradio.Column():
                shown = gradio.HTML(elem_id="badge")
                base = gradio.Textbox(label="Base", lines=3, elem_id="base")
                safe = gradio.Textbox(label=f"With {modality}", lines=3, elem_id="safe")
        _wire(ask, [sample, asked, gate], [shown, base, safe], button.click, gate.release)
    return page


def _wire(
    ask: Callable[..., Any], given: list[Any], shown: list[Any], *events: Callable[..., Any]
) -> None:
    for event in events:
        event(ask, inputs=given, outputs=shown, trigger_mode="always_last")


def _sample_field(gradio: Any, model: SafeModel, modality: str) -> Any:
    """Where a sound is recorded or uploaded, or a file of anything else is put."""
    if model.modality(modality).encoder.sampling_rate is not None:
        return gradio.Audio(
            sources=["upload", "microphone"], type="filepath", label=modality, elem_id="sample"
        )
    kinds = ["image", ".npy", ".npz"]
    return gradio.File(file_types=kinds, type="filepath", label=modality, elem_id="sample")
