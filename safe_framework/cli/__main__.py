"""``python -m safe_framework.cli``: the command ``safe``, as launchers of processes start it."""

from __future__ import annotations

import sys

from safe_framework.cli import main

if __name__ == "__main__":
    sys.exit(main())
