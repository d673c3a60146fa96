"""Tiny random models of every type that transformers has, to test on all of them.

``tiny("causal", "llama")`` builds one in about a second, from its default config and general rules;
``types()`` names them all.
"""

from safe_framework.testing.zoo.build import CannotBuild, TinyBase, tiny
from safe_framework.testing.zoo.generate import generates
from safe_framework.testing.zoo.inputs import text_inputs
from safe_framework.testing.zoo.types import types

__all__ = ["CannotBuild", "TinyBase", "generates", "text_inputs", "tiny", "types"]
