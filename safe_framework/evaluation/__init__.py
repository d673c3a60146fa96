"""Measure what a modality gives and what it leaves of the base: ``metrics.json`` and a table."""
