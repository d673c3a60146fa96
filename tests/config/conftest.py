from pathlib import Path

import pytest

INSTALLED = Path(__file__).parent.parent / "installed"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the fake distributions on the path, as if pip had installed them."""
    monkeypatch.syspath_prepend(str(INSTALLED))
    return INSTALLED
