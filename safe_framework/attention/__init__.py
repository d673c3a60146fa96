"""Cross-attention, for fusion adapters to be built from."""

from safe_framework.attention.cross_attention import (
    CrossAttention,
    CrossAttentions,
    LinearFromWeight,
    attend,
    observed,
    unit_rms,
)

__all__ = [
    "CrossAttention",
    "CrossAttentions",
    "LinearFromWeight",
    "attend",
    "observed",
    "unit_rms",
]
