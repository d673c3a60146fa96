"""``safe list``: every plugin, recipe and card there is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.cli.table import table

if TYPE_CHECKING:
    from safe_framework.config.options import Option


def add(commands: Any) -> None:
    """Declare the command."""
    text = "list plugins with their options, recipes, checkpoints and launch configurations"
    parser = commands.add_parser("list", help=text, description=text)
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.interfaces.registry import REGISTRIES
    from safe_framework.utils import catalogue

    recipes = {name: _comment(path) for name, path in catalogue.recipes().items()}
    cards = {name: _summary(path) for name, path in catalogue.cards().items()}
    sprites = {name: _summary(path) for name, path in catalogue.sprites().items()}
    launches = {name: _comment(path) for name, path in catalogue.launches().items()}
    banks = {name: _kinds(path) for name, path in catalogue.questions().items()}
    files = {"recipes": recipes, "checkpoints": cards, "sprites": sprites}
    files |= {"banks of questions": banks, "launches": launches}
    if arguments.json:
        _print_json(files)
        return 0
    for registry in REGISTRIES.values():
        _section(f"{registry.kind}s", registry.points())
    for title, found in files.items():
        print(title)
        print(table(found.items()) if found else "  none")
    return 0


def _section(title: str, points: Sequence[EntryPoint]) -> None:
    """Plugins of one kind, the options of each below it."""
    from safe_framework.config.plugin_options import docstring, static_options_or_none, summary
    from safe_framework.interfaces.registry import origin

    print(title if points else f"{title}\n  none")
    rows = [
        (p.name, origin(p).partition(" (")[0], summary(docstring(p)).partition("\n")[0])
        for p in points
    ]
    lines = table(rows).splitlines()
    for point, line in zip(points, lines, strict=True):
        print(f"{line}\n      {_brief(static_options_or_none(point))}")


def _brief(options: Sequence[Option] | None) -> str:
    """The names of options, those without a default marked."""
    from safe_framework.config.options import REQUIRED

    if options is None:
        return "options: not told by its source"
    names = [f"{o.name} (required)" if o.default is REQUIRED else o.name for o in options]
    return f"options: {', '.join(names) or 'none'}"


def _print_json(files: Mapping[str, Mapping[str, str]]) -> None:
    import json

    from safe_framework.interfaces.registry import REGISTRIES

    plugins = [
        _record(kind, point) for kind, registry in REGISTRIES.items() for point in registry.points()
    ]
    everything = {"plugins": plugins, **files}
    print(json.dumps(everything, indent=2, ensure_ascii=False, default=repr))


def _record(kind: str, point: EntryPoint) -> dict[str, Any]:
    """A plugin as JSON holds it; ``options`` is null where its source does not show them."""
    from safe_framework.config.options import REQUIRED, phrase
    from safe_framework.config.plugin_options import (
        arguments,
        docstring,
        static_options_or_none,
        summary,
    )

    text, options = docstring(point), static_options_or_none(point)
    help_of = arguments(text)
    described = [
        {"name": o.name, "type": phrase(o.kind), "required": o.default is REQUIRED}
        | ({} if o.default is REQUIRED else {"default": o.default})
        | ({"about": help_of[o.name]} if o.name in help_of else {})
        for o in options or []
    ]
    return {
        "kind": kind,
        "name": point.name,
        "distribution": point.dist.name if point.dist else None,
        "version": point.dist.version if point.dist else None,
        "target": point.value,
        "summary": summary(text).partition("\n")[0],
        "options": None if options is None else described,
    }


def _comment(recipe: Path) -> str:
    """The first line of a recipe or configuration, if it is a comment."""
    first = recipe.read_text("utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _kinds(bank: Path) -> str:
    """The kinds of questions in a bank, and how many forms each has."""
    import json
    from collections import Counter

    counts = Counter(json.loads(line)["kind"] for line in bank.read_text("utf-8").splitlines())
    return ", ".join(f"{count} forms of {kind}" for kind, count in counts.items())


def _summary(card: Path) -> str:
    import tomli

    return str(tomli.loads(card.read_text("utf-8")).get("summary", ""))
