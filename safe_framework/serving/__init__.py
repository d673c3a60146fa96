"""A model with its modalities, as a pipeline and in the browser."""
