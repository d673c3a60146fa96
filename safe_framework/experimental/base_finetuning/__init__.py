"""Stage B: the base itself is changed too, on request, and every output says so."""
