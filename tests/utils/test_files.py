"""Files and folders are whole or absent, wherever their writer stops."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from safe_framework.utils.files import atomic_folder, atomic_write


class Killed(BaseException):
    """The process ends here."""


def write_old(folder: Path) -> None:
    """The content that was there."""
    (folder / "old").write_text("old")


def write_new(folder: Path) -> None:
    """The content that replaces it."""
    (folder / "new").write_text("new")


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "content", ["é\n", "é\n".encode(), lambda part: part.write_bytes("é\n".encode())]
)
def test_a_file_is_written_with_its_folder(tmp_path: Path, content: Any) -> None:
    """Text is encoded in UTF-8, bytes are kept, and a function writes what it likes."""
    path = tmp_path / "deep" / "file.json"
    assert atomic_write(path, content) == path
    assert path.read_bytes() == "é\n".encode()
    assert names(path.parent) == ["file.json"]


def test_a_file_has_the_ordinary_permissions(tmp_path: Path) -> None:
    """As those of any file that the process creates."""
    (tmp_path / "plain").touch()
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(atomic_write(tmp_path / "file", b"").stat().st_mode) == expected


def fail(*_: Any) -> None:
    """What a full disk does."""
    raise OSError("disk gone")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Nothing lies beside it afterwards."""
    path = atomic_write(tmp_path / "file", "old")
    with pytest.raises(OSError, match="disk gone"):
        atomic_write(path, lambda part: (part.write_text("ne"), fail()))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies beside it afterwards."""
    path = atomic_write(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk gone"):
            atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def steps(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> list[str]:
    """Count what a writer does to the disk, and end the process before step ``stop``.

    Whatever runs after the end, such as a ``finally``, does nothing to the disk either.
    """
    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            if stop is not None and len(done) >= stop:
                raise Killed
            done.append(name)
            return real(*args, **options)

        return step

    for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "chmod"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    return done


def all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The number of every step of replacing a folder."""
    with monkeypatch.context() as patch:
        folder = atomic_folder(tmp_path / "counted", write_old, overwrite=True)
        done = steps(patch, None)
        atomic_folder(folder, write_new, overwrite=True)
    assert done.count("replace") == 2
    yield from range(len(done))


