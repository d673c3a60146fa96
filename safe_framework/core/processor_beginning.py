"""What a text begins with that has no tokens of its own: a model cannot continue nothing."""

from __future__ import annotations

from typing import Any


def begun(tokenizer: Any, text: str) -> str:
    """The text, or the base's start token where the tokenizer makes no token of the text.

    Without a start token, the end-of-text token serves, behind which a base has seen texts begin.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if text.strip() or inner(text)["input_ids"]:
        return text
    return inner.bos_token or inner.eos_token or text
