"""A torchaudio that does not match torch: everything else works, and its absence is explained.

A fake one stands for the wheel; each test has a process of its own, since modules are imported
once in each.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = "raise OSError('libcudart.so.13: cannot open shared object file')\n"
SET_ASIDE = (
    "from safe_framework.utils.optional_imports import set_aside_broken_torchaudio as set_aside; "
    "set_aside()"
)
WARNING = "torchaudio cannot be imported and is set aside, see `safe doctor`: libcudart.so.13"


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
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_breaks_transformers_otherwise(broken: Path) -> None:
    """The danger is real: without the framework, what every model of sound imports fails."""
    done = python(broken, "import transformers.audio_utils")
    assert "libcudart.so.13" in done.stderr.splitlines()[-1]


def test_importing_the_framework_changes_nothing(broken: Path) -> None:
    """Law: ``import safe_framework`` leaves the import machinery and torchaudio alone."""
    done = python(
        broken,
        "import sys",
        "before = list(sys.meta_path)",
        "import safe_framework",
        "assert sys.meta_path == before",
        "assert 'torchaudio' not in sys.modules",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_it_is_set_aside(broken: Path) -> None:
    """Law: models load and soxr resamples; one warning, and the encoder that needs it, say why."""
    done = python(
        broken,
        "import sys",
        SET_ASIDE,
        "assert 'transformers' not in sys.modules",
        SET_ASIDE,
        "from transformers import WhisperModel",
        "import numpy as np",
        "from safe_framework.data.audio import Waveform, resample",
        "assert len(resample(Waveform(np.zeros(900), 8000), 16000).values) == 1800",
        "assert 'torchaudio.helper' not in sys.modules",
        "from safe_framework_plugins.encoders.torchaudio import TorchaudioEncoder",
        "TorchaudioEncoder(bundle='HUBERT_BASE')",
    )
    assert done.stderr.count(WARNING) == 1
    assert done.stderr.splitlines()[-2:] == [
        "safe_framework.errors.CheckpointError: the encoder `torchaudio` needs torchaudio, which "
        "cannot be imported: libcudart.so.13: cannot open shared object file",
        "hint: `safe doctor` says whether it is missing or built for another torch",
    ]


def test_it_is_set_aside_late(broken: Path) -> None:
    """Law: it is not too late where transformers was imported before."""
    done = python(broken, "import transformers", SET_ASIDE, "import transformers.audio_utils")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == 1


def test_a_recipe_is_built_beside_it(broken: Path, recipe: Callable[..., Path]) -> None:
    """Law: base, encoder and adapter are built, though each needs transformers or peft."""
    done = python(broken, f"import safe_framework; safe_framework.build({str(recipe())!r})")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == 1


def test_a_command_runs_beside_it(broken: Path) -> None:
    """Law: a command that loads models sets it aside before it imports the trainer."""
    main = "from safe_framework.cli import main"
    done = python(
        broken, main, "assert main(['run', 'absent']) == 1", "import transformers.trainer"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == 1


def test_plugins_are_made_beside_it(broken: Path, checkpoints: Path) -> None:
    """Law: a shipped plugin that needs transformers or peft can be made by itself."""
    parts = {
        "encoders.whisper": f"WhisperEncoder(model={str(checkpoints / 'whisper')!r})",
        "fusion.lora": "LoraFusion(BaseFacts(8, 1, 2))",
    }
    for module, made in parts.items():
        name = made.partition("(")[0]
        done = python(
            broken,
            "from safe_framework import BaseFacts",
            f"from safe_framework_plugins.{module} import {name}",
            made,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(WARNING) == 1
