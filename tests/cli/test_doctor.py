"""``safe doctor`` says what is installed, what is not, and what to do about it."""

import resource
import subprocess
import sys
from importlib.metadata import version

import pytest

from safe_framework.cli import doctor, main


@pytest.fixture
def torchaudio(tmp_path, monkeypatch):
    """Install a torchaudio whose source is given."""
    before = sys.modules.pop("torchaudio", None)

    def install(source):
        (tmp_path / "torchaudio.py").write_text(source)
        metadata = tmp_path / "torchaudio-9.9.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.modules.pop("torchaudio", None)
    if before is not None:
        sys.modules["torchaudio"] = before


def without(monkeypatch, *names):
    """Hide distributions from the doctor."""

    def hidden(name):
        if name in names:
            raise doctor.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", hidden)


def lines(capsys):
    """What was printed, words by line."""
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_versions_and_the_cache_are_shown(monkeypatch, tmp_path, capsys):
    """Python, the libraries that matter, and the folder of converted checkpoints."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path))
    assert main(["doctor"]) == 0
    shown = lines(capsys)
    assert ["cache", str(tmp_path)] in shown
    for name in ("torch", "transformers", "peft"):
        assert [name, version(name)] in shown


def test_a_missing_extra_says_how_to_install_it(monkeypatch, capsys):
    """An optional part is named by the smallest extra that holds it, and is no failure."""
    without(monkeypatch, "soxr", "matplotlib", "gguf")
    assert main(["doctor"]) == 0
    shown = [" ".join(words) for words in lines(capsys)]
    assert 'soxr missing: pip install "safe-framework[audio]"' in shown
    assert 'matplotlib missing: pip install "safe-framework[report]"' in shown
    assert 'gguf missing: pip install "safe-framework[gguf]"' in shown


@pytest.mark.slow
def test_a_missing_need_is_a_failure(monkeypatch, capsys):
    """Without a part that is always needed the code is 1."""
    without(monkeypatch, "peft")
    assert main(["doctor"]) == 1
    assert ["peft", "missing:", "pip", "install", '"peft"'] in lines(capsys)


@pytest.mark.slow
def test_no_distribution_is_listed_twice(capsys):
    """Extras that share a part do not repeat it."""
    main(["doctor"])
    names = [words[0] for words in lines(capsys) if words]
    assert len(names) == len(set(names))


def test_a_missing_torchaudio_is_no_trouble(monkeypatch):
    """Without it sounds are resampled by soxr."""
    without(monkeypatch, "torchaudio")
    assert doctor.torchaudio_state() == (
        "not installed: sounds are resampled by soxr, which serves as well, and only the\n"
        '  encoder `torchaudio` needs it: pip install "safe-framework[torchaudio]"'
    )


def test_a_working_torchaudio_is_shown(torchaudio):
    """One that can be imported says which it is."""
    torchaudio("__version__ = '9.9'\n")
    assert doctor.torchaudio_state() == "9.9 works"


@pytest.mark.parametrize("error", ["OSError", "RuntimeError", "ImportError"])
def test_a_broken_torchaudio_is_explained(torchaudio, error):
    """One that cannot be imported: why, what still works, what does not, and the remedy."""
    torchaudio(f"raise {error}('libcudart.so.13: cannot open shared object file')\n")
    assert doctor.torchaudio_state() == (
        f"9.9 is broken beside torch {version('torch')}: "
        "libcudart.so.13: cannot open shared object file\n"
        "  Its native library was built for another torch. It is set aside: sounds are\n"
        "  resampled by soxr, and only the encoder `torchaudio` does not work. A program that\n"
        "  imports models of transformers before the framework needs any fails, since\n"
        "  transformers imports torchaudio wherever it is installed.\n"
        "hint: `pip uninstall torchaudio`, or install the build that matches torch"
    )


@pytest.mark.slow
def test_bfloat16_works_here():
    """The product itself is tried; the suite's own environment keeps it from ending Python."""
    assert doctor.bfloat16_state() == "works on the CPU"


@pytest.mark.slow
def test_a_forbidden_instruction_is_found(monkeypatch):
    """Without that setting the doctor survives whatever the processor does, and says which."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    known = ("works on the CPU", "a matrix product ends Python")
    assert doctor.bfloat16_state().startswith(known)


def test_a_product_that_ends_python_says_the_fix():
    """A process that dies of an illegal instruction: the cause, and the fix in one line."""
    state = doctor.bfloat16_state("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert state == (
        "a matrix product ends Python: the processor announces an instruction and forbids it\n"
        "hint: `export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` before Python starts"
    )


def test_a_product_that_cannot_be_tried_says_why():
    """Any other end is reported by its last line."""
    state = doctor.bfloat16_state("raise ImportError('no torch')")
    assert state == "cannot be tried: ImportError: no torch"


def test_what_has_worked_is_not_tried_again(tmp_path):
    """A product that worked is noted, by program and environment; one that failed is not."""
    fails = doctor.bfloat16_state("raise ImportError('no')", tmp_path)
    assert doctor.bfloat16_state("raise ImportError('no')", tmp_path) == fails
    assert not list(tmp_path.rglob("*"))
    marker = tmp_path / "ran"
    program = f"open({str(marker)!r}, 'a').write('x')"
    for _ in range(2):
        assert doctor.bfloat16_state(program, tmp_path) == "works on the CPU"
    assert marker.read_text() == "x"


def test_it_takes_no_more_than_three_seconds(tmp_path, monkeypatch):
    """The whole command, once it has run before, by the processor's clock."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "safe_framework.cli", "doctor"]
    subprocess.run(command, check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
