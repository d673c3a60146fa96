"""Pretrained checkpoints: a folder, a hub id, or a card of the catalogue."""

from safe_framework.pretrained.cards import Card, read_card
from safe_framework.pretrained.load import load_pretrained
from safe_framework.pretrained.location import cache_folder, resolve, revision_of
from safe_framework.utils.quiet import quietly

__all__ = [
    "Card",
    "cache_folder",
    "load_pretrained",
    "quietly",
    "read_card",
    "resolve",
    "revision_of",
]
