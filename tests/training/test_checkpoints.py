"""Which checkpoint a run goes on from."""

from pathlib import Path

from safe_framework.training.trainer import latest_complete, mark_complete


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
