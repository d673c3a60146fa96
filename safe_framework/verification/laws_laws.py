"""One file for each law: a function that asks it of a bench and gives a verdict."""
