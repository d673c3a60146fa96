"""A torchaudio that does not match torch: everything else works, and its absence is explained.

A fake one stands for the wheel; each test has a process of its own, since modules are imported
once in each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = "raise OSError('libcudart.so.13: cannot open shared object file')\n"
WARNING = "torchaudio cannot be imported and is set aside, see `safe doctor`: libcudart.so.13"
USE = "from transformers import WhisperModel, ClapModel"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a torchaudio that cannot be imported."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "helper.py").write_text("")
    (package / "__init__.py").write_text("import torchaudio.helper\n" + SOURCE)
    metadata = tmp_path / "torchaudio-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.9\n")
    return tmp_path


def python(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the folder's packages in front of all others."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_breaks_transformers_otherwise(broken: Path) -> None:
    """The danger is real: without the framework, transformers fails beside it."""
    assert "libcudart.so.13" in python(broken, USE).stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "lines",
    [("import safe_framework", USE), ("import transformers", "import safe_framework", USE)],
    ids=["first", "later"],
)
def test_it_is_set_aside(broken: Path, lines: tuple[str, ...]) -> None:
    """Law: models of transformers work, whichever was imported first, and one warning says why."""
    done = python(
        broken,
        *lines,
        "import sys",
        "import numpy as np",
        "from safe_framework.data.audio import Waveform, resample",
        "from safe_framework.optional_torchaudio import load_torchaudio",
        "assert len(resample(Waveform(np.zeros(900), 8000), 16000).values) == 1800",
        "assert 'torchaudio.helper' not in sys.modules",
        "try: load_torchaudio()",
        "except ImportError as error: print(error)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == 1
    assert done.stdout == "libcudart.so.13: cannot open shared object file\n"


def test_the_encoder_that_needs_it_says_so(broken: Path) -> None:
    """Law: the encoder `torchaudio` names the cause and the command that explains it."""
    done = python(
        broken,
        "from safe_framework_plugins.encoders.torchaudio import TorchaudioEncoder",
        "TorchaudioEncoder(bundle='HUBERT_BASE')",
    )
    assert done.stderr.splitlines()[-2:] == [
        "safe_framework.errors.CheckpointError: the encoder `torchaudio` needs torchaudio, which "
        "cannot be imported: libcudart.so.13: cannot open shared object file",
        "hint: `safe doctor` says whether it is missing or built for another torch",
    ]


def test_nothing_is_imported_before_transformers_is(broken: Path) -> None:
    """Law: `import safe_framework` does not look at torchaudio."""
    done = python(broken, "import sys, safe_framework; print('torchaudio' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")
