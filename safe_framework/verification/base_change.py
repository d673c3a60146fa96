"""What a certificate says of a model whose base was changed.

L1 and L2 are waived, never held: the reference of the other laws is the base as it was changed.
Three of the change's own are asked instead:

- B1: with its modalities off, the model is the *changed* base, bit for bit and by its operations.
- B2: ``off()`` is the *original* base bit for bit, where the change is low-rank pairs.
- B3: the original is kept: nothing of the base but what the change names was touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from safe_framework.core.model import SafeModel
from safe_framework.data.examples import TextRow, read_text_rows
from safe_framework.data.fields import row_fields
from safe_framework.data.pictures import RowPictures
from safe_framework.evaluation.base_drift import (
    HELD_OUT,
    SHIPPED,
    BaseChanged,
    describe_drift,
    measure_drift,
    measure_drift_on_batch,
)
from safe_framework.utils.catalogue import FOLDER
from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import CALLS, FORWARD, GREEDY, Call, Level
from safe_framework.verification.certificate import Law, Verdict, law_result, not_applicable
from safe_framework.verification.outcome import capture_outcome, difference

_TEXTS = 64
_RELATIVE = ("L4", "L5", "L6")


def measure_base_change(bench: Bench, texts: Sequence[str] | None) -> BaseChanged | None:
    """How a model's base was changed, its drift measured on texts without a sample.

    Args:
        bench: with the model.
        texts: never trained on; by default those that its recipe names, else some that ship,
            else made-up tokens.
    """
    model = bench.model
    if model.base_change is None:
        return None
    config: Any = model.base.config
    if model.tokenizer is None or config.is_encoder_decoder:
        return measure_drift_on_batch(model, bench.batches["plain"])
    if texts is not None:
        return measure_drift(model, texts)
    chosen, source = _held_out(model)
    return measure_drift(model, chosen[:_TEXTS], source=source)


def _held_out(model: SafeModel) -> tuple[Sequence[TextRow], str]:
    """Texts that its recipe names, with their pictures, else some that ship; and which they are."""
    recipe = model.built_from
    named = recipe.data_files().get("retention_test") if recipe else None
    if recipe is not None and isinstance(named, Path) and named.exists():
        fields = row_fields(recipe, "retention_test")
        pictures = RowPictures(recipe.modalities)
        asked = model.processor.prompt
        found = read_text_rows(named, around=asked, fields=fields, pictures=pictures)
        return found, HELD_OUT
    return read_text_rows(FOLDER / "data" / "text" / "test.jsonl"), SHIPPED


def apply_waivers(
    benches: Mapping[Bench, Level], laws: Sequence[Law], changed: BaseChanged | None
) -> list[Law]:
    """The laws of a model whose base was changed; as they are where it was not.

    Args:
        benches: with how many calls of each are compared.
        laws: as they were asked.
        changed: how the base was changed; None where it was not.
    """
    if changed is None:
        return list(laws)
    waived = [
        Law("L1", "Untouched", Verdict.WAIVED, changed.described),
        Law(
            "L2",
            "Off is the base",
            Verdict.WAIVED,
            f"without a sample, {describe_drift(changed.drift)}",
        ),
    ]
    asked = [off_is_original(benches), *(_renamed(law, changed) for law in laws)]
    ours = sorted((law for law in asked if law.key.startswith("B")), key=lambda law: law.key)
    return [*waived, *ours, *(law for law in asked if not law.key.startswith("B"))]


def _renamed(law: Law, changed: BaseChanged) -> Law:
    """A law as it is meant of a changed base."""
    if law.key == "L1":
        kept = changed.off_is_the_original_base
        name = "The original is kept" if kept else "The rest of the base is untouched"
        return attrs.evolve(law, key="B3", name=name)
    if law.key == "L2":
        name = law.name.replace("the base", "the changed base")
        return attrs.evolve(law, key="B1", name=name)
    if law.key in _RELATIVE:
        return attrs.evolve(law, detail=f"{law.detail}; beside the changed base")
    detail = law.detail.replace("off is the base", "off is the changed base")
    return attrs.evolve(law, detail=detail)


def off_is_original(benches: Mapping[Bench, Level]) -> Law:
    """The verdict on B2."""
    name, change = "off() is the original base", next(iter(benches)).model.base_change
    if change is None or not change.reversible:
        return not_applicable("B2", name, "layers were trained in place: off() is the changed base")
    calls = [
        (bench, call)
        for bench, level in benches.items()
        for call in (CALLS if level == "full" else (FORWARD, GREEDY))
    ]
    findings = [found for bench, call in calls for found in _differences(bench, call)]
    return law_result("B2", name, f"{len(calls)} calls bit for bit", findings)


def _differences(bench: Bench, call: Call) -> Iterator[str]:
    expected = capture_outcome(_original_method(bench, call), bench.inputs(call), call.mode)
    with bench.model.off():
        seen = capture_outcome(bench.method(call), bench.inputs(call), call.mode)
    if found := difference(seen, expected):
        yield f"{bench.name(call)}, off(): {found}"


def _original_method(bench: Bench, call: Call) -> Callable[..., Any]:
    """The base itself, without the change."""
    base: Any = bench.model.base
    method: Callable[..., Any] = base if call.method == "forward" else base.generate
    return method
