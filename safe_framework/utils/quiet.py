"""Loading without the progress bars and notes of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what transformers prints while it loads; downloads still show their progress."""
    hub = import_module("huggingface_hub.utils")  # by name: neither declares its types
    logging = import_module("transformers.utils.logging")
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    downloads_shown = not hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if downloads_shown:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
