"""From the text of a recipe to a checked :class:`Recipe`, or to every mistake in it at once."""
