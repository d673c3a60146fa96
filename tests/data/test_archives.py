"""Archives as data: addresses in them, folders in them, and WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from safe_framework.data.checks.recipe import check_target
from safe_framework.data.examples import read_examples, read_text_rows
from safe_framework.data.readers import iterate_rows, read_rows
from safe_framework.data.readers.archives import unpacked
from safe_framework.errors import DataError
from tests.data.test_readers import ENCODERS, RATE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for what is unpacked and what `datasets` writes."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path / "cache"


def sound(hertz: float = 440.0) -> bytes:
    """The content of a WAV file."""
    held = io.BytesIO()
    values = 0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 10) / RATE)
    soundfile.write(held, values, RATE, format="WAV", subtype="FLOAT")
    return held.getvalue()


def picture(colour: str) -> bytes:
    """The content of a PNG file."""
    held = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(held, "PNG")
    return held.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip of these files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of these files, compressed as its name says."""
    ending = path.name.rpartition(".tar")[2].lstrip(".") if ".tar" in path.name else "gz"
    with tarfile.open(path, f"w:{ending}") as archive:  # type: ignore[call-overload]  # a mode
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


Write = Callable[[Path, Mapping[str, bytes]], Path]
ARCHIVES: dict[str, Write] = {
    "a.zip": write_zip,
    "a.tar": write_tar,
    "a.tar.gz": write_tar,
    "a.tgz": write_tar,
    "a.tar.xz": write_tar,
}
CLIPS = {"clips/a.wav": sound(300), "clips/b.wav": sound(600)}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_row_names_a_file_in_an_archive(tmp_path: Path, name: str) -> None:
    """Law: `zip://INNER::ARCHIVE`, relative to the rows or whole, gives the sound of the file."""
    archive = ARCHIVES[name](tmp_path / name, CLIPS)
    scheme = "zip" if name.endswith("zip") else "tar"
    addresses = [f"{scheme}://clips/a.wav::{name}", f"{scheme}://clips/b.wav::{archive}"]
    rows = [{"question": "q", "answer": "a", "audio": one} for one in addresses]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [
        one.samples["audio"].values for one in read_examples(tmp_path / "train.jsonl", ENCODERS)
    ]
    for values, content in zip(found, CLIPS.values(), strict=True):
        assert np.array_equal(values, soundfile.read(io.BytesIO(content), dtype="float32")[0])


def test_a_picture_may_be_in_an_archive(tmp_path: Path) -> None:
    """Law: pictures of rows are read from archives, too."""
    write_zip(tmp_path / "seen.zip", {"red.png": picture("red")})
    (tmp_path / "texts.jsonl").write_text('{"image": "zip://red.png::seen.zip", "text": "t"}')
    (row,) = read_text_rows(tmp_path / "texts.jsonl")
    assert row.images[0].open().getpixel((0, 0)) == (255, 0, 0)


FAULTS = [
    ("zip://c.wav::a.zip", "train.jsonl:1: `audio`: the archive `.*a.zip` has no file `c.wav`"),
    ("zip://c.wav::no.zip", "train.jsonl:1: `audio`: the archive `.*no.zip` does not exist"),
    ("zip://c.wav::bad.zip", "train.jsonl:1: `audio`: the archive `.*bad.zip` cannot be unpacked"),
    ("tar://c.wav::bad.tar", "train.jsonl:1: `audio`: the archive `.*bad.tar` cannot be unpacked"),
    ("zip://c.wav", "train.jsonl:1: `audio` is at `zip://c.wav`, which is not read from there"),
    ("zip://c.wav::https://x.org/a.zip", "which is not read from there"),
    ("zip://../../train.jsonl::a.zip", "has no file|cannot be read"),
]