def test_a_writer_killed_at_any_step_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next writer finds the old folder or the new one, whole, and clears what was left."""
    for stop in all_steps(tmp_path, monkeypatch):
        folder = tmp_path / str(stop) / "folder"
        atomic_folder(folder, write_old, overwrite=True)
        with monkeypatch.context() as patch:
            steps(patch, stop)
            with pytest.raises(Killed):
                atomic_folder(folder, write_new, overwrite=True)
        found: list[list[str]] = []

        def look(_: Path, folder: Path = folder, found: list[list[str]] = found) -> None:
            found.append(names(folder))
            raise Killed

        with pytest.raises(Killed):
            atomic_folder(folder, look, overwrite=True)
        assert found in ([["old"]], [["new"]])
        assert names(folder) == found[0]
        assert names(folder.parent) == ["folder"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_cannot_be_filled_is_not_made(tmp_path: Path, overwrite: bool) -> None:
    """Nothing is left of it."""
    with pytest.raises(OSError, match="disk gone"):
        atomic_folder(tmp_path / "folder", fail, overwrite=overwrite)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["n" * 255, "n" * 245, "\U0001f600" * 60], ids=len)
def test_the_longest_names_are_written(name: str, tmp_path: Path) -> None:
    """A name that a file system allows leaves room for what is written beside it."""
    atomic_write(tmp_path / name, "file")
    assert (tmp_path / name).read_text() == "file"
    (tmp_path / name).unlink()
    atomic_folder(tmp_path / name, write_old, overwrite=True)
    atomic_folder(tmp_path / name, write_new, overwrite=True, own=lambda _: True)
    assert names(tmp_path) == [name]
    assert names(tmp_path / name) == ["new"]


def test_a_folder_without_modes_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no permissions is as good as any."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    atomic_folder(tmp_path / "folder", write_new, overwrite=True)
    assert names(tmp_path / "folder") == ["new"]


def test_a_folder_can_be_read_by_others(tmp_path: Path) -> None:
    """Though temporary folders are private."""
    folder = atomic_folder(tmp_path / "folder", write_new, overwrite=False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert names(folder) == ["new"]


def test_a_folder_that_another_process_made_first_stays(tmp_path: Path) -> None:
    """What was written meanwhile is dropped, and its writer gets an error."""
    folder = tmp_path / "folder"

    def slow(temporary: Path) -> None:
        write_new(temporary)
        atomic_folder(folder, write_old, overwrite=False)

    with pytest.raises(OSError, match="folder"):
        atomic_folder(folder, slow, overwrite=False)
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_names_alike_beside_a_folder_are_somebody_elses(tmp_path: Path) -> None:
    """Law: only what a killed writer left is cleared, not what has a name a little like it."""
    atomic_folder(tmp_path / "folder", write_old, overwrite=True)
    for name in (".folder-notes", ".folder-v1-old", ".folder-0123abcd", ".folder-0123abcd.newer"):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    (tmp_path / ".folder-0123abcd.new").mkdir()
    atomic_folder(tmp_path / "folder", write_new, overwrite=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize("first", [True, False])
def test_the_folder_that_one_stands_in_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Law: what is written to ``.`` is seen from there, and nothing is left of the old files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if not first:
        atomic_folder(Path(), write_old, overwrite=True)
    atomic_folder(Path(), write_new, overwrite=True)
    assert os.listdir() == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Law: what a link points to is written, whether it is there yet or not."""
    link = tmp_path / "folder"
    link.symlink_to(tmp_path / "disk" / "folder")
    for write, made in ((write_old, ["old"]), (write_new, ["new"])):
        atomic_folder(link, write, overwrite=True)
        assert link.is_symlink()
        assert names(tmp_path / "disk" / "folder") == made
    assert names(tmp_path / "disk") == ["folder"]


@pytest.mark.parametrize("seen", [True, False])
def test_a_mount_point_is_written_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """Law: a folder that the system does not move gets the new files, whether or not one can tell.

    It is played by a folder that ``os.replace`` refuses to move, as the system does.
    """
    folder = atomic_folder(tmp_path / "folder", write_old, overwrite=True)
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if folder in (Path(old), Path(new)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(old))
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "is_mount", lambda path: seen and path == folder)
    (folder / "mine.txt").write_text("a week of work")
    atomic_folder(folder, write_new, overwrite=True, own=lambda name: name != "mine.txt")
    assert names(folder) == ["mine.txt", "new"]
    assert names(tmp_path) == ["folder"]


TWENTY_WRITES = """
import sys
from pathlib import Path
from uuid import uuid4
from safe_framework.utils.files import atomic_folder

def write(path):
    for name in ("one", "two"):
        (path / name).write_text(str(uuid4()))

for _ in range(20):
    atomic_folder(globals().get("folder") or Path(sys.argv[1]), write, overwrite=True)
"""


def test_writers_of_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    """Law: twenty writes by each of three processes of two threads end in one whole folder."""
    folder = tmp_path / "folder"

    command = [sys.executable, "-c", TWENTY_WRITES, str(folder)]
    children = [subprocess.Popen(command) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        script = compile(TWENTY_WRITES, "writes", "exec")
        for done in [pool.submit(exec, script, {"folder": folder}) for _ in range(2)]:
            done.result()
    assert [child.wait(60) for child in children] == [0, 0]
    assert names(folder) == ["one", "two"]
    assert names(tmp_path) == ["folder"]


def test_a_writer_may_write_beside_the_folder_that_it_writes(tmp_path: Path) -> None:
    """Law: a writer within a writer does not wait for itself."""

    def both(path: Path) -> None:
        write_new(path)
        atomic_folder(tmp_path / "other", write_old, overwrite=True)

    atomic_folder(tmp_path / "folder", both, overwrite=True)
    assert names(tmp_path) == ["folder", "other"]
