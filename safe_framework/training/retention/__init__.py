"""Batches beside distractors, and what the base says on them."""
