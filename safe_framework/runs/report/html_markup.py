"""HTML in which plain text cannot be anything but text.

>>> element("p", "a < b ", element("b", "& c"), id="x")
'<p id="x">a &lt; b <b>&amp; c</b></p>'
"""

from __future__ import annotations

from html import escape

_VOID = frozenset({"br", "img", "meta"})


class Markup(str):
    """Text that is HTML already; any other string is escaped where it is put into HTML."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Markup:
    """One HTML element.

    Args:
        name: of the element.
        *children: ``Markup`` goes in as it is, any other text escaped.
        **attributes: escaped; ``_`` becomes ``-``, and a trailing one (``class_``) is cut off.
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    start = f"<{name}{''.join(pairs)}>"
    return Markup(start if name in _VOID else f"{start}{join(children)}</{name}>")


def join(children: tuple[str, ...] | list[str], between: str = "") -> Markup:
    """The children one after the other, escaped where they are not ``Markup``."""
    return Markup(
        between.join(child if isinstance(child, Markup) else escape(child) for child in children)
    )
