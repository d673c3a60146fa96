"""Words that say where in a text a sample is, with vectors of their own."""
