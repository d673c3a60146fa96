"""``safe serve``: an adapter behind HTTP, until it is told to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from safe_framework.core.model import SafeModel
from safe_framework.pretrained.base_processor import takes_images
from safe_framework.serving.chat_requests import ServedModel
from safe_framework.serving.embedded import EmbeddedEngine
from safe_framework.serving.server import Server, ServerOptions
from safe_framework.utils.optional_imports import require

ENGINES = ("transformers", "vllm")
"""What can be asked for by ``--engine``."""


@attrs.frozen
class EngineOptions:
    """How an engine is set up.

    Attributes:
        max_batch: rows that are decoded together: so many without samples, and so many with.
        max_tokens: of an answer.
    """

    max_batch: int = 8
    max_tokens: int = 1024


def served_model(model: SafeModel, name: str) -> ServedModel:
    """What requests may name of a model."""
    config: Any = model.base.config
    return ServedModel(
        name,
        {one: encoder.sampling_rate for one, encoder in model.encoders.items()},
        takes_images(model.base_processor),
        config.get_text_config().vocab_size,
        {
            one: encoder.windows.longest / encoder.sampling_rate
            for one, encoder in model.encoders.items()
            if encoder.windows is not None and encoder.sampling_rate is not None
        },
    )


def make_server(
    model: SafeModel,
    name: str,
    engine: EngineOptions | None = None,
    options: ServerOptions | None = None,
) -> Server:
    """A server whose engine answers already.

    Args:
        model: that answers.
        name: by which requests ask for it.
        engine: how it answers.
        options: of the server.

    Raises:
        SafeError: the base asks for what the engine does not do.
    """
    engine, options = engine or EngineOptions(), options or ServerOptions()
    embedded = EmbeddedEngine(model, max_batch=engine.max_batch, max_tokens=engine.max_tokens)
    server = Server(
        embedded.start(), served_model(model, name), options, answering=2 * engine.max_batch
    )
    embedded.rows_in_step = server.metrics.step
    return server


def make_vllm_server(
    folder: Path,
    name: str,
    engine: EngineOptions | None = None,
    options: ServerOptions | None = None,
    vllm: Mapping[str, Any] | None = None,
) -> Server:
    """A server whose engine is vLLM's, and answers already.

    Args:
        folder: the adapter's.
        name: by which requests ask for it.
        engine: how it answers.
        options: of the server.
        vllm: options of vLLM's engine, by its own names.

    Raises:
        DataError: vLLM is not installed, or one of the versions is another one.
        AdapterError: the adapter asks for what this engine does not do.
    """
    from safe_framework.serving.vllm.versions import check_versions

    check_versions()
    from safe_framework.serving.vllm.adapter import load_adapter
    from safe_framework.serving.vllm.arguments import engine_arguments
    from safe_framework.serving.vllm.engine import VllmEngine

    engine, options = engine or EngineOptions(), options or ServerOptions()
    engine_arguments(folder)  # refuses what cannot be served before anything is loaded
    model = load_adapter(str(folder))
    made = VllmEngine(
        model, folder, max_batch=engine.max_batch, max_tokens=engine.max_tokens, options=vllm
    )
    return Server(made.start(), served_model(model, name), options, answering=2 * engine.max_batch)


def serve(server: Server, host: str, port: int) -> None:
    """Answer until a signal ends it: what runs is finished, and nothing new is taken.

    Args:
        server: whose engine runs.
        host: that is listened on.
        port: of it; 0 for one that is free.

    Raises:
        DataError: the extra ``serve`` is not installed.
    """
    uvicorn = require("uvicorn", "serve", "`safe serve` needs `uvicorn`")
    logging.getLogger("safe_framework.serving").setLevel(logging.INFO)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        server.app(), host=host, port=port, log_level="warning", access_log=False,
        server_header=False, limit_concurrency=server.room + 256, timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, int(server.options.timeout)),
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again at the end
    try:
        _Announcing(uvicorn, config).run()
    finally:
        signal.signal(signal.SIGTERM, before)


class _Announcing:
    """Uvicorn's server, which says where it listens once it does."""

    def __init__(self, uvicorn: Any, config: Any) -> None:
        class Listening(uvicorn.Server):  # type: ignore[misc]  # an optional import
            """The same."""

            async def startup(self, sockets: Any = None) -> None:
                """Begin to listen, and say so."""
                await super().startup(sockets=sockets)
                for one in self.servers:
                    for socket in one.sockets:
                        host, port = socket.getsockname()[:2]
                        print(f"listening on http://{host}:{port}", flush=True)

        self.run = Listening(config).run
