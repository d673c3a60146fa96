"""Check a document against types, never coercing, and collect every mistake.

A whole number is taken where a number is wanted, and an array becomes a tuple; nothing else
changes its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import attrs

from safe_framework.config.diagnostics import Finding, rename
from safe_framework.config.options import (
    ARRAYS,
    REQUIRED,
    SCALARS,
    TABLES,
    UNIONS,
    Option,
    describe,
    example,
    items_of,
    members,
    outer,
    phrase,
    quote,
    schema_options,
)
from safe_framework.config.plugin_options import plugin_options
from safe_framework.config.toml_positions import KeyPath
from safe_framework.errors import PluginError
from safe_framework.utils.in_memory import was_in_memory
from safe_framework.utils.suggest import nearest

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
    prefix: KeyPath = ()
    owner: str = ""

    def value(self, value: Any, kind: Any, path: KeyPath) -> Any:
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

    def record(self, given: Mapping[str, Any], options: Sequence[Option], path: KeyPath) -> Any:
        """The values of the options that are given, by name, or :data:`WRONG`."""
        known = {option.name: option for option in options}
        values = {name: self.option(item, known, (*path, name)) for name, item in given.items()}
        missing = [o for o in options if o.default is REQUIRED and o.name not in given]
        for option in missing:
            self.missing(option, (*path, option.name))
        return WRONG if missing or _any_wrong(values.values()) else values

    def option(self, value: Any, known: Mapping[str, Option], path: KeyPath) -> Any:
        """The value of one key of a table."""
        option = known.get(str(path[-1]))
        if option is None:
            return self.unknown(value, known, path)
        checked = self.value(value, option.kind, path)
        if checked is not WRONG and option.check is not None:
            try:
                option.check(checked)
            except ValueError as error:
                return self.report(path, rename(str(error), self.name(path)))
        return checked

    def table(self, value: Any, schema: type, path: KeyPath) -> Any:
        """A table of the schema."""
        is_plugin = "options" in attrs.fields_dict(schema)
        if not isinstance(value, dict):
            named = is_plugin and isinstance(value, str)
            hint = f"write `{{ use = {quote(value)} }}`" if named else ""
            return self.wrong(value, schema, path, hint)
        if is_plugin:
            return self.plugin(value, schema, path)
        values = self.record(value, schema_options(schema), path)
        return WRONG if values is WRONG else schema(**values)

    def plugin(self, value: dict[str, Any], schema: type, path: KeyPath) -> Any:
        """A table whose ``use`` names a plugin, and whose other keys are mostly its options."""
        own = schema_options(schema)
        names = {option.name for option in own}
        found = self.find_plugin(value.get("use"), path, schema)
        if found is None:
            self.record({name: value[name] for name in value if name in names}, own, path)
            return WRONG
        owner, options = found
        checker = attrs.evolve(self, prefix=path, owner=owner)
        values = checker.record(value, [*options, *own], path)
        if values is WRONG:
            return WRONG
        rest = {name: values.pop(name) for name in list(values) if name not in names}
        return schema(**values, options=rest)

    def find_plugin(self, use: Any, path: KeyPath, schema: type) -> tuple[str, list[Option]] | None:
        """The owner and options of the plugin called ``use``; None if there is no such one."""
        if not isinstance(use, str):
            return None
        if was_in_memory(use):  # an object, whose options no recipe could give
            return f"`{use}`", []
        try:
            return plugin_options(path, use, schema)
        except PluginError as error:
            self.report((*path, "use"), error.message, error.hint)
            return None

    def union(self, value: Any, kind: Any, path: KeyPath) -> Any:
        """The first member that takes the value, and never None, which TOML cannot write."""
        wanted = members(kind)
        tables = [member for member in wanted if attrs.has(member)]
        if isinstance(value, dict) and len(tables) == 1:
            wanted = tables  # whose keys are told of one by one
        if len(wanted) == 1:
            return self.value(value, wanted[0], path)
        for member in wanted:
            checked = attrs.evolve(self, findings=[]).value(value, member, path)
            if checked is not WRONG:
                return checked
        return self.wrong(value, kind, path)

    def choice(self, value: Any, kind: Any, path: KeyPath) -> Any:
        """One of a few values."""
        choices = get_args(kind)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        words = [choice for choice in choices if isinstance(choice, str)]
        hint = nearest(value, words) if isinstance(value, str) else ""
        return self.wrong(value, kind, path, hint)

    def array(self, value: Any, kind: Any, path: KeyPath) -> Any:
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

    def mapping(self, value: Any, kind: Any, path: KeyPath) -> Any:
        """A table whose keys are free and whose values share a type."""
        if not isinstance(value, dict):
            return self.wrong(value, kind, path)
        wanted = get_args(kind)[1] if get_args(kind) else Any
        items = {key: self.value(item, wanted, (*path, key)) for key, item in value.items()}
        return WRONG if _any_wrong(items.values()) else items

    def scalar(self, value: Any, kind: Any, path: KeyPath) -> Any:
        """A value of exactly this type: True is an int to Python, but not to TOML."""
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if kind not in SCALARS:
            kind_name = getattr(kind, "__name__", kind)
            message = f"{self.name(path)} cannot be written in a recipe: it is a `{kind_name}`"
            return self.report(path, message, "leave it out")
        return self.wrong(value, kind, path, _rewrite(value, kind))

    def wrong(self, value: Any, kind: Any, path: KeyPath, hint: str = "") -> Any:
        """Report a value of another type than it must be."""
        message = f"{self.name(path)} must be {phrase(kind)}, not {describe(value)}"
        return self.report(path, message, hint)

    def missing(self, option: Option, path: KeyPath) -> None:
        """Report a key that has no default and is not there."""
        if attrs.has(option.kind) and len(path) == 1:
            hint = f"add a table `[{option.name}]`"
        elif outer(option.kind) in TABLES:
            hint = f"add a table `[{option.name}.NAME]`"
        else:
            shown = '{ use = "..." }' if attrs.has(option.kind) else example(option.kind)
            hint = f"add `{option.name} = {shown}`"
        self.report(path, f"{self.name(path)} is missing", hint, at="key")

    def unknown(self, value: Any, known: Mapping[str, Option], path: KeyPath) -> Any:
        """Report a key that the table does not have."""
        noun = "option" if self.owner else "table" if isinstance(value, dict) else "key"
        listed = f"{'options' if self.owner else 'keys'}: {', '.join(known)}"
        hint = nearest(str(path[-1]), known) or listed
        return self.report(path, f"unknown {noun} {self.name(path)}", hint, at="key")

    def report(
        self, path: KeyPath, message: str, hint: str = "", at: Literal["key", "value"] = "value"
    ) -> Any:
        """Add a finding, and give what stands for a wrong value."""
        self.findings.append(Finding(path, message, hint, at))
        return WRONG

    def name(self, path: KeyPath) -> str:
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
