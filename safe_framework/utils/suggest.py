"""What a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Collection


def suggest(word: str, known: Collection[str], noun: str) -> str:
    """A hint that offers the nearest of the known names, and lists them all.

    >>> suggest("whispr", ["clap", "whisper"], "encoders")
    'did you mean `whisper`? encoders: clap, whisper'
    """
    names = sorted(known)
    listed = f"{noun}: {', '.join(names) or 'none'}"
    return f"{nearest(word, names)} {listed}".strip()


def nearest(word: str, known: Collection[str], likeness: float = 0.6) -> str:
    """The question whether the nearest of the known names was meant; empty if none is near.

    Args:
        word: that is none of them.
        known: all that could be meant.
        likeness: from 0 to 1, below which a name is not near.

    >>> nearest("linaer", ["cosine", "linear"])
    'did you mean `linear`?'
    """
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"did you mean `{close[0]}`?" if close else ""
