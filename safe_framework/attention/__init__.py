"""Cross-attention, for fusion adapters to be built from."""

from safe_framework.attention.cross_attention import (
    CrossAttention,
    CrossAttentions,
    Given,
    attend,
    observed,
    unit_rms,
)

__all__ = ["CrossAttention", "CrossAttentions", "Given", "attend", "observed", "unit_rms"]
