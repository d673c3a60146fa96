"""The command ``lm_eval`` with the models ``safe`` and ``safe-multimodal`` known to it."""

from __future__ import annotations

import sys
from importlib import import_module

from safe_framework.errors import SafeError
from safe_framework.utils.optional_imports import set_aside_broken_torchaudio

MODELS = {"safe": "SafeLM", "safe-multimodal": "SafeMultimodalLM"}
"""What the harness calls them, and the class of each."""


def main() -> int:
    """Run the harness's own command, and give the exit code of one of our errors."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except SafeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def register() -> None:
    """Make ours some of the harness's models, which it looks up in no entry point.

    Raises:
        SafeError: the harness is not installed.
    """
    set_aside_broken_torchaudio()
    try:
        import_module("lm_eval.models")  # first: it adds its own only while there is no other
    except ImportError as error:
        raise SafeError(
            f"the harness needs `lm_eval`, which cannot be imported: {error}",
            hint="pip install 'safe-framework[harness]'",
        ) from error
    from lm_eval.api.registry import model_registry

    for name, kind in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=f"safe_framework.harness.model:{kind}")


if __name__ == "__main__":
    sys.exit(main())
