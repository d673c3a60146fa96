"""Which checkpoint a run goes on from."""

from pathlib import Path

import pytest

from safe_framework.errors import SafeError
from safe_framework.training.trainer import latest_complete, mark_complete


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    """A checkpoint with one file in it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if whole:
        mark_complete(path)
    return path


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    """Law: newest means the highest step, not the last name in the alphabet."""
    written = [checkpoint(tmp_path, step) for step in (9, 100, 20)]
    assert latest_complete(tmp_path) == written[1]


def test_a_broken_one_is_removed(tmp_path: Path) -> None:
    """Law: a checkpoint without the marker is ignored and removed; whole ones stay."""
    whole, broken = checkpoint(tmp_path, 5), checkpoint(tmp_path, 6, whole=False)
    assert latest_complete(tmp_path) == whole
    assert (whole.exists(), broken.exists()) == (True, False)


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    """Law: a folder that is missing, empty or holds only broken ones has no checkpoint."""
    assert latest_complete(tmp_path / "gone") is None
    assert latest_complete(tmp_path) is None
    checkpoint(tmp_path, 1, whole=False)
    assert latest_complete(tmp_path) is None


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Law: what is not a checkpoint of a step is neither taken nor removed."""
    others = [tmp_path / "notes", tmp_path / "checkpoint-best"]
    for other in others:
        other.mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    assert latest_complete(tmp_path) is None
    assert all(other.exists() for other in others)
    assert (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize("marker", ["", "1", "3"])
def test_one_of_another_format_is_refused_by_name(tmp_path: Path, marker: str) -> None:
    """Law: what another version wrote is neither resumed from nor removed; the error says so."""
    old = checkpoint(tmp_path, 7)
    (old / "complete").write_text(marker)
    with pytest.raises(SafeError) as refused:
        latest_complete(tmp_path)
    assert str(refused.value) == (
        f"the checkpoint `{old}` was written by another version of safe-framework\n"
        "hint: start anew with --no-resume"
    )
    assert old.is_dir()
