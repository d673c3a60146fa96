"""``safe play ADAPTER``: try a sense in the browser, beside the base, or on a running recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_framework.errors import SafeError

if TYPE_CHECKING:
    from safe_framework.core.model import SafeModel


def add(commands: Any) -> None:
    """Declare the command."""
    text = "open a page that asks base and adapter side by side, and converses"
    parser = commands.add_parser("play", help=text, description=text)
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder of an adapter or of its run, or a recipe"
    )
    parser.add_argument("--modality", metavar="NAME", help="default: the first")
    parser.add_argument("--question", default="", metavar="TEXT", help="what is asked at first")
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, metavar="N", help="longest answer; default: 32"
    )
    parser.add_argument(
        "--listen",
        nargs="?",
        type=float,
        const=None,
        default=False,
        metavar="SECONDS",
        help="ask about the last seconds of the microphone; default: 30, or what the sense takes",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="listen without a page: to a sound file, or `-`, raw 16-bit mono sound in the input",
    )
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="of the raw sound; default: what the sense takes"
    )
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="from one question to the next with --from; default: as many as are heard",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument(
        "--port", type=int, default=7860, help="default: 7860; 0 for one that is free"
    )
    parser.set_defaults(run=_run, loads_models=True, interrupted="closed")


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.verification.target import open_target

    if arguments.source is None:
        _check_page(arguments)
    model, _ = open_target(arguments.adapter)
    modality = arguments.modality or next(iter(model.modalities))
    model.modality(modality)
    if arguments.source is None:
        _open_page(model, modality, arguments)
    else:
        _listen(model, modality, arguments)
    return 0


def _listen(model: SafeModel, modality: str, arguments: argparse.Namespace) -> None:
    """Answer on the console while a recording goes on."""
    from safe_framework.serving.listening import answers, filed, listen, piped
    from safe_framework.utils.formatting import clock

    seconds = _seconds(arguments)
    if arguments.source == "-":
        own = listen(model, modality, seconds).sampling_rate
        # A thread may still wait for more of it when all ends: Python's buffer would not let it.
        raw = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115  # as above
        chunks = piped(raw, own if arguments.rate is None else arguments.rate)
    else:
        chunks = filed(Path(arguments.source))
    found = answers(
        model,
        modality,
        chunks,
        arguments.question,
        seconds=seconds,
        every=arguments.every,
        max_new_tokens=arguments.max_new_tokens,
    )
    for second, answer in found:
        print(f"{clock(second):>7}  {' '.join(answer.split())}", flush=True)


def _seconds(arguments: argparse.Namespace) -> float | None:
    """That are listened to, where somebody said how many."""
    return None if arguments.listen is False else arguments.listen


def _check_page(arguments: argparse.Namespace) -> None:
    """Refuse, before a model is loaded, what a page cannot be opened with."""
    from safe_framework.serving.address import check_address
    from safe_framework.serving.playground import needed_gradio

    for name in ("rate", "every"):
        if getattr(arguments, name) is not None:
            raise SafeError(f"`--{name}` is of what `--from` listens to", hint="name its SOURCE")
    needed_gradio()
    check_address(arguments.host, arguments.port)


def _open_page(model: SafeModel, modality: str, arguments: argparse.Namespace) -> None:
    from safe_framework.serving.conversation import MAX_BYTES
    from safe_framework.serving.playground import playground

    page = playground(
        model,
        modality,
        question=arguments.question,
        max_new_tokens=arguments.max_new_tokens,
        listening=arguments.listen is not False,
        seconds=_seconds(arguments),
    )
    try:
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port or None,
            share=False,
            max_file_size=MAX_BYTES,
        )
    except OSError as error:  # Gradio's, which says that no port is free, whatever it was
        raise SafeError(
            f"the page did not start on port {arguments.port} within some seconds",
            hint="start it again, or name another port with --port",
        ) from error
