"""A plugin of safe-framework in a distribution of its own."""
