"""How numbers are written for people, alike in the terminal and in the report."""

from __future__ import annotations

_MINUTE, _HOUR = 60, 3600


def percent(share: float) -> str:
    """A share as a percentage, with more digits near 1, where they matter.

    >>> percent(0.5), percent(0.9981), percent(1.0)
    ('50.0 %', '99.81 %', '100 %')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    return f"{100 * share:.{2 if 0.99 < share < 1 else 1}f} %"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points.

    >>> points(0.25), points(-0.031)
    ('+25.0 points', '-3.1 points')
    """
    return f"{100 * difference:+.1f} points"


def count(number: float) -> str:
    """A number of things, short.

    >>> count(950), count(1_234_567), count(135_000_000)
    ('950', '1.23 M', '135 M')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """A number of bytes.

    >>> size(512), size(4_700_000)
    ('512 B', '4.7 MB')
    """
    return count(number).replace(" k", " kB").replace(" M", " MB").replace(" G", " GB") + (
        " B" if number < 1e3 else ""
    )


def duration(seconds: float) -> str:
    """A duration, in two units at most.

    >>> duration(4.21), duration(130), duration(7500)
    ('4.2 s', '2 min 10 s', '2 h 5 min')
    """
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"


def about(seconds: float) -> str:
    """A duration that is only estimated.

    >>> about(4.21), about(0.3), about(130)
    ('about 4 s', 'about 1 s', 'about 2 min 10 s')
    """
    whole = max(round(seconds), 1)
    return f"about {whole} s" if whole < _MINUTE else f"about {duration(whole)}"


def clock(seconds: float) -> str:
    """A duration in few letters, as clocks show it.

    >>> clock(4.21), clock(130), clock(7500)
    ('0:04', '2:10', '2:05:00')
    """
    minutes, rest = divmod(round(seconds), _MINUTE)
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
