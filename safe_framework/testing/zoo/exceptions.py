"""What the general rules cannot know: fields of single types, each with its reason."""

from __future__ import annotations

from typing import Any

STARTS: dict[str, dict[str, Any]] = {}
"""Arguments of the default config, where it needs any."""

CHANGES: dict[str, dict[str, Any]] = {
    # Attention and experts every so many layers, more than there are.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}
"""Fields of a tiny config by its ``model_type``, nested configs included; merged last."""
