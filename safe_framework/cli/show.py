"""``safe show KIND NAME``: what a plugin does and takes, or what a file of the catalogue says."""

from __future__ import annotations

import argparse
from textwrap import fill, indent
from typing import TYPE_CHECKING, Any

from safe_framework.cli.table import table
from safe_framework.errors import SafeError

if TYPE_CHECKING:
    from safe_framework.config.options import Option

_UNTOLD = """\
its options are not told by its source, and nothing is imported to show them
hint: give `__init__` keyword-only parameters with plain types and literal defaults"""
_FILES = ("recipe", "card", "launch")
_KINDS = ("encoder", "projector", "fusion", "retention", *_FILES)


def add(commands: Any) -> None:
    """Declare the command."""
    text = "show a plugin's options, or the text of a recipe, card or launch configuration"
    parser = commands.add_parser("show", help=text, description=text)
    parser.add_argument("kind", choices=_KINDS, metavar="KIND", help=", ".join(_KINDS))
    parser.add_argument("name", metavar="NAME", help="as `safe list` shows it")
    parser.add_argument("--path", action="store_true", help="print where such a text is instead")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.utils import catalogue

    finders = (catalogue.recipe_path, catalogue.card_path, catalogue.launch_path)
    files = dict(zip(_FILES, finders, strict=True))
    if arguments.kind in files:
        path = files[arguments.kind](arguments.name)
        print(path) if arguments.path else print(path.read_text("utf-8"), end="")
    elif arguments.path:
        raise SafeError("only texts have a path", hint=f"one of {', '.join(_FILES)}")
    else:
        _show_plugin(arguments.kind, arguments.name)
    return 0


def _show_plugin(kind: str, name: str) -> None:
    from safe_framework.config.plugin_options import (
        arguments,
        docstring,
        static_options_or_none,
        summary,
    )
    from safe_framework.interfaces.registry import REGISTRIES

    registry = REGISTRIES[kind]
    text = docstring(registry.point(name))
    print(f"{registry.kind} {name}, of {registry.origin(name)}\n")
    if text:
        print(f"{summary(text)}\n")
    options, help_of = static_options_or_none(registry.point(name)), arguments(text)
    if not options:
        none = "it takes no options" if options is not None else _UNTOLD
        print(none)
        return
    header, *lines = table([("option", "type", "default"), *map(_row, options)]).splitlines()
    print(header)
    for option, line in zip(options, lines, strict=True):
        print(line)
        if option.name in help_of:
            print(indent(fill(help_of[option.name], 90), " " * 6))


def _row(option: Option) -> tuple[str, str, str]:
    from safe_framework.config.options import REQUIRED, phrase, quote

    if option.default is REQUIRED:
        default = "required"
    elif isinstance(option.default, (tuple, list)):
        default = f"[{', '.join(quote(item) for item in option.default)}]"
    else:
        default = "" if option.default is None else quote(option.default)
    return option.name, phrase(option.kind), default