@pytest.mark.parametrize(("address", "words"), FAULTS)
def test_what_an_archive_lacks_is_named(tmp_path: Path, address: str, words: str) -> None:
    """Law: a file or archive that is missing or broken is an error with row and field."""
    write_zip(tmp_path / "a.zip", CLIPS)
    for name in ("bad.zip", "bad.tar"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more" * 9)
    row = {"question": "q", "answer": "a", "audio": address}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=words):
        read_examples(tmp_path / "train.jsonl", ENCODERS)


def test_an_archive_is_unpacked_once_and_anew_when_it_changes(tmp_path: Path) -> None:
    """Law: the cache holds what the archive holds now, and is written once for it."""
    archive = write_zip(tmp_path / "a.zip", {"x.txt": b"1"})
    first = unpacked(archive)
    (first / "mark").touch()
    assert (unpacked(archive) / "mark").exists()
    write_zip(archive, {"x.txt": b"two"})
    assert (unpacked(archive) / "x.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar"])
def test_nothing_is_written_outside(tmp_path: Path, cache: Path, archive: str, name: str) -> None:
    """Law: a name that leads out of the archive writes nothing outside of its folder."""
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    path = ARCHIVES[archive](inside / archive, {name: b"x", "good.txt": b"y"})
    try:
        folder = unpacked(path)
    except DataError:
        folder = cache / "none"
    written = {p for p in tmp_path.rglob("out.txt")} | {*Path("/").glob("out.txt")}
    assert all(folder in p.parents for p in written)


