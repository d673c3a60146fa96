"""Data: samples and their files, manifests, collation."""
