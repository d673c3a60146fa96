"""``safe generate ADAPTER``: answer a file of questions, with the adapter's senses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    text = "answer the rows of a file; the same command goes on where one was killed"
    parser = commands.add_parser("generate", help=text, description=text)
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder of an adapter or of its run, or a recipe"
    )
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="ROWS",
        help="rows with a `question` or `messages`, and samples by modality",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="ANSWERS", help="a line of JSON for each row"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="longest answer; default: 64"
    )
    parser.add_argument(
        "--gate",
        type=_strength,
        metavar="G",
        help="from 0 to 1, or `auto`; default: the adapter's own",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest"
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="default: the base's own")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled; default: 0")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="rows decoded together; default: 8"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew")
    parser.add_argument("--device", metavar="DEVICE", help="such as cuda")
    parser.set_defaults(
        run=_run, loads_models=True, interrupted="stopped; the same command goes on"
    )


def _strength(text: str) -> Any:
    """A number, or ``auto``."""
    return text if text == "auto" else float(text)


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.serving.engine import Sampling
    from safe_framework.serving.offline import GenerateOptions, generate
    from safe_framework.utils.console import plain_console
    from safe_framework.utils.hashing import tensors_fingerprint
    from safe_framework.utils.progress import WorkProgress
    from safe_framework.verification.target import open_target

    console = plain_console()
    model, _ = open_target(arguments.adapter, arguments.device)
    sampling = Sampling(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )
    options = GenerateOptions(
        sampling, arguments.gate, arguments.max_batch, restart=arguments.restart
    )
    identity = tensors_fingerprint(model.adapter_tensors())
    with WorkProgress(console).showing() as progress:
        failed = generate(
            model, arguments.data, arguments.out, options, identity=identity, progress=progress
        )
    console.print(f"answers  {arguments.out}", soft_wrap=True)
    if failed:
        console.print(f"{failed} rows could not be answered; their lines say why")
    return 1 if failed else 0
