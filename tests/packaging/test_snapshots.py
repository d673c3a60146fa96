"""What others build on changes on purpose alone: it is compared with snapshots that are kept."""

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SNAPSHOTS = {"api": "public names, plugins and commands", "schema": "the tables of a recipe"}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_public_things_are_as_in_the_snapshot(root: Path, name: str) -> None:
    """Law: names, signatures, entry points, commands, and a recipe's keys stay what they were."""
    script = [sys.executable, str(root / ".ci" / f"{name}.py")]
    now = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    path = Path(__file__).with_name(f"{name}.json")
    kept = path.read_text("utf-8")
    assert len(json.loads(kept)) > 10
    changes = difflib.unified_diff(kept.splitlines(), now.splitlines(), "kept", "now", "", "", 1)
    assert now == kept, (
        f"{SNAPSHOTS[name]} changed:\n" + "\n".join(changes) + "\nif that is wanted, say it in "
        f"CHANGELOG.md and run: python .ci/{name}.py > {path.relative_to(root)}"
    )
