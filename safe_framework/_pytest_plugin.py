"""Loaded by every run of pytest where the framework is installed, so it imports nothing else.

The entry point makes pytest rewrite the asserts of what is installed from a wheel; registering
them does the same for an editable install. A failed contract then shows the values it compared.
"""

import pytest

pytest.register_assert_rewrite("safe_framework.testing")
