"""The retention monitor: gain and retention are measured while training goes on, and defended."""
