"""What is wrong with a recipe, written so that its author can fix it without reading our code."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import attrs

from safe_framework.config.toml_positions import KeyPath, Place, Span, key_positions
from safe_framework.errors import SafeError

if TYPE_CHECKING:
    from safe_framework.config.schema import Recipe

_LONGEST, _BEFORE = 200, 60
"""Letters of a line that are shown at most, and then of those before the mistake."""

_SUBJECT = re.compile(r"`([^`]+)` (.*)", re.DOTALL)


@attrs.frozen
class Finding:
    """A mistake in a document, before anyone looked where it is written.

    Attributes:
        path: keys that lead to what is wrong.
        message: what is wrong, with names in backticks and no final period.
        hint: the one thing to do about it.
        at: whether the key or the value is to be pointed at.
    """

    path: KeyPath
    message: str
    hint: str = ""
    at: Literal["key", "value"] = "value"


@attrs.frozen(order=True)
class Problem:
    """A mistake and where it is written; its text is ready to be shown."""

    line: int
    column: int
    width: int
    message: str
    hint: str
    source: str
    excerpt: str

    def __str__(self) -> str:
        gutter = f"{self.line:>4} | "
        cut = max(0, self.column - 1 - _BEFORE) if len(self.excerpt) > _LONGEST else 0
        seen = self.excerpt[cut : cut + _LONGEST]
        indent = _blank(seen[: self.column - 1 - cut])
        marked = min(max(self.width, 1), max(len(seen) - (self.column - 1 - cut), 1))
        shown = [
            f"{self.source}:{self.line}:{self.column}: {self.message}",
            f"{gutter}{seen}".rstrip(),
            f"{' ' * (len(gutter) - 2)}| {indent}{'^' * marked}",
        ]
        return "\n".join([*shown, f"hint: {self.hint}"] if self.hint else shown)


class RecipeError(SafeError, ValueError):
    """A recipe that cannot be used.

    Attributes:
        problems: every mistake that was found, in the order of the recipe's lines; empty if
            there is no recipe at all.
    """

    def __init__(self, message: str, *, hint: str = "", problems: Iterable[Problem] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> RecipeError:
        """The error that shows these problems."""
        ordered = sorted(problems)
        blocks = [str(problem) for problem in ordered]
        if len(blocks) > 1:
            blocks.append(f"{ordered[0].source} has {len(blocks)} problems")
        return cls("\n\n".join(blocks), problems=ordered)

    @classmethod
    def at(cls, recipe: Recipe, path: KeyPath, message: str, hint: str = "") -> RecipeError:
        """The error that shows one mistake where ``path`` is written in ``recipe``."""
        return cls.of(locate([Finding(path, message, hint)], recipe.text, recipe.source))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the problems, so that the error survives a worker process."""
        return _rebuild, (self.message, self.hint, self.problems)


def _rebuild(message: str, hint: str, problems: tuple[Problem, ...]) -> RecipeError:
    return RecipeError(message, hint=hint, problems=problems)


def locate(findings: Sequence[Finding], text: str, source: str) -> list[Problem]:
    """Find where each mistake is written in a document that is valid TOML."""
    places = key_positions(text)
    return [
        problem_at(_span(places, found), text, source, found.message, found.hint)
        for found in findings
    ]


def problem_at(span: Span, text: str, source: str, message: str, hint: str = "") -> Problem:
    """A mistake in ``text`` whose place is already known."""
    lines = text.replace("\r\n", "\n").split("\n")
    excerpt = lines[span.line - 1] if span.line <= len(lines) else ""
    return Problem(*span, message=message, hint=hint, source=source, excerpt=excerpt)


def locate_error(recipe: Recipe, path: KeyPath, error: Exception, owner: str) -> RecipeError:
    """Show where a recipe says what a plugin's constructor refused.

    Args:
        recipe: the recipe that was being built.
        path: the plugin's table in it, such as ``("modalities", "audio", "fusion")``.
        error: what the constructor raised; its message begins with the option's name, as in
            "`rank` must be at least 1".
        owner: whose option it is, such as "fusion adapter `lora`".
    """
    message = error.message if isinstance(error, SafeError) else str(error)
    hint = error.hint if isinstance(error, SafeError) else ""
    if match := _SUBJECT.fullmatch(message):
        option, rest = match.groups()
        return RecipeError.at(recipe, (*path, option), f"`{option}` of {owner} {rest}", hint)
    return RecipeError.at(recipe, path, f"{owner}: {message}", hint)


def rename(message: str, name: str) -> str:
    """Replace the name that a range check's message begins with by a fuller one."""
    match = _SUBJECT.fullmatch(message)
    return f"{name} {match[2]}" if match else f"{name}: {message}"


def _span(places: dict[KeyPath, Place], found: Finding) -> Span:
    """Where a path is written, or the closest table around it if it is not."""
    if place := places.get(found.path):
        return place.key if found.at == "key" else place.value
    path = found.path
    while path and path not in places:
        path = path[:-1]
    return places[path].key if path else Span(1, 1, 1)


def _blank(prefix: str) -> str:
    """As many columns of blanks as ``prefix`` takes on a terminal."""
    return "".join("\t" if letter == "\t" else " " * _width(letter) for letter in prefix)


def _width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
