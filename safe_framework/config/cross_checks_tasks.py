"""Checks of ``[data]`` that go from one key to another: which datasets and tasks there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from safe_framework.config.diagnostics import Finding
from safe_framework.config.schema import DataSpec, MixSpec
from safe_framework.config.toml_positions import Path
from safe_framework.config.type_checks import WRONG, Checker

_ALONE = ("train", "test", "task", "labels", "read_at")
_FEWEST_LABELS = 2


def check_tasks(document: dict[str, Any], findings: list[Finding]) -> None:
    """Add what is wrong with the datasets of a document where each value of ``[data]`` is right."""
    data = Checker([]).value(document.get("data"), DataSpec, ("data",))
    if data is WRONG:  # which has been reported, or there is none
        return
    findings += _one_form(data)
    if data.system is not None and not data.chat:
        message = "`data.system` is the system's message in a chat"
        findings.append(Finding(("data", "system"), message, "add `chat = true`", at="key"))
    for place, one in _placed(data):
        findings += _task(one, place, _any_inline(document.get("modalities")))


def _any_inline(modalities: object) -> bool:
    specs = modalities.values() if isinstance(modalities, dict) else ()
    return any(isinstance(spec, dict) and spec.get("inline") is True for spec in specs)


def _one_form(data: DataSpec) -> Iterator[Finding]:
    """Either one dataset, or several that are told apart by name."""
    if data.train is None and not data.mix:
        hint = 'add `train = "..."`, or a table [[data.mix]] for each dataset'
        yield Finding(("data", "train"), "`data.train` is missing", hint, at="key")
    default = DataSpec()
    for key in _ALONE if data.mix else ():
        if getattr(data, key) != getattr(default, key):
            message = f"`data.{key}` cannot stand beside [[data.mix]]"
            yield Finding(("data", key), message, "write it in each table of the mix", at="key")
    for name, count in Counter(one.called for one in data.mix).items():
        if count > 1:
            message = f"{count} datasets of [[data.mix]] are called `{name}`"
            yield Finding(("data", "mix"), message, "give each a `name`", at="key")


def _placed(data: DataSpec) -> list[tuple[Path, MixSpec]]:
    if data.mix:
        return [(("data", "mix", number), data.filled(one)) for number, one in enumerate(data.mix)]
    return [(("data",), one) for one in data.datasets().values()]


def _task(one: MixSpec, place: Path, inline: bool) -> Iterator[Finding]:
    shown = "data" if place == ("data",) else f"data.mix[{place[-1]}]"
    if one.labels and one.task != "classification":
        message = f"`{shown}.labels` belong to a classification"
        yield Finding((*place, "labels"), message, 'set `task = "classification"`')
    if one.labels and not _told_apart(one.labels):
        message = f"`{shown}.labels` must be at least {_FEWEST_LABELS} texts that differ"
        yield Finding((*place, "labels"), message)
    if one.read_at == "tokens" and (one.task != "classification" or not inline):
        message = f"`{shown}.read_at` cannot be the tokens"
        hint = 'it needs `task = "classification"`, and `inline = true` in the modality\'s table'
        yield Finding((*place, "read_at"), message, hint)
    if one.task == "question_answering" and "{question}" not in (one.prompt or ""):
        message = f'`{shown}.prompt` must contain "{{question}}", not "{one.prompt}"'
        yield Finding((*place, "prompt"), message)


def _told_apart(labels: tuple[str, ...]) -> bool:
    known = {label.strip() for label in labels} - {""}
    return len(known) == len(labels) >= _FEWEST_LABELS
