"""Tiny random models of every type that transformers has, to test on all of them.

``tiny("causal", "llama")`` builds one in about a second, from its default config and general rules;
``types()`` names them all.
"""

from tests.zoo.models.build import CannotBuild, TinyBase, generates, tiny, types
from tests.zoo.models.inputs import text_inputs

__all__ = ["CannotBuild", "TinyBase", "generates", "text_inputs", "tiny", "types"]