def test_what_the_disk_has_no_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: an archive that says that it is larger than the disk is not unpacked at all."""
    from safe_framework.data.readers import archives

    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    with pytest.raises(DataError, match=r"holds 4 bytes, and the cache has room for 3\nhint"):
        unpacked(write_zip(tmp_path / "a.zip", {"x": b"1234"}))


METADATA = b'{"file_name": "a.wav", "answer": "low"}\n{"file_name": "b.wav", "answer": "high"}\n'
LOW, HIGH = sound(300), sound(600)
FOLDERS: dict[str, dict[str, bytes]] = {
    "by answer": {"low/a.wav": LOW, "high/b.wav": HIGH, "low/.DS_Store": b""},
    "a list": {"metadata.jsonl": METADATA, "a.wav": LOW, "b.wav": HIGH},
    "in a folder": {"c/metadata.jsonl": METADATA, "c/a.wav": LOW, "c/b.wav": HIGH},
    "answers in a folder": {"c/low/a.wav": LOW, "c/high/b.wav": HIGH, "__MACOSX/._a": b""},
}


@pytest.mark.parametrize("archive", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_an_archive_is_read_as_the_folder_in_it(tmp_path: Path, kind: str, archive: str) -> None:
    """Law: a folder with a list or one by answer is the same rows packed, whatever packs it."""
    path = ARCHIVES[archive](tmp_path / archive, FOLDERS[kind])
    found = read_examples(path, ENCODERS, question="what")
    assert sorted(example.answer for example in found) == ["high", "low"]
    assert all(len(example.samples["audio"].values) for example in found)


SHARD = {
    "0001.wav": sound(300), "0001.json": b'{"question": "what", "answer": "low", "kind": 3}',
    "0002.flac": sound(600), "0002.question.txt": b"which\n", "0002.answer.txt": b"high\n",
    "sub/0003.WAV": sound(900), "sub/0003.json": b'{"question": "x", "answer": "y", "audio": "no"}',
}  # fmt: skip


def test_files_of_a_name_are_a_row(tmp_path: Path) -> None:
    """Law: a WebDataset shard gives a row for each key: its JSON, its texts, its files."""
    found = read_examples(write_tar(tmp_path / "shard.tar", SHARD), ENCODERS)
    told = [(one.place, one.prompt, one.answer) for one in found]
    assert told == [
        ("shard.tar/0001", "what", "low"),
        ("shard.tar/0002", "which", "high"),
        ("shard.tar/sub/0003", "x", "y"),
    ]
    assert all(len(one.samples["audio"].values) == RATE // 10 for one in found)


def test_members_are_called_by_what_they_are(tmp_path: Path) -> None:
    """Law: pictures, texts, classes and all else have the names that fields are known by."""
    files = {
        "a.png": picture("red"), "a.txt": b" a text ", "a.cls": b"7", "a.depth.npy": b"",
        "a.npy": b"", "a.meta.json": b"[1]",
    }  # fmt: skip
    ((place, values),) = read_rows(write_tar(tmp_path / "a.tar", files))
    assert place == "a.tar/a"
    assert values == {
        "image": "a.png", "text": "a text", "label": "7", "depth": "a.depth.npy", "npy": "a.npy",
        "meta": [1],
    }  # fmt: skip


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_bad_member_costs_its_row_alone(tmp_path: Path, bad: bytes) -> None:
    """Law: JSON that cannot be read is a bad row that names its file, and others are read."""
    files = {"a.json": bad, "a.wav": b"", "b.json": b'{"text": "t"}', "b.wav": b""}
    rows = list(iterate_rows(write_tar(tmp_path / "a.tar", files)))
    assert [row.error is None for row in rows] == [False, True]
    assert str(rows[0].error).startswith("a.tar/a: `a.json`: ")


def test_a_folder_of_shards_is_all_of_them_in_order(tmp_path: Path) -> None:
    """Law: where a folder holds archives alone, their rows follow one another by name."""
    (tmp_path / "shards").mkdir()
    for number in (1, 0):
        write_tar(
            tmp_path / "shards" / f"{number}.tar", {"k.txt": str(number).encode(), "k.cls": b"1"}
        )
    assert [values["text"] for _, values in read_rows(tmp_path / "shards")] == ["0", "1"]


def test_an_archive_is_checked_like_a_file(tmp_path: Path) -> None:
    """Law: `safe data check ARCHIVE` looks into it."""
    path = write_zip(tmp_path / "a.zip", {**FOLDERS["by answer"], "low/c.wav": b"no sound"})
    report = check_target(str(path), longest=30.0)
    assert any("low/c.wav" in finding.place for finding in report.findings)


def test_columns_of_bytes_are_sounds_and_pictures(tmp_path: Path) -> None:
    """Law: plain binary columns of Parquet hold files, as `{bytes, path}` columns do."""
    rows = [
        {"question": "q", "answer": "a", "audio": sound(300), "image": picture("blue")},
        {"question": "q", "answer": "b", "audio": sound(600), "image": picture("red")},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = read_examples(tmp_path / "t.parquet", ENCODERS)
    assert [one.images[0].open().getpixel((0, 0)) for one in found] == [(0, 0, 255), (255, 0, 0)]
    assert all(len(one.samples["audio"].values) == RATE // 10 for one in found)


LAYOUTS = ["folder", "zip"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_audiofolder_needs_no_torchcodec(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: sounds of a dataset in files, packed or not, are decoded here from their bytes."""
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    place = tmp_path / "clips"
    (place / "train").mkdir(parents=True)
    files = {"metadata.jsonl": METADATA, "a.wav": sound(300), "b.wav": sound(600)}
    if layout == "zip":
        write_zip(place / "train" / "clips.zip", files)
    for name, content in files.items() if layout == "folder" else ():
        (place / "train" / name).write_bytes(content)
    found = read_examples(f"hf:{place}:train", ENCODERS, question="what")
    assert [one.answer for one in found] == ["low", "high"]
    assert all(len(one.samples["audio"].values) == RATE // 10 for one in found)


def test_a_dataset_of_a_script_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden text: a dataset that needs its script is refused, with where it is converted."""

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Dataset scripts are no longer supported, but found sounds.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        read_rows("hf:owner/sounds:train")
    assert str(caught.value) == (
        "the dataset `hf:owner/sounds:train` is made by a Python script, which is not run\n"
        "hint: the hub keeps most of them converted: write "
        "`hf:owner/sounds@refs/convert/parquet:SPLIT`; or save it as files"
    )
