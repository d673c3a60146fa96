"""Checks of a recipe that its types cannot state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_framework.config.diagnostics import Finding
from safe_framework.config.schema import COMPOSE_FILES, DATA_FILES, is_dataset
from safe_framework.utils.suggest import nearest


def check_modality_names(document: dict[str, Any], findings: list[Finding]) -> None:
    """Names become attributes and prefixes of parameter names, so they must be identifiers."""
    for name in _table(document, "modalities"):
        if not name.isidentifier() or "__" in name:
            message = f"modality `{name}` must be named by an identifier without `__`"
            better = re.sub(r"\W+|_{2,}", "_", name).strip("_")
            hint = f"call it `{better}`" if better.isidentifier() else ""
            findings.append(Finding(("modalities", name), message, hint, at="key"))


def check_data_files(document: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    """Every file that ``[data]`` and ``[base.compose]`` name must be there."""
    data = _table(document, "data")
    _check_files(_to_be_files(data, folder), ("data",), DATA_FILES, folder, findings)
    tables = data.get("mix")
    for number, one in enumerate(tables if isinstance(tables, list) else ()):
        if isinstance(one, dict):
            path = ("data", "mix", number)
            _check_files(_to_be_files(one, folder), path, COMPOSE_FILES, folder, findings)
    stages = document.get("curriculum")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        held = _to_be_files(stage, folder) if isinstance(stage, dict) else {}
        _check_files(held, ("curriculum", number), ("train",), folder, findings)
    compose = _table(_table(document, "base"), "compose")
    _check_files(compose, ("base", "compose"), COMPOSE_FILES, folder, findings)


def check_stage_b(document: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    """What ``[stage_b]`` asks of its method, and the adapter that it begins with."""
    table = _table(document, "stage_b")
    if table.get("method") == "layers":
        for key in _OF_LORA:
            if key in table:
                message = f"`{key}` is an option of `lora`, not of `layers`"
                findings.append(Finding(("stage_b", key), message, "leave it out", at="key"))
        if not table.get("layers"):
            hint = "such as `layers = [-2, -1]` for the last two"
            message = "`layers` must say which layers of the base are trained"
            findings.append(Finding(("stage_b", "method"), message, hint))
    start = table.get("start")
    if isinstance(start, str) and not (folder / start / "adapter_config.json").is_file():
        hint = f"paths are relative to `{folder}`"
        findings.append(Finding(("stage_b", "start"), f"`{start}` is not an adapter", hint))


_OF_LORA = ("rank", "alpha", "dropout", "targets")


def _check_files(
    table: dict[str, Any],
    path: tuple[str | int, ...],
    keys: Sequence[str],
    folder: Path,
    findings: list[Finding],
) -> None:
    for key in keys:
        name = table.get(key)
        if isinstance(name, str) and name and not (folder / name).is_file():
            there = [path.name for path in (folder / name).parent.glob("*.*")]
            hint = f"{nearest(Path(name).name, there)} paths are relative to `{folder}`".strip()
            findings.append(Finding((*path, key), f"there is no file `{name}`", hint))


def _to_be_files(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a table names that is neither a dataset nor a folder."""
    return {
        key: name
        for key, name in table.items()
        if not (isinstance(name, str) and (is_dataset(name) or (name and (folder / name).is_dir())))
    }


def _table(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}
