"""``safe new plugin NAME --kind KIND``: a new distribution with a plugin and its tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_KINDS = ("encoder", "projector", "fusion", "retention")


def add(commands: Any) -> None:
    """Declare the command."""
    text = "write a new plugin, whose tests pass at once"
    parser = commands.add_parser("new", help=text, description=text)
    parser.add_argument("what", choices=("plugin",), metavar="plugin", help="what to write")
    parser.add_argument("name", metavar="NAME", help="of the distribution and of the plugin")
    parser.add_argument("--kind", choices=_KINDS, required=True, help="which interface it is of")
    parser.add_argument(
        "--into", type=Path, default=Path(), metavar="FOLDER", help="where to make its folder"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.cli.scaffold import write_plugin

    folder = arguments.into / arguments.name
    written = write_plugin(arguments.name, arguments.kind, arguments.into)
    print(f"wrote {folder}")
    for path in written:
        print(f"  {path.relative_to(folder)}")
    print(
        f"next:\n  cd {folder}\n  pip install -e '.[test]'\n  pytest\n"
        f"  safe show {arguments.kind} {arguments.name}"
    )
    return 0
