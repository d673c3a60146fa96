"""An adapter in vLLM: its plugin, and an engine of `safe serve` above it.

vLLM keeps the base, its batches and its caches; what is ours is one operation at the input of each
fused layer, which adds to the rows of a request what its own sample gives them. Nothing here is
imported where vLLM is not.
"""
