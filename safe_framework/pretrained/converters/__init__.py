"""Checkpoints of other programs, as folders that transformers reads; imported on use."""
