"""The frozen base, its modalities, and the one place where a delta is applied."""
