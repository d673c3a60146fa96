"""Names that stand in a recipe for objects of Python: rows, a base, a plugin of no distribution."""

MEMORY = "memory:"
"""What such a name begins with."""


def was_in_memory(name: str) -> bool:
    """Whether a name stands for an object of Python.

    >>> was_in_memory("memory:train"), was_in_memory("train.jsonl")
    (True, False)
    """
    return name.startswith(MEMORY)
