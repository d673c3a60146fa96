"""HTML in which plain text cannot be anything but text, and Matplotlib figures as inline SVG.

Figures take their colours from the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from safe_framework.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_VOID = frozenset({"br", "img", "meta"})


class Markup(str):
    """Text that is HTML already; any other string is escaped where it is put into HTML."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Markup:
    """One HTML element.

    >>> element("p", "a < b ", element("b", "& c"), id="x")
    '<p id="x">a &lt; b <b>&amp; c</b></p>'

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


_VARIABLES = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--soft)",
    "#0a0b03": "var(--accent)",
    "#0a0b04": "var(--wrong)",
    "#0a0b05": "var(--paper)",
}
_LIGHT = {
    "var(--ink)": "#1c1b19",
    "var(--soft)": "#66625a",
    "var(--accent)": "#0b6b6b",
    "var(--wrong)": "#b5471b",
    "var(--paper)": "#fcfbf9",
}
INK, SOFT, ACCENT, WRONG, PAPER = _VARIABLES
"""Stand-ins for the page's colours: what is drawn in them follows light and dark."""

_STYLE: Any = {  # Matplotlib types its keys as a long list of literals
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.facecolor": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def figure(
    draw: Callable[[Figure], None],
    *,
    name: str,
    width: float,
    height: float,
    alt: str,
    caption: str,
) -> Markup:
    """A ``<figure>`` with an inline SVG, the same bytes for the same drawing.

    Args:
        draw: draws on an empty figure.
        name: makes the identifiers in the SVG unique within the page.
        width: in inches.
        height: in inches.
        alt: what a reader who does not see it is told.
        caption: shown above it.

    Raises:
        DataError: Matplotlib is not installed.
    """
    picture = element(
        "div", _svg(draw, name, width, height), class_="picture", role="img", aria_label=alt
    )
    return element("figure", element("figcaption", caption), picture)


def svg_file(draw: Callable[[Figure], None], *, name: str, width: float, height: float) -> str:
    """The same drawing as an SVG file of its own, in the page's light colours.

    Raises:
        DataError: Matplotlib is not installed.
    """
    written = _drawn(draw, name, width, height, background=_LIGHT["var(--paper)"])
    for stand_in, variable in _VARIABLES.items():
        written = written.replace(stand_in, _LIGHT[variable])
    return written


def _svg(draw: Callable[[Figure], None], name: str, width: float, height: float) -> Markup:
    return _inline(_drawn(draw, name, width, height, background="none"), width)


def _drawn(
    draw: Callable[[Figure], None], name: str, width: float, height: float, *, background: str
) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            f"a report needs `matplotlib`, which cannot be imported: {error}",
            hint="pip install 'safe-framework[report]'",
        ) from error
    written = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has it
        picture = Figure(figsize=(width, height), layout="constrained", facecolor=background)
        draw(picture)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        picture.savefig(written, format="svg", metadata=no_metadata)
    return written.getvalue()


def _inline(svg: str, width: float) -> Markup:
    """Keep what a page needs: no prologue, name spaces, names of groups or fixed size."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("xlink:href", "href")
    points = f"max-width: {96 * width:.0f}px"
    svg = re.sub(r'<svg width="\S+" height="\S+"', f'<svg style="{points}"', svg, count=1)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return Markup(svg)
