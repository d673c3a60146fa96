"""Batches with distractors, and the base's own predictions on them."""
