"""The command ``safe``: one file for each of its commands.

Whatever a command needs beyond names is imported inside it, so that help comes at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from safe_framework.cli import (
    cache,
    calibrate,
    check,
    compare,
    compose,
    data,
    doctor,
    fetch,
    generate,
    new,
    pick,
    play,
    probe,
    report,
    run,
    serve,
    show,
    sweep,
    verify,
)
from safe_framework.cli import list as list_
from safe_framework.cli.warnings import folded_warnings
from safe_framework.errors import SafeError
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

_COMMANDS = (
    list_,
    show,
    check,
    data,
    cache,
    compose,
    probe,
    run,
    calibrate,
    sweep,
    report,
    compare,
    pick,
    play,
    serve,
    generate,
    verify,
    fetch,
    new,
    doctor,
)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_ROOM_HINT = "hint: make room, or name another disk by `SAFE_CACHE` and the run's folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0, 1 for an error, 130 for an interrupt."""
    _print_in_any_encoding()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return 0
    if arguments.loads_models:
        set_aside_broken_torchaudio()
    try:
        with folded_warnings():
            code: int = arguments.run(arguments)
    except SafeError as error:
        if os.environ.get("SAFE_DEBUG") == "1":
            raise
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM or os.environ.get("SAFE_DEBUG") == "1":
            raise
        place = f" to `{error.filename}`" if error.filename else ""
        print(f"nothing can be written{place}: {error.strerror}\n{_ROOM_HINT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{arguments.interrupted}", file=sys.stderr)
        return 130
    return code


def _print_in_any_encoding() -> None:
    """Let a terminal or a pipe without UTF-8 show a question mark where it has no such letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safe",
        description="Add a modality to a frozen model, and keep bit for bit what it was.",
        epilog="SAFE_DEBUG=1 shows the traceback of an error.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.set_defaults(interrupted="interrupted", loads_models=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"safe-framework {version('safe-framework')}")
        parser.exit()
