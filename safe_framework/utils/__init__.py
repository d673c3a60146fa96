"""Helpers that know nothing of models: files, hashes, tensors, progress, formats."""
