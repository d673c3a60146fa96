"""Foreign samples: the file that names them, and the set that ships."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from safe_framework.data.examples import read_samples
from safe_framework.data.readers import read_rows
from safe_framework.errors import DataError
from safe_framework.utils.catalogue import recipe_path
from tests.support.toys import ToyEncoder

SHIPPED = recipe_path("quickstart").parents[1] / "data"


def clips(part: str, folder: str = "foreign") -> list[Path]:
    """The files of one part."""
    table = SHIPPED / folder / f"{part}.jsonl"
    return [table.parent / row["audio"] for _, row in read_rows(table)]


def test_train_and_test_share_no_sound() -> None:
    """Law: no clip of one part has the bytes of one of another part, or of the task."""
    parts = [clips("train"), clips("test"), clips("train", "instruments")]
    digests = [{hashlib.sha256(c.read_bytes()).hexdigest() for c in part} for part in parts]
    assert [len(part) for part in digests] == [25, 23, 180]
    assert len(set.union(*digests)) == sum(map(len, digests))


def test_every_clip_is_one_second_and_named_once() -> None:
    """Law: the folder holds the named clips alone, each a mono second at 16 kHz."""
    named = clips("train") + clips("test")
    assert sorted(named) == sorted((SHIPPED / "foreign/clips").glob("*"))
    for clip in named:
        wave, rate = soundfile.read(clip)
        assert (wave.shape, rate) == ((16_000,), 16_000)
        assert 0.5 < np.abs(wave).max() < 1.2


def test_the_provenance_names_every_clip() -> None:
    """Law: the page says of each clip in which part it is and where it comes from."""
    page = (SHIPPED / "foreign/PROVENANCE.md").read_text("utf-8")
    for part in ("train", "test"):
        for clip in clips(part):
            assert f"| `{clip.stem.replace('-', '_')}` | {part} | " in page


def test_rows_without_the_modality_are_passed_over(tmp_path: Path) -> None:
    """Law: of a file for several modalities, each reads the rows that name a sample of it."""
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    rows = [{"touch": "a.npy"}, {"smell": "b.npy"}]
    (tmp_path / "foreign.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (sample,) = read_samples(tmp_path / "foreign.jsonl", "touch", ToyEncoder())
    assert np.array_equal(sample, np.ones((2, 4)))
    with pytest.raises(DataError, match=r"has a `taste`\nhint: add a field `taste`"):
        read_samples(tmp_path / "foreign.jsonl", "taste", ToyEncoder())
