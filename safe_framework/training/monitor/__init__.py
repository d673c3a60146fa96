"""The monitor: gain and retention are measured during training, and retention is defended."""
