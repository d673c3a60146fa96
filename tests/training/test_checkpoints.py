"""Which checkpoint a run goes on from."""

from pathlib import Path

import pytest

from safe_framework.errors import DataError
from safe_framework.training.checkpoints import FORMAT, latest_complete, mark_complete


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    """A checkpoint with one file in it."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "adapter.safetensors").write_bytes(b"weights")
    if whole:
        mark_complete(place)
    return place


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    """Law: newest means the highest step, not the last name in the alphabet."""
    places = [checkpoint(tmp_path, step) for step in (9, 100, 20)]
    assert latest_complete(tmp_path) == places[1]


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


@pytest.mark.parametrize("written", ["", "0\n", "99\n"], ids=["none", "older", "newer"])
def test_one_of_another_version_is_refused_by_name(tmp_path: Path, written: str) -> None:
    """Law: a newest checkpoint of another format is an error that names it; nothing is removed."""
    checkpoint(tmp_path, 4)
    other = checkpoint(tmp_path, 5)
    (other / "complete").write_text(written)
    named = f"format {written.strip()}" if written else "names no checkpoint format"
    with pytest.raises(DataError, match=named) as caught:
        latest_complete(tmp_path)
    assert str(other) in caught.value.message
    assert caught.value.hint == "start anew with --no-resume"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-4", "checkpoint-5"]
    (other / "complete").write_text(f"{FORMAT}\n")
    assert latest_complete(tmp_path) == other


def test_the_marker_says_the_format(tmp_path: Path) -> None:
    """Law: a whole checkpoint says its format in a file that is there only when it is whole."""
    place = checkpoint(tmp_path, 1)
    assert (place / "complete").read_text() == f"{FORMAT}\n"
    assert {path.name for path in place.iterdir()} == {"adapter.safetensors", "complete"}
