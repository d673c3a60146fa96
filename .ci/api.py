"""Print as JSON what others may build on: public names with their signatures, plugins, commands.

Module paths of what is private are left out, so that moving a module changes nothing here.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import io
import json
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tomli
from annotations import resolved, signature_text, text_of, value_text

import safe_framework

PUBLIC = (
    "safe_framework.errors",
    "safe_framework.hooks",
    "safe_framework.attention",
    "safe_framework.data.audio",
    "safe_framework.testing.bases",
    "safe_framework.testing.strategies",
    "safe_framework.testing.toys",
)
"""Modules whose public names are public, beside those of ``__all__``."""
OURS = ("safe_framework", "safe_framework_plugins")
SPECIAL = ("__call__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__")


def main() -> None:
    """Print everything."""
    print(json.dumps(everything(), indent=1, sort_keys=True))


def everything() -> dict[str, Any]:
    """All that is public, by where it is found."""
    testing = import_module("safe_framework.testing")
    project = tomli.loads(Path(safe_framework.__file__).parents[1].joinpath("pyproject.toml")
                          .read_text("utf-8"))["project"]  # fmt: skip
    points = project["entry-points"]
    plugins = {
        f"{group.removeprefix('safe_framework.')}.{name}": described(loaded(target))
        for group in points
        if group.startswith("safe_framework.")
        for name, target in points[group].items()
    }
    return {
        "safe_framework": names_of(safe_framework, safe_framework.__all__),
        "safe_framework.testing": names_of(testing, testing.__all__),
        **{name: names_of(import_module(name), defined(name)) for name in PUBLIC},
        "returned": dict(sorted(returned())),
        "plugins": plugins,
        "entry points": points | {"scripts": project["scripts"]},
        "commands": commands(),
        "exit codes": exit_codes(),
    }


def names_of(module: types.ModuleType, names: list[str]) -> dict[str, Any]:
    """What each name stands for."""
    return {name: described(getattr(module, name)) for name in names}


def defined(name: str) -> list[str]:
    """The public names that a module or package defines itself."""
    module = import_module(name)
    assigned = {
        target.id
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    own = {
        key
        for key, value in vars(module).items()
        if isinstance(value, (type, types.FunctionType))
        and f"{value.__module__}.".startswith(f"{name}.")
    }
    return sorted(key for key in own | assigned if not key.startswith("_"))


def described(thing: Any) -> Any:
    """A class with its public members, the signature of a function, or the text of a value."""
    if isinstance(thing, types.ModuleType):
        return "module"
    if isinstance(thing, type):
        return class_of(thing)
    if isinstance(thing, types.FunctionType):
        return signature_text(thing, thing.__module__)
    return value_text(thing)


def class_of(kind: type) -> dict[str, Any]:
    """Bases, constructor and public members, those of our own base classes too."""
    ours = [one for one in kind.__mro__ if one.__module__.partition(".")[0] in OURS]
    fields: dict[str, str] = {}
    methods: dict[str, str] = {}
    for one in reversed(ours):
        for name, annotation in inspect.get_annotations(one).items():
            if not name.startswith("_"):
                fields[name] = text_of(resolved(annotation, one.__module__))
        for name, member in vars(one).items():
            if not name.startswith("_") or name in SPECIAL:
                with contextlib.suppress(TypeError):
                    methods[name] = member_text(member, one.__module__)
    return {
        "bases": public_bases(kind),
        "constructor": signature_text(kind, home_of_constructor(kind)),
        "abstract": sorted(getattr(kind, "__abstractmethods__", ())),
        "fields": fields,
        "members": methods,
    }


def public_bases(kind: type) -> list[str]:
    """The names of its bases; of a private one, those of its own bases."""
    named: list[str] = []
    for base in kind.__bases__:
        named += public_bases(base) if base.__name__.startswith("_") else [base.__name__]
    return named


def member_text(member: Any, module: str) -> str:
    """How a member of a class is called.

    Raises:
        TypeError: it is a plain value, which `fields` has if it is annotated.
    """
    if isinstance(member, (staticmethod, classmethod)):
        bound = isinstance(member, classmethod)
        text = signature_text(member.__func__, module, bound=bound)
        return f"{type(member).__name__} {text}"
    if isinstance(member, (property, functools.cached_property)):
        function = member.fget if isinstance(member, property) else member.func
        settable = " settable" if isinstance(member, property) and member.fset else ""
        return f"property{settable} {signature_text(function, module, bound=True)}"
    if not inspect.isfunction(member):
        member = getattr(member, "__wrapped__", member)  # a descriptor around a method
    if inspect.isfunction(member):
        return signature_text(member, module, bound=True)
    raise TypeError(member)


def home_of_constructor(kind: type) -> str:
    """The module in whose names the annotations of the constructor are written."""
    owners = (one for one in kind.__mro__ if {"__init__", "__new__"} & vars(one).keys())
    home = next(owners).__module__
    return home if home.partition(".")[0] in OURS else kind.__module__


def returned() -> Iterator[tuple[str, Any]]:
    """Classes of ours that a public function gives, and that are in no ``__all__``."""
    for name in safe_framework.__all__:
        function = getattr(safe_framework, name)
        if isinstance(function, types.FunctionType):
            kind = resolved(inspect.signature(function).return_annotation, function.__module__)
            if kind.__name__ not in safe_framework.__all__:
                yield kind.__name__, described(kind)


def loaded(target: str) -> Any:
    """What an entry point names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def commands() -> dict[str, list[dict[str, str]]]:
    """Every argument of ``safe``, by command."""
    return dict(arguments_of("safe", parser_of(import_module("safe_framework.cli").main)))


def parser_of(main: Callable[[list[str]], Any]) -> argparse.ArgumentParser:
    """The parser that a command hands its arguments to."""
    found = []

    def keep(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.append(parser)
        raise SystemExit

    keeping = patch.object(argparse.ArgumentParser, "parse_args", keep)
    with keeping, contextlib.suppress(SystemExit):
        main([])
    return found[0]


def arguments_of(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The arguments of a command and of the commands below it."""
    rows = []
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from arguments_of(f"{name} {word}", below)
            continue
        if isinstance(action, argparse._HelpAction):
            continue
        kind = f" {action.type.__name__}" if isinstance(action.type, type) else ""
        rows.append(
            {
                "name": " ".join(action.option_strings) or action.dest,
                "takes": f"{action.nargs if action.nargs is not None else 1}{kind}",
                "default": value_text(action.default),
                "choices": value_text(sorted(action.choices) if action.choices else None),
            }
        )
    yield name, rows


def exit_codes() -> dict[str, int]:
    """How ``safe`` ends."""

    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    chosen = argparse.Namespace(run=interrupted, interrupted="", loads_models=False)
    with patch.object(argparse.ArgumentParser, "parse_args", lambda *_: chosen):
        stopped = exit_code([])
    return {
        "no command": exit_code([]),
        "--version": exit_code(["--version"]),
        "list": exit_code(["list"]),
        "unknown command": exit_code(["no-such-command"]),
        "missing argument": exit_code(["show"]),
        "error": exit_code(["check", "no-such-recipe"]),
        "interrupt": stopped,
    }


def exit_code(arguments: list[str]) -> int:
    """The exit code of ``safe`` with these arguments, whose output is dropped."""
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            return int(import_module("safe_framework.cli").main(arguments))
        except SystemExit as end:
            return int(end.code or 0)


if __name__ == "__main__":
    main()
