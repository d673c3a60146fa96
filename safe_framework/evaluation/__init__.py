"""Measure a new sense and show it: a table and ``metrics.json``; ``report`` makes the page."""
