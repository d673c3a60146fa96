"""Where each key and value of a TOML document is written.

``tomli`` says where a *syntax* error is, but forgets positions once parsing succeeds, so a
recipe that parses and is wrong could not be pointed at. This scanner assumes that the text
already parsed, and reads no values.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

import tomli

KeyPath = tuple[str | int, ...]
"""Keys and indices from the root of a document, such as ``("retention", 0, "weight")``."""


class Span(NamedTuple):
    """A piece of one line: 1-based line and column, and its width in characters."""

    line: int
    column: int
    width: int


class Place(NamedTuple):
    """Where a key and its value are written; the same for headers and for items of arrays."""

    key: Span
    value: Span


_BLANK = re.compile(r"(?:[\s,]|#[^\n]*)+")  # and comments, and the commas between items
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:""(?!")|"(?!"))?'
    r"|'''.*?'''(?:''(?!')|'(?!'))?"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: [^\s,\]}#]+)?")  # a date and its time may be a space apart


def key_positions(text: str) -> dict[KeyPath, Place]:
    r"""Map the path of every key and array item of valid TOML to where it is written.

    Items are counted from 0, so the second ``[[retention]]`` is ``("retention", 1)``.

    >>> key_positions('[training]\nseed = 41\n')[("training", "seed")].value
    Span(line=2, column=8, width=2)
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: dict[KeyPath, Place] = {}
        self.tables: dict[KeyPath, int] = {}  # how many [[headers]] each array of tables has had
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def scan(self) -> dict[KeyPath, Place]:
        """Every key's place, by its path."""
        table: KeyPath = ()
        while self.skip() < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
        return self.found

    def header(self) -> KeyPath:
        """Read ``[table]`` or ``[[table]]``, and give the path of what follows."""
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        self.skip()
        *parents, (name, span) = self.keys()
        path: KeyPath = ()
        for parent, place in parents:
            path = self.implied((*path, parent), place)
            if path in self.tables:  # [a.b] after [[a]] is a[-1].b
                path = (*path, self.tables[path] - 1)
        path = (*path, name)
        if brackets == 2:
            self.implied(path, span)
            self.tables[path] = self.tables.get(path, 0) + 1
            path = (*path, self.tables[path] - 1)
        self.found[path] = Place(span, span)
        self.skip()
        self.at += brackets
        return path

    def pair(self, table: KeyPath) -> None:
        """Read ``key = value`` in a table."""
        *parents, (name, span) = self.keys()
        path = table
        for parent, place in parents:
            path = self.implied((*path, parent), place)
        path = (*path, name)
        self.skip()
        self.at += 1  # the equals sign
        start = self.skip()
        self.value(path)
        self.found[path] = Place(span, self.span(start))

    def value(self, path: KeyPath) -> None:
        """Read a value, and keep the places inside it."""
        opening = self.text[self.at]
        if opening == "[":
            self.array(path)
        elif opening == "{":
            self.at += 1
            while self.text[self.skip()] != "}":
                self.pair(path)
            self.at += 1
        else:
            self.take(_STRING if opening in "\"'" else _SCALAR)

    def array(self, path: KeyPath) -> None:
        """Read an array; its items' paths end with their index."""
        self.at += 1
        index = 0
        while self.text[start := self.skip()] != "]":
            self.value((*path, index))
            self.implied((*path, index), self.span(start))
            index += 1
        self.at += 1

    def keys(self) -> list[tuple[str, Span]]:
        """Read a dotted key."""
        found = [self.key()]
        while match := _DOT.match(self.text, self.at):
            self.at = match.end()
            found.append(self.key())
        return found

    def key(self) -> tuple[str, Span]:
        """Read one part of a dotted key, and where it stands."""
        start = self.at
        return _unquote(self.take(_KEY)), self.span(start)

    def implied(self, path: KeyPath, span: Span) -> KeyPath:
        """Note a path where it is first mentioned."""
        self.found.setdefault(path, Place(span, span))
        return path

    def skip(self) -> int:
        """Pass blanks, line ends and comments; gives the offset behind them."""
        if match := _BLANK.match(self.text, self.at):
            self.at = match.end()
        return self.at

    def take(self, pattern: re.Pattern[str]) -> str:
        """Read what matches here."""
        match = pattern.match(self.text, self.at)
        assert match, f"not TOML at offset {self.at}"
        self.at = match.end()
        return match.group()

    def span(self, start: int) -> Span:
        """From ``start`` to here, or to the end of the line that it starts on."""
        line = bisect_right(self.lines, start)
        end = self.lines[line] - 1 if line < len(self.lines) else len(self.text)
        return Span(line, start - self.lines[line - 1] + 1, min(self.at, end) - start)


def _unquote(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] == '"':
        return next(iter(tomli.loads(f"{key} = 0")))
    return key
