"""A plugin whose own dependency is missing."""

import a_library_that_nobody_has  # noqa: F401  # the import must fail
