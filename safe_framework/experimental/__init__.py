"""What works and is not held by the laws of the core: each method behind one door."""
