"""Checks of a recipe's ``[[curriculum]]`` that look at more than one key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from safe_framework.config.diagnostics import Finding
from safe_framework.config.schema import TrainingSpec
from safe_framework.config.schema_watching import StageSpec, UntilSpec

_PLAIN = (str, int, float, bool)


def check_stages(values: Mapping[str, Any], findings: list[Finding]) -> None:
    """Every stage must be able to end but the last, and to be reached.

    Args:
        values: the tables of a recipe, as the schema's classes.
        findings: where every mistake is added.
    """
    stages: tuple[StageSpec, ...] = values.get("curriculum", ())
    watched = values.get("monitor") is not None
    for number, stage in enumerate(stages):
        path = ("curriculum", number)
        _check_where(stage, path, findings)
        _check_until(stage.until, path, watched, findings)
        _check_end(stage, path, number == len(stages) - 1, findings)
    longest = sum(stage.steps or 0 for stage in stages[:-1])
    most = values.get("training", TrainingSpec()).max_steps
    if longest >= most and not any(stage.until for stage in stages):
        message = f"`curriculum` never comes to its last stage: {longest} steps come before it"
        findings.append(
            Finding(("curriculum",), message, f"`max_steps` of [training] is {most}", at="key")
        )


def _check_where(stage: StageSpec, path: tuple[str | int, ...], findings: list[Finding]) -> None:
    for field, wanted in stage.where.items():
        each = wanted if isinstance(wanted, tuple) else (wanted,)
        if not each or not all(isinstance(value, _PLAIN) for value in each):
            message = f"`{field}` of `where` must be a text, a number, true, false, or an array"
            findings.append(Finding((*path, "where", field), message, 'write `"easy"`'))


def _check_until(
    until: UntilSpec | None, path: tuple[str | int, ...], watched: bool, findings: list[Finding]
) -> None:
    if until is None:
        return
    keys = [field.name for field in attrs.fields(UntilSpec)]
    if all(getattr(until, key) is None for key in keys):
        hint = f"give one of {', '.join(keys)}"
        findings.append(Finding((*path, "until"), "`until` says nothing", hint, at="key"))
    if not watched:
        message = "`until` needs the measurements of a `[monitor]`, which the recipe does not have"
        findings.append(Finding((*path, "until"), message, "add a table `[monitor]`", at="key"))


def _check_end(
    stage: StageSpec, path: tuple[str | int, ...], last: bool, findings: list[Finding]
) -> None:
    if not last and stage.steps is None:
        hint = "say with `steps` when it ends at the latest"
        findings.append(Finding(path, "a stage that is not the last has no `steps`", hint))
    for key in ("steps", "until"):
        if last and getattr(stage, key) is not None:
            message = f"the last stage has `{key}`, but it lasts until training ends"
            findings.append(Finding((*path, key), message, "leave it out", at="key"))
