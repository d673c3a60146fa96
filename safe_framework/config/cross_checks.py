"""Checks of a recipe that its types cannot state: of data files, stages of a curriculum, and tasks.

Each looks at more than one key, or at the disk, and adds what it finds to a list of findings.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from safe_framework.config.diagnostics import Finding
from safe_framework.config.schema import (
    COMPOSE_FILES,
    DATA_FILES,
    QUESTION_FILES,
    DataSpec,
    MixSpec,
    StageSpec,
    TrainingSpec,
    UntilSpec,
    is_dataset,
    question_file,
)
from safe_framework.config.toml_positions import KeyPath
from safe_framework.config.type_checks import WRONG, Checker
from safe_framework.utils import catalogue
from safe_framework.utils.catalogue import CatalogueError
from safe_framework.utils.in_memory import was_in_memory
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
    _check_question_file(data, ("data",), folder, findings)
    tables = data.get("mix")
    for number, one in enumerate(tables if isinstance(tables, list) else ()):
        if isinstance(one, dict):
            path = ("data", "mix", number)
            _check_files(_to_be_files(one, folder), path, COMPOSE_FILES, folder, findings)
            _check_question_file(one, path, folder, findings)
    stages = document.get("curriculum")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        held = _to_be_files(stage, folder) if isinstance(stage, dict) else {}
        _check_files(held, ("curriculum", number), ("train",), folder, findings)
    compose = _table(_table(document, "base"), "compose")
    _check_files(compose, ("base", "compose"), COMPOSE_FILES, folder, findings)
    scenes, texts = ("base", "compose", "scenes"), ("texts", "texts_test")
    _check_files(_table(compose, "scenes"), scenes, texts, folder, findings)


def check_compose(document: dict[str, Any], findings: list[Finding]) -> None:
    """``[base.compose]`` trains on captions or on scenes, and its prompt fits what it trains on."""
    compose = _table(_table(document, "base"), "compose")
    if "scenes" not in compose:
        return
    for key in COMPOSE_FILES:
        if key in compose:
            message = f"`{key}` names captioned pictures, and [base.compose.scenes] draws its own"
            findings.append(Finding(("base", "compose", key), message, "leave one out", at="key"))
    before, _, after = str(compose.get("prompt", "")).partition("<image>")
    if "{question}" in before or after.count("{question}") != 1:
        message = "`prompt` must hold `{question}` once, after `<image>`"
        place = ("base", "compose", "prompt" if "prompt" in compose else "scenes")
        findings.append(Finding(place, message, 'such as `prompt = "<image>{question} "`'))


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


def check_speedups(document: dict[str, Any], findings: list[Finding]) -> None:
    """``cache`` must not ask for what ``speedups = "off"`` forbids."""
    table = _table(document, "training")
    cache = table.get("cache")
    if table.get("speedups") != "off" or not isinstance(cache, list):
        return
    for number, kind in enumerate(cache):
        if kind in _OF_SPEEDUPS:
            message = f"`{kind}` is a speed-up, and `speedups` switches all of them off"
            findings.append(Finding(("training", "cache", number), message, "leave it out"))


_OF_SPEEDUPS = ("prefix", "teacher")
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


def _check_question_file(
    table: dict[str, Any], path: KeyPath, folder: Path, findings: list[Finding]
) -> None:
    """The file of questions that a table names must be there; a question is none."""
    held = table.get("question")
    table, path = (held, (*path, "question")) if isinstance(held, dict) else (table, path)
    key = "bank" if isinstance(held, dict) else "question"
    if str(table.get(key)).endswith(QUESTION_FILES):
        _check_files(table, path, (key,), folder, findings)


def _to_be_files(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a table names that is neither a dataset, nor rows in memory, nor a folder."""

    def elsewhere(name: object) -> bool:
        """Whether the name is not that of a file."""
        if not isinstance(name, str):
            return False
        return is_dataset(name) or was_in_memory(name) or bool(name and (folder / name).is_dir())

    return {key: name for key, name in table.items() if not elsewhere(name)}


