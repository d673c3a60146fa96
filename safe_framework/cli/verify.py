"""``safe verify TARGET``: ask every law of a model, and write a certificate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from safe_framework.errors import SafeError


def add(commands: Any) -> None:
    """Declare the command."""
    text = "run a model beside its bare base, and certify that off is the base bit for bit"
    parser = commands.add_parser("verify", help=text, description=text)
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="folder of an adapter or of its run; a recipe's file or name; or a base, which is "
        "given a made-up sense: a folder, a card or a hub id",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="where to write the certificate; an adapter's goes into its folder",
    )
    parser.add_argument("--device", metavar="DEVICE", help="such as cuda; default: where it loads")
    parser.add_argument("--quick", action="store_true", help="compare fewer calls")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="ask a running server instead, and compare it with TARGET's base if one is named",
    )
    parser.add_argument("--api-key", metavar="KEY", help="of that server; also $SAFE_API_KEY")
    parser.set_defaults(run=_run, loads_models=True)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.server is not None:
        return _ask_server(arguments)
    if arguments.target is None:
        raise SafeError("`safe verify` needs a TARGET or `--server URL`")
    from safe_framework.core.adapter import CERTIFICATE
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.verification.certificate import summary
    from safe_framework.verification.target import open_target
    from safe_framework.verification.verify import verify

    console = plain_console()
    console.print(f"loading {arguments.target} ...", soft_wrap=True)
    model, folder = open_target(arguments.target, arguments.device)
    with WorkProgress(console).showing() as bars:

        def progress(label: str, done: int, total: int, note: str) -> None:
            """Say at once what it takes, and then how far it is."""
            if not done:
                console.print(f"{label}: {note}")
            bars(label, done, total, note if done else "")

        level: Any = "quick" if arguments.quick else "full"
        certificate = verify(model, calls=level, progress=progress)
    console.print(summary(certificate))
    path = arguments.json or (folder / CERTIFICATE if folder else None)
    if path is not None:
        console.print(f"certificate  {certificate.write(path)}", soft_wrap=True)
    return 0 if certificate.holds else 1


def _ask_server(arguments: argparse.Namespace) -> int:
    from safe_framework.serving.server_laws import ServerClient, server_laws
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.verification.certificate import Verdict
    from safe_framework.verification.target import open_target

    console, model = plain_console(), None
    if arguments.target is not None:
        model, _ = open_target(arguments.target, arguments.device)
    key = arguments.api_key or os.environ.get("SAFE_API_KEY") or None
    with WorkProgress(console).showing() as progress:
        laws = server_laws(ServerClient(arguments.server, key), model, progress=progress)
    for law in laws:
        line = f"{law.key}  {law.name}: {law.verdict.value}, {law.detail}"
        console.print(line, soft_wrap=True)
        for finding in law.findings:
            console.print(f"    {finding}", soft_wrap=True)
    return 1 if any(law.verdict is Verdict.FAILS for law in laws) else 0
