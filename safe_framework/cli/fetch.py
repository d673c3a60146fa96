"""``safe fetch NAME...``: have checkpoints ready before they are needed."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "make checkpoints ready in the cache, and say where each is"
    parser = commands.add_parser("fetch", help=text, description=text)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a card that `safe list` shows")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.pretrained import resolve

    for name in arguments.names:
        print(f"{name}: {resolve(name)}")
    return 0
