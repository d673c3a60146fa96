"""Pretrained checkpoints: a folder, a hub id, or a card that names a package which holds one."""

from safe_framework.checkpoints.card import Card, read_card
from safe_framework.checkpoints.location import cache_folder, locate
from safe_framework.checkpoints.pretrained import load_pretrained
from safe_framework.checkpoints.quiet import quietly

__all__ = ["Card", "cache_folder", "load_pretrained", "locate", "quietly", "read_card"]
