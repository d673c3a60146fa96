"""What pytest loads of the framework in every run, and what a failed contract shows."""

import ast
import os
import subprocess
import sys

import pytest

FAILING = """\
import torch
from hypothesis import Phase, settings
settings.register_profile("quick", phases=[Phase.generate])
settings.load_profile("quick")
from safe_framework import Projector, Tokens
from safe_framework.testing import ProjectorContract

class Short(Projector):
    tokens = 7
    def forward(self, frames):
        values = torch.zeros(len(frames.values), 3, self.hidden, dtype=frames.values.dtype)
        return Tokens(values, frames.mask[:, :1].repeat(1, 3))

class TestShort(ProjectorContract):
    def make(self, frame_dim, hidden_size):
        projector = Short()
        projector.hidden = hidden_size
        return projector
"""


def run(code, *arguments):
    """What a new interpreter prints; it must end well."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_light():
    """``import safe_framework.testing`` loads neither torch, Hypothesis, pytest nor NumPy."""
    heavy = "{'torch', 'hypothesis', 'pytest', 'numpy', 'transformers'}"
    code = f"import sys, safe_framework.testing; print(sorted({heavy} & set(sys.modules)))"
    assert run(code) == "[]\n"


def test_the_pytest_plugin_is_light():
    """A run of pytest that tests something else loads nothing of the framework but its name."""
    code = (
        "import os, sys, pytest\n"
        "os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'\n"  # others may load what they like
        "own = ['-p', 'safe_framework._pytest_plugin']\n"
        "pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', *own, '/dev/null'])\n"
        "names = {'torch', 'numpy', 'attrs', 'safe_framework._pytest_plugin'}\n"
        "print(sorted(names & set(sys.modules)))\n"
        "print([name for name in sys.modules if name.startswith('safe_framework.')])\n"
    )
    loaded, ours = run(code).splitlines()[-2:]
    assert loaded == "['safe_framework._pytest_plugin']"
    version = {"safe_framework.utils", "safe_framework.utils.versions"}  # with the package
    assert set(ast.literal_eval(ours)) == version | {"safe_framework._pytest_plugin"}


@pytest.mark.slow
def test_a_failed_contract_shows_its_values(tmp_path):
    """The asserts of the contracts are rewritten: a failure names both sides."""
    (tmp_path / "test_short.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_short.py"]
    done = subprocess.run(
        [*command, "-k", "tokens_shape"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "assert 7 in (None, 3)" in done.stdout
