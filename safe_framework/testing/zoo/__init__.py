"""Tiny random models of every type that transformers has, to test on all of them."""

from safe_framework.testing.zoo.build import CannotBuild, TinyBase, tiny
from safe_framework.testing.zoo.inputs import text_inputs
from safe_framework.testing.zoo.types import types

__all__ = ["CannotBuild", "TinyBase", "text_inputs", "tiny", "types"]