def _table(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


_PLAIN = (str, int, float, bool)


def check_stages(values: Mapping[str, Any], findings: list[Finding]) -> None:
    """Every stage must be able to end but the last, and to be reached.

    Args:
        values: the tables of a recipe, as the schema's classes.
        findings: where every mistake is added.
    """
    stages: tuple[StageSpec, ...] = values.get("curriculum", ())
    monitored = values.get("monitor") is not None
    for number, stage in enumerate(stages):
        path = ("curriculum", number)
        _check_where(stage, path, findings)
        _check_until(stage.until, path, monitored, findings)
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
    until: UntilSpec | None, path: tuple[str | int, ...], monitored: bool, findings: list[Finding]
) -> None:
    if until is None:
        return
    keys = [field.name for field in attrs.fields(UntilSpec)]
    if all(getattr(until, key) is None for key in keys):
        hint = f"give one of {', '.join(keys)}"
        findings.append(Finding((*path, "until"), "`until` says nothing", hint, at="key"))
    if not monitored:
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


_ALONE = ("train", "test", "task", "labels", "read_at")
_FEWEST_LABELS = 2


_OF_CHATS = {
    "system": "the system's message in a chat",
    "template_options": "for the base's chat template",
    "date": "the day that a chat says",
}


def check_tasks(
    document: dict[str, Any], findings: list[Finding], *, with_data: bool = True
) -> None:
    """Add what is wrong with the datasets of a document where each value of ``[data]`` is right.

    Args:
        document: of the recipe.
        findings: where every mistake is added.
        with_data: whether something to train on must be named.
    """
    data = Checker([]).value(document.get("data"), DataSpec, ("data",))
    if data is WRONG:  # which has been reported, or there is none
        return
    findings += _one_form(data, with_data)
    chats = data.chat is None and data.prompt == DataSpec().prompt
    for key, meaning in _OF_CHATS.items():
        if getattr(data, key) not in (None, {}) and not (data.chat or chats):
            message = f"`data.{key}` is {meaning}"
            findings.append(Finding(("data", key), message, "add `chat = true`", at="key"))
    findings += _questions(data)
    for place, one in _mixed_datasets(data):
        findings += _task(one, place, _any_inline(document.get("modalities")))


def _questions(data: DataSpec) -> Iterator[Finding]:
    """Every bank of questions that is named by its name must be in the catalogue."""
    named: list[tuple[KeyPath, Any]] = [(("data", "question"), data.question)]
    named += [(("data", "mix", n, "question"), one.question) for n, one in enumerate(data.mix)]
    for place, question in named:
        try:
            found = question_file(question, Path())
        except CatalogueError as error:
            yield Finding((*place, "bank"), error.message, error.hint)
            continue
        word = isinstance(question, str) and not question.strip(_OF_NAMES)
        meant = nearest(str(question), catalogue.questions(), _LIKENESS)
        if word and found is None and meant:
            yield Finding(place, f"`{question}` is no bank of questions", meant)


_OF_NAMES = string.ascii_letters + string.digits + "-_"
_LIKENESS = 0.75


def _any_inline(modalities: object) -> bool:
    specs = modalities.values() if isinstance(modalities, dict) else ()
    return any(isinstance(spec, dict) and spec.get("inline") is True for spec in specs)


def _one_form(data: DataSpec, with_data: bool) -> Iterator[Finding]:
    """Either one dataset, or several, each with a name."""
    if with_data and data.train is None and not data.mix:
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


def _mixed_datasets(data: DataSpec) -> list[tuple[KeyPath, MixSpec]]:
    if data.mix:
        return [(("data", "mix", number), data.filled(one)) for number, one in enumerate(data.mix)]
    return [(("data",), one) for one in data.datasets().values()]


def _task(one: MixSpec, place: KeyPath, inline: bool) -> Iterator[Finding]:
    shown = "data" if place == ("data",) else f"data.mix[{place[-1]}]"
    if one.labels and one.task != "classification":
        message = f"`{shown}.labels` belong to a classification"
        yield Finding((*place, "labels"), message, 'set `task = "classification"`')
    if one.labels and not _distinguishable(one.labels):
        message = f"`{shown}.labels` must be at least {_FEWEST_LABELS} texts that differ"
        yield Finding((*place, "labels"), message)
    if one.read_at == "tokens" and (one.task != "classification" or not inline):
        message = f"`{shown}.read_at` cannot be the tokens"
        hint = 'it needs `task = "classification"`, and `inline = true` in the modality\'s table'
        yield Finding((*place, "read_at"), message, hint)
    if one.task == "question_answering" and "{question}" not in (one.prompt or ""):
        message = f'`{shown}.prompt` must contain "{{question}}", not "{one.prompt}"'
        yield Finding((*place, "prompt"), message)


def _distinguishable(labels: tuple[str, ...]) -> bool:
    known = {label.strip() for label in labels} - {""}
    return len(known) == len(labels) >= _FEWEST_LABELS
