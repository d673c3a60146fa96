"""``safe play ADAPTER``: try a sense in the browser, beside the base."""

from __future__ import annotations

import argparse
from typing import Any

from safe_framework.errors import SafeError


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
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument(
        "--port", type=int, default=7860, help="default: 7860; 0 for one that is free"
    )
    parser.set_defaults(run=_run, loads_models=True, interrupted="closed")


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.serving.address import check_address
    from safe_framework.serving.conversation import MAX_BYTES
    from safe_framework.serving.playground import needed_gradio, playground
    from safe_framework.verification.target import open_target

    needed_gradio()  # before a model is loaded
    check_address(arguments.host, arguments.port)
    model, _ = open_target(arguments.adapter)
    modality = arguments.modality or next(iter(model.modalities))
    model.modality(modality)
    page = playground(
        model, modality, question=arguments.question, max_new_tokens=arguments.max_new_tokens
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
    return 0
