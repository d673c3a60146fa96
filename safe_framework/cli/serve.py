"""``safe serve ADAPTER``: OpenAI's chat completions, with the adapter's senses."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from safe_framework.errors import SafeError


def add(commands: Any) -> None:
    """Declare the command."""
    text = "answer chat completions over HTTP, with the adapter's senses"
    parser = commands.add_parser(
        "serve",
        help=text,
        description=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder of an adapter or of its run, or a recipe"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0 for one that is free")
    parser.add_argument("--name", help="by which requests ask for the model; else the adapter's")
    parser.add_argument(
        "--engine",
        choices=["transformers", "vllm"],
        default="transformers",
        help="what decodes; vllm needs an environment of its own",
    )
    parser.add_argument(
        "--vllm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of vLLM's engine, such as max_model_len=2048",
    )
    parser.add_argument("--device", metavar="DEVICE", help="such as cuda")
    parser.add_argument(
        "--api-key", metavar="KEY", help="that requests must bring; also $SAFE_API_KEY"
    )
    _add_limits(parser.add_argument_group("limits"))
    parser.set_defaults(run=_run, loads_models=True, interrupted="closed")


def _add_limits(group: Any) -> None:
    for name, default, text in (
        ("--max-batch", 8, "rows decoded together, with samples and without each"),
        ("--queue", 64, "requests that may wait; more are refused with 429"),
        ("--max-tokens", 1024, "longest answer"),
        ("--max-pixels", 16_000_000, "of a picture"),
        ("--max-samples", 16, "sounds, pictures and other samples of a request"),
        ("--max-answers", 8, "`n` of a request"),
        ("--max-body-mib", 32, "size of a request in MiB"),
    ):
        group.add_argument(name, type=_positive, default=default, metavar="N", help=text)
    group.add_argument(
        "--max-audio-seconds",
        type=float,
        metavar="S",
        help="of a sound; `longest` of its `windows`, or 60, if not given",
    )
    group.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="from a request to its end"
    )
    group.add_argument(
        "--allow-urls",
        nargs="+",
        default=(),
        metavar="HOST",
        help="hosts from which pictures may be fetched",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _run(arguments: argparse.Namespace) -> int:
    from safe_framework.serving.address import check_address
    from safe_framework.serving.limits import Limits
    from safe_framework.serving.serve import EngineOptions, make_server, serve
    from safe_framework.serving.server import ServerOptions
    from safe_framework.utils.optional_imports import require
    from safe_framework.verification.target import open_target

    require("uvicorn", "serve", "`safe serve` needs `uvicorn`")  # before a model is loaded
    check_address(arguments.host, arguments.port)
    limits = Limits(
        body_bytes=arguments.max_body_mib * 2**20,
        audio_seconds=arguments.max_audio_seconds,
        pixels=arguments.max_pixels,
        samples=arguments.max_samples,
        answers=arguments.max_answers,
        hosts=tuple(arguments.allow_urls),
    )
    options = ServerOptions(
        queue=arguments.queue,
        timeout=arguments.timeout,
        api_key=arguments.api_key or os.environ.get("SAFE_API_KEY") or None,
        limits=limits,
    )
    engine = EngineOptions(arguments.max_batch, arguments.max_tokens)
    if arguments.engine == "vllm":
        server = _vllm_server(arguments, engine, options)
    else:
        model, folder = open_target(arguments.adapter, arguments.device)
        name = arguments.name or _name(arguments.adapter, folder)
        server = make_server(model, name, engine, options)
        if model.base_changed:
            print("stage B changed the base: without a sample, answers are the changed base's")
    served = server.model
    print(f"model {served.name}, modalities {', '.join(served.rates) or 'none'}", flush=True)
    serve(server, arguments.host, arguments.port)
    return 0


def _vllm_server(arguments: argparse.Namespace, engine: Any, options: Any) -> Any:
    """A server whose engine is vLLM's.

    Raises:
        SafeError: no adapter is named, or vLLM cannot serve it.
    """
    from safe_framework.serving.serve import make_vllm_server
    from safe_framework.serving.vllm.arguments import find_adapter

    folder = find_adapter(arguments.adapter)
    if folder is None:
        raise SafeError(
            f"`{arguments.adapter}` is no adapter, which the engine `vllm` needs",
            hint="give the folder of an adapter or of its run",
        )
    if arguments.device is not None:
        raise SafeError("`--device` is not for the engine `vllm`", hint="leave it out")
    name = arguments.name or _name(arguments.adapter, folder)
    given = dict(map(_vllm_option, arguments.vllm))
    return make_vllm_server(folder, name, engine, options, given)


def _vllm_option(text: str) -> tuple[str, Any]:
    """A name, and a value as JSON has it or else as it is written.

    >>> _vllm_option("max_model_len=2048"), _vllm_option("dtype=bfloat16")
    (('max_model_len', 2048), ('dtype', 'bfloat16'))
    """
    import json

    name, equals, value = text.partition("=")
    if not equals:
        raise SafeError(f"`--vllm {text}` has no value", hint="write NAME=VALUE")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def _name(target: str, folder: Path | None) -> str:
    """What an adapter is called: as its folder, or as its run's."""
    place = (folder or Path(target)).resolve()
    return place.parent.name if place.name == "adapter" else place.stem
