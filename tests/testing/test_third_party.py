"""The example of a third party's distribution, installed as a user would install it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the distribution in it, put there by pip without a network."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *options, str(EXAMPLE)], check=True, capture_output=True)
    return folder


def run(site, *command):
    """What a command prints where the distribution is installed; it must end well."""
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(site / "examples"),
    }
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=EXAMPLE, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_own_tests_pass(site):
    """Its contract, its measurements, and a recipe that uses it by name."""
    out = run(site, "-m", "pytest", "-p", "no:cacheprovider", "-v")
    for test in ("TestMelBandsEncoder::test_deterministic", "test_a_recipe_uses_it_by_name"):
        assert f"{test} PASSED" in out


def test_it_is_shown_with_the_shipped_ones_and_not_imported(site):
    """``safe list`` and ``safe show`` report its origin, line and options from its source alone."""
    code = (
        "import sys\n"
        "from safe_framework.cli import main\n"
        "assert main(['list']) == main(['show', 'encoder', 'mel-bands']) == 0\n"
        "assert main(['show', 'encoder', 'whisper']) == main(['list', '--json']) == 0\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(sorted({'mel_bands', 'torch', 'safe_framework_plugins'} & found) or None)\n"
    )
    out = run(site, "-c", code)
    assert re.search(r"  mel-bands +mel-bands 0.1.0 +Log energy of sound in mel bands", out)
    assert "      options: bands, sampling_rate, window, hop\n" in out
    assert "  bands          a whole number  40\n      width of a frame.\n" in out
