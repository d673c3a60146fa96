"""Check a document against types, never coercing, and collect every mistake.

A whole number is taken where a number is wanted, and an array becomes a tuple; nothing else
changes its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import attrs

from safe_framework._recipe.options import REQUIRED, Option, schema_options
from safe_framework._recipe.plugins import plugin_options
from safe_framework._recipe.positions import Path
from safe_framework._recipe.problems import Finding, rename
from safe_framework._recipe.words import (
    ARRAYS,
    TABLES,
    UNIONS,
    describe,
    example,
    items_of,
    members,
    outer,
    phrase,
    quote,
)
from safe_framework._suggest import nearest, suggest
from safe_framework.errors import PluginError

WRONG: Any = object()
"""Stands for a value that a finding was reported about."""


@attrs.frozen
class Checker:
    """Turns values of a TOML document into values of given types.

    Args:
        findings: where every mistake is added.
        prefix: path of the table whose keys are being checked, if it is a plugin's.
        owner: whose table that is, such as "encoder `whisper`".
    """

    findings: list[Finding]
    prefix: Path = ()
    owner: str = ""

    def value(self, value: Any, kind: Any, path: Path) -> Any:
        """The value as ``kind`` wants it, or :data:`WRONG`."""
        origin = outer(kind)
        if kind is Any:
            return frozen(value)
        if attrs.has(kind):
            return self.table(value, kind, path)
        if origin in UNIONS:
            return self.union(value, kind, path)
        if origin is Literal:
            return self.choice(value, kind, path)
        if origin in ARRAYS:
            return self.array(value, kind, path)
        if origin in TABLES:
            return self.mapping(value, kind, path)
        return self.scalar(value, kind, path)

    def record(self, given: Any, options: Sequence[Option], path: Path, noun: str = "key") -> Any:
        """The values of the options that are given, by name, or :data:`WRONG`."""
        known = {option.name: option for option in options}
        values = {
            name: self.option(value, known.get(name), (*path, name), noun, known)
            for name, value in given.items()
        }
        missing = [o for o in options if o.default is REQUIRED and o.name not in given]
        for option in missing:
            self.missing(option, (*path, option.name))
        return WRONG if missing or _any_wrong(values.values()) else values

    def option(
        self, value: Any, option: Option | None, path: Path, noun: str, known: Mapping[str, Option]
    ) -> Any:
        """The value of one key of a table."""
        if option is None:
            noun = "table" if noun == "key" and isinstance(value, dict) else noun
            hint = suggest(str(path[-1]), known, f"{noun}s" if self.owner else "keys")
            return self.report(path, f"unknown {noun} {self.name(path)}", hint, at="key")
        checked = self.value(value, option.kind, path)
        if checked is not WRONG and option.check is not None:
            try:
                option.check(checked)
            except ValueError as error:
                return self.report(path, rename(str(error), self.name(path)))
        return checked

    def table(self, value: Any, schema: type, path: Path) -> Any:
        """A table of the schema; what it does not name are options of a plugin."""
        options = schema_options(schema)
        is_plugin = "options" in attrs.fields_dict(schema)
        if not isinstance(value, dict):
            hint = f"write `{{ use = {quote(value)} }}`" if is_plugin else ""
            return self.wrong(value, schema, path, hint if isinstance(value, str) else "")
        if not is_plugin:
            values = self.record(value, options, path)
        else:
            names = {option.name for option in options}
            own = {key: value[key] for key in value if key in names}
            rest = {key: value[key] for key in value if key not in names}
            values = self.record(own, options, path)
            plugin = self.plugin(value.get("use"), rest, path)
            values = WRONG if _any_wrong((values, plugin)) else {**values, "options": plugin}
        return WRONG if values is WRONG else schema(**values)

    def plugin(self, use: Any, given: dict[str, Any], path: Path) -> Any:
        """Check the options of the plugin called ``use``, if that is a name at all."""
        if not isinstance(use, str):
            return WRONG
        try:
            owner, options = plugin_options(path, use)
        except PluginError as error:
            return self.report((*path, "use"), error.message, error.hint)
        checker = attrs.evolve(self, prefix=path, owner=owner)
        return checker.record(given, options, path, noun="option")

    def union(self, value: Any, kind: Any, path: Path) -> Any:
        """The first member that takes the value, and never None, which TOML cannot write."""
        wanted = members(kind)
        if len(wanted) == 1:
            return self.value(value, wanted[0], path)
        for member in wanted:
            checked = attrs.evolve(self, findings=[]).value(value, member, path)
            if checked is not WRONG:
                return checked
        return self.wrong(value, kind, path)

    def choice(self, value: Any, kind: Any, path: Path) -> Any:
        """One of a few values."""
        choices = get_args(kind)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        words = [choice for choice in choices if isinstance(choice, str)]
        hint = nearest(value, words) if isinstance(value, str) else ""
        return self.wrong(value, kind, path, hint)

    def array(self, value: Any, kind: Any, path: Path) -> Any:
        """An array as a tuple, each item checked."""
        if not isinstance(value, list):
            scalar = isinstance(value, (str, int, float))
            return self.wrong(value, kind, path, f"write `[{quote(value)}]`" if scalar else "")
        kinds = get_args(kind)
        if outer(kind) is tuple and kinds and kinds[-1] is not ...:
            if len(value) != len(kinds):
                wanted = f"must be an array of {len(kinds)} items, not of {len(value)}"
                return self.report(path, f"{self.name(path)} {wanted}")
        else:
            kinds = (items_of(kind),) * len(value)
        items = [self.value(item, kinds[index], (*path, index)) for index, item in enumerate(value)]
        return WRONG if _any_wrong(items) else tuple(items)

    def mapping(self, value: Any, kind: Any, path: Path) -> Any:
        """A table whose keys are free and whose values share a type."""
        if not isinstance(value, dict):
            return self.wrong(value, kind, path)
        wanted = get_args(kind)[1] if get_args(kind) else Any
        items = {key: self.value(item, wanted, (*path, key)) for key, item in value.items()}
        return WRONG if _any_wrong(items.values()) else items

    def scalar(self, value: Any, kind: Any, path: Path) -> Any:
        """A value of exactly this type: True is an int to Python, but not to TOML."""
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        return self.wrong(value, kind, path, _rewrite(value, kind))

    def wrong(self, value: Any, kind: Any, path: Path, hint: str = "") -> Any:
        """Report a value of another type than it must be."""
        message = f"{self.name(path)} must be {phrase(kind)}, not {describe(value)}"
        return self.report(path, message, hint)

    def missing(self, option: Option, path: Path) -> None:
        """Report a key that has no default and is not there."""
        if attrs.has(option.kind) and len(path) == 1:
            hint = f"add a table `[{option.name}]`"
        elif outer(option.kind) in TABLES:
            hint = f"add a table `[{option.name}.NAME]`"
        else:
            shown = '{ use = "..." }' if attrs.has(option.kind) else example(option.kind)
            hint = f"add `{option.name} = {shown}`"
        self.report(path, f"{self.name(path)} is missing", hint, at="key")

    def report(
        self, path: Path, message: str, hint: str = "", at: Literal["key", "value"] = "value"
    ) -> Any:
        """Add a finding, and give what stands for a wrong value."""
        self.findings.append(Finding(path, message, hint, at))
        return WRONG

    def name(self, path: Path) -> str:
        """A path as its author writes it, and whose it is.

        >>> Checker([], ("a",), "encoder `whisper`").name(("a", "layers", 2))
        '`layers[2]` of encoder `whisper`'
        """
        steps = path[len(self.prefix) :]
        dotted = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)
        return f"`{dotted[1:]}` of {self.owner}" if self.owner else f"`{dotted[1:]}`"


def frozen(value: Any) -> Any:
    """A value whose type is free, its arrays made tuples."""
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return value


def _any_wrong(values: Any) -> bool:
    return any(value is WRONG for value in values)


def _rewrite(value: Any, kind: Any) -> str:
    """How to write a value that was only spelled as another type."""
    if isinstance(value, str) and kind in (int, float, bool):
        number = value.strip().lower()
        plain = number.lstrip("+-").replace(".", "", 1 if kind is float else 0).isdecimal()
        if plain if kind is not bool else number in ("true", "false"):
            return f"write `{number}` without quotes"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"write `{int(value)}`"
    return ""
