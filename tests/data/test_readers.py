"""Rows of every kind of file: the same rows whatever holds them."""

import csv
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from safe_framework.data.audio import check_waveform
from safe_framework.data.examples import read_examples, read_samples, read_text_rows
from safe_framework.data.readers import READERS, iterate_rows, read_rows
from safe_framework.errors import DataError
from safe_framework.testing.toys import ToyEncoder

ROWS: list[dict[str, Any]] = [
    {"question": "What, here?", "answer": 'a "tone"', "audio": "a.wav"},
    {"question": "And\nthere?", "answer": "é", "audio": None},
]
RATE = 8000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` writes out of the user's cache, which other processes use."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


class Listener(ToyEncoder):
    """An encoder of sound."""

    sampling_rate = RATE

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        """Nothing that matters here, but its refusals."""
        for index, sample in enumerate(samples):
            check_waveform(sample, f"`samples[{index}]`", "listener", RATE)
        return {}


ENCODERS = {"audio": Listener()}


def write_csv(path: Path) -> None:
    """``ROWS``."""
    lines = [
        "question,answer,audio",
        '"What, here?","a ""tone""",a.wav',
        '"And\nthere?",é,',
    ]
    path.write_text("\r\n".join(lines) + "\r\n", "utf-8", newline="")


def write_tsv(path: Path) -> None:
    """``ROWS``."""
    lines = ["question\tanswer\taudio", 'What, here?\t"a ""tone"""\ta.wav', '"And\nthere?"\té\t']
    path.write_text("\n".join(lines), "utf-8", newline="")


def write_jsonl(path: Path) -> None:
    """``ROWS``."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")


def write_parquet(path: Path) -> None:
    """``ROWS``."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    ".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_tsv, ".parquet": write_parquet,
}  # fmt: skip


def tone(path: Path, rate: int = RATE, seconds: float = 0.5) -> np.ndarray[Any, Any]:
    """A sound in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = 0.4 * np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate)
    soundfile.write(path, values, rate)
    return values


def test_every_reader_is_tried() -> None:
    """Law: what follows tries each ending that is known."""
    assert WRITERS.keys() == READERS.keys()


@pytest.mark.parametrize("ending", WRITERS)
def test_the_rows_do_not_depend_on_the_file(tmp_path: Path, ending: str) -> None:
    """Law: the same table gives the same rows from any kind of file, also within a folder."""
    WRITERS[ending](tmp_path / f"train{ending}")
    assert [values for _, values in read_rows(tmp_path / f"train{ending}")] == ROWS
    WRITERS[ending](tmp_path / f"metadata{ending}")
    assert [values for _, values in read_rows(tmp_path)] == ROWS


@pytest.mark.parametrize(("ending", "numbers"), [(".csv", [2, 3]), (".parquet", [1, 2])])
def test_a_row_is_named_as_an_editor_shows_it(
    tmp_path: Path, ending: str, numbers: list[int]
) -> None:
    """Law: a row of text is named by the line on which it begins, one of Parquet by its number."""
    WRITERS[ending](tmp_path / f"train{ending}")
    found = [where for where, _ in read_rows(tmp_path / f"train{ending}")]
    assert found == [f"train{ending}:{number}" for number in numbers]


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3"])
def test_sounds_of_every_format_come_at_the_encoders_rate(tmp_path: Path, ending: str) -> None:
    """Law: WAV, FLAC, OGG and MP3 are read, and resampled to what the encoder takes."""
    soundfile.write(tmp_path / f"a{ending}", 0.4 * np.sin(np.arange(16000) / 20), 16000)
    (tmp_path / "train.csv").write_text(f"question,answer,audio\nq,a,a{ending}\n")
    (example,) = read_examples(tmp_path / "train.csv", ENCODERS)
    sample = example.samples["audio"]
    assert sample.sampling_rate == RATE
    assert len(sample.values) / RATE == pytest.approx(1.0, abs=0.15)  # MP3 pads by its frames
    assert np.abs(sample.values).max() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,a\n1,2\n", r"^train\.csv:1: the first line must name every column once"),
        ("a,\n1,2\n", r"^train\.csv:1: the first line must name every column once"),
        ("a,b\n1,2\n1,2,3\n", r"^train\.csv:3: the row has 3 cells, the first line names 2\nhint"),
        ("a,b\n1\n", r"^train\.csv:2: the row has 1 cells, the first line names 2\nhint"),
        ('a,b\n"1"x,2\n', r"^train\.csv:2: not CSV: "),
        (
            "a;b\n1;2\n",
            r":1: the first line names one column, `a;b`\nhint: .*not by ';'$",
        ),
        ("sep=;\na;b\n1;2\n", r"^train\.csv:1: the first line names one column"),
        ("a\tb\n1\t2\n", r"not by '\\t', or call the file \.tsv$"),
        ("a,b\n", r"has no rows"),
        ("", r"has no rows"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, content: str, words: str) -> None:
    """Law: what is wrong in a CSV file is reported with its line."""
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / "train.csv")


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    """Law: a file that only ends like Parquet is an error that names it."""
    (tmp_path / "train.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"train\.parquet` cannot be read as Parquet"):
        read_rows(tmp_path / "train.parquet")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    """Law: the error lists what is read."""
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(DataError, match=r"no kind of data file .*\nhint: use \.jsonl, \.csv"):
        read_rows(tmp_path / "train.xlsx")


def test_a_folder_for_each_answer_is_data(tmp_path: Path) -> None:
    """Law: the folder of a file is its answer; the recipe's question is asked of all."""
    for name in ("piano/a.wav", "piano/b.wav", "flute/a.wav"):
        tone(tmp_path / name)
    (tmp_path / "piano/.hidden").touch()
    examples = read_examples(tmp_path, ENCODERS, "Q: {question}", question="What is it?")
    assert [example.answer for example in examples] == ["flute", "piano", "piano"]
    assert {example.prompt for example in examples} == {"Q: What is it?"}
    assert [e.samples.keys() for e in examples] == [{"audio"}] * 3
    assert examples[0].place == f"{tmp_path.name}/flute/a.wav"


def test_a_folder_with_two_lists_or_nothing_is_refused(tmp_path: Path) -> None:
    """Law: which list holds is never guessed, and an empty folder is an error."""
    with pytest.raises(DataError, match="has no rows"):
        read_rows(tmp_path)
    for ending in (".csv", ".jsonl"):
        WRITERS[ending](tmp_path / f"metadata{ending}")
    with pytest.raises(DataError, match=r"has two lists: metadata\.jsonl, metadata\.csv\nhint"):
        read_rows(tmp_path)


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    """Law: `fields` says what a field is called in the data; another's old name is gone."""
    tone(tmp_path / "a.wav")
    row = {"q": "what", "label": "tone", "answer": "not this", "path": "a.wav"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    names = {"question": "q", "answer": "label", "audio": "path"}
    (example,) = read_examples(tmp_path / "train.jsonl", ENCODERS, fields=names)
    assert (example.prompt, example.answer, list(example.samples)) == ("what", "tone", ["audio"])
    (read,) = read_text_rows(tmp_path / "train.jsonl", fields={"text": "label"})
    assert read.text == "tone"


def as_dataset(folder: Path) -> datasets.Dataset:
    """Sound, image and a class label as the library keeps them."""
    tone(folder / "a.wav", rate=16000)
    Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(folder / "a.png")
    held: Mapping[str, Any] = {
        "audio": [{"bytes": (folder / "a.wav").read_bytes(), "path": None}, None],
        "picture": [{"bytes": (folder / "a.png").read_bytes(), "path": None}] * 2,
        "answer": [1, 0],
        "question": ["which?", "which?"],
    }
    kinds = {
        "audio": datasets.Audio(decode=False),
        "picture": datasets.Image(decode=False),
        "answer": datasets.ClassLabel(names=["bell", "drum"]),
    }
    found = datasets.Dataset.from_dict(held)
    for column, kind in kinds.items():
        found = found.cast_column(column, kind)
    return found


@pytest.mark.parametrize("kind", ["saved", "parquet", "streamed"])
def test_datasets_bring_their_samples_with_them(tmp_path: Path, kind: str) -> None:
    """Law: sounds and images in the rows are read; a class has its name; null is absent."""
    found = as_dataset(tmp_path)
    source: Path | str = tmp_path / "held"
    if kind == "saved":
        found.save_to_disk(str(source))
    else:
        (tmp_path / "held").mkdir()
        found.to_parquet(tmp_path / "held/train.parquet")
        source = f"hf:{tmp_path}/held:train" if kind == "streamed" else source / "train.parquet"
    class_names = {} if kind != "parquet" else {"answer": "question"}  # plain Parquet has numbers
    encoders = {**ENCODERS, "picture": ToyEncoder()}
    examples = read_examples(source, encoders, fields=class_names, question="which?")
    assert [sorted(example.samples) for example in examples] == [["audio", "picture"], ["picture"]]
    assert examples[0].samples["audio"].seconds == pytest.approx(0.5)
    assert examples[0].samples["audio"].sampling_rate == RATE
    assert examples[1].samples["picture"].tolist() == [[[7] * 3] * 3] * 2
    assert not examples[0].files
    if kind != "parquet":
        assert [example.answer for example in examples] == ["drum", "bell"]
    assert len(read_samples(source, "picture", ToyEncoder())) == 2


def test_a_slice_of_a_stream_stops_there(tmp_path: Path) -> None:
    """Law: rows beyond the slice are never read; numbers are those of the whole dataset."""
    lines = [json.dumps({"text": f"row {number}"}) for number in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    rows = list(iterate_rows(f"hf:{tmp_path}:train[1:3]"))
    assert [(row.place.rpartition(":")[2], row.values["text"]) for row in rows] == [
        ("2", "row 1"), ("3", "row 2"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["hf:some/name", "hf::train", "hf:a/b:train[x]"])
def test_a_dataset_must_be_named_whole(name: str) -> None:
    """Law: a source without a split is an error that shows how to write one."""
    with pytest.raises(DataError, match=r"does not name a dataset\nhint: write `hf:owner/name:tr"):
        list(iterate_rows(name))


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Law: the library's own message is passed on, with the source."""
    with pytest.raises(DataError, match=r"the dataset `hf:.*gone:train` cannot be read: "):
        list(iterate_rows(f"hf:{tmp_path}/gone:train"))


def test_plain_files_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: JSONL and CSV are read without `datasets`; the others say what to install."""
    write_jsonl(tmp_path / "a.jsonl")
    write_csv(tmp_path / "a.csv")
    (tmp_path / "a.parquet").touch()
    for name in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert read_rows(tmp_path / "a.jsonl")
    assert read_rows(tmp_path / "a.csv")
    for source in (tmp_path / "a.parquet", "hf:some/name:train"):
        with pytest.raises(DataError, match=r"\nhint: pip install 'safe-framework\[data\]'"):
            read_rows(source)


def test_bad_rows_are_left_out_only_on_request(tmp_path: Path) -> None:
    """Law: rows that cannot be used stop the reading, or are listed, each with its position."""
    tone(tmp_path / "a.wav")
    good = {"question": "q", "answer": "a", "audio": "a.wav"}
    lines = [json.dumps(good), "{", json.dumps({**good, "audio": "b.wav"}), json.dumps(good)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"^train\.jsonl:2"):
        read_examples(tmp_path / "train.jsonl", ENCODERS)
    skipped: list[DataError] = []
    examples = read_examples(tmp_path / "train.jsonl", ENCODERS, skipped=skipped)
    assert [example.place for example in examples] == ["train.jsonl:1", "train.jsonl:4"]
    assert [error.message.split(": ")[0] for error in skipped] == [
        "train.jsonl:2:2",
        "train.jsonl:3",
    ]


def test_data_of_bad_rows_alone_is_an_error(tmp_path: Path) -> None:
    """Law: leaving rows out never leaves nothing silently."""
    (tmp_path / "train.jsonl").write_text("{\n{\n")
    with pytest.raises(DataError, match="has no rows"):
        read_text_rows(tmp_path / "train.jsonl", skipped=[])


def test_reading_is_lazy() -> None:
    """Law: importing the readers imports neither `datasets` nor pyarrow."""
    code = (
        "import sys, safe_framework.data.readers\n"
        "sys.exit(sorted({'datasets', 'pyarrow'} & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_foreign_samples_that_the_encoder_refuses_are_left_out(tmp_path: Path) -> None:
    """Law: if bad rows are left out, samples without a task are tried on their encoder too."""
    tone(tmp_path / "a.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(80, np.nan), RATE, subtype="FLOAT")
    lines = [json.dumps({"audio": name}) for name in ("nan.wav", "a.wav")]
    (tmp_path / "foreign.jsonl").write_text("\n".join(lines))
    skipped: list[DataError] = []
    found = read_samples(tmp_path / "foreign.jsonl", "audio", Listener(), skipped=skipped)
    assert len(found) == 1
    (error,) = skipped
    assert error.message.startswith("foreign.jsonl:1: ")
    assert "NaN" in error.message


def test_litter_of_other_programs_is_no_row(tmp_path: Path) -> None:
    """Law: what systems, notebooks and downloads leave is neither an answer nor a sample."""
    for name in (
        "piano/a.wav", "flute/a.wav", ".ipynb_checkpoints/a.wav", "__MACOSX/a.wav",
        "piano/Thumbs.db", "piano/.DS_Store", "flute/desktop.ini", "flute/._a.wav",
        "$RECYCLE.BIN/a.wav", "System Volume Information/a.wav", "@eaDir/a.wav", "piano/a.wav~",
        "piano/a.wav.part", "flute/b.wav.crdownload", "flute/~$a.wav", "flute/#a.wav#",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = sorted(row["file_name"] for _, row in read_rows(tmp_path))
    assert names == ["flute/a.wav", "piano/a.wav"]


def test_several_splits_are_refused_by_name(tmp_path: Path) -> None:
    """Law: a folder of several splits says which there are, and how to name one."""
    one = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"several splits: test, train\nhint: .* `saved/test`$"):
        read_rows(tmp_path / "saved")
    assert [row["text"] for _, row in read_rows(tmp_path / "saved" / "train")] == ["a", "b"]


def test_a_sound_may_be_named_by_its_address(tmp_path: Path) -> None:
    """Law: `file://` is read as the path that it is; another address is refused as one."""
    soundfile.write(tmp_path / "a b.wav", np.full(80, 0.25), RATE)
    row = {"question": "q", "answer": "a", "audio": (tmp_path / "a b.wav").as_uri()}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (example,) = read_examples(tmp_path / "rows.jsonl", ENCODERS)
    assert example.samples["audio"].values.shape == (80,)
    for address in ("zip://a.wav", "https://example.org/a.wav", "file://host/a.wav"):
        (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "audio": address}))
        with pytest.raises(DataError, match=r"^rows.jsonl:1: `audio` is at `.*\nhint: download"):
            read_examples(tmp_path / "rows.jsonl", ENCODERS)


@given(st.lists(st.tuples(st.text(), st.text("ab,\"\n\r\t ")), min_size=1, max_size=5),
       st.sampled_from([".csv", ".tsv"]))  # fmt: skip
def test_whatever_csv_can_hold_is_read_as_it_was_written(
    rows: list[tuple[str, str]], ending: str
) -> None:
    """Law: cells with quotes, separators and line ends come back, an empty one as nothing."""
    held = io.StringIO(newline="")
    writer = csv.writer(held, delimiter="," if ending == ".csv" else "\t")
    writer.writerows([("first", "second"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{ending}")
        path.write_bytes(held.getvalue().encode("utf-8", "replace"))
        found = [tuple(row.values()) for _, row in read_rows(path)]
    replaced = [[cell.encode("utf-8", "replace").decode() or None for cell in row] for row in rows]
    assert found == [tuple(row) for row in replaced]


def skipping(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a file, and what is said of the rows that are left out."""
    skipped: list[DataError] = []
    texts = [row.text for row in read_text_rows(path, skipped=skipped)]
    return texts, [error.message for error in skipped]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('"he said "hi" twice"', "texts.csv:3: not CSV: "),
        ('"row 2', "texts.csv:3: not CSV: a quote is opened and not closed"),
        ("a,b", "texts.csv:3: the row has 2 cells"),
    ],
)
def test_a_row_that_is_no_csv_costs_itself_alone(tmp_path: Path, bad: str, said: str) -> None:
    """Law: the rows behind a stray or an open quote are read, and the bad one is named."""
    path = tmp_path / "texts.csv"
    path.write_text(f"text\nfirst\n{bad}\nthird\nfourth\n")
    texts, left_out = skipping(path)
    assert texts == ["first", "third", "fourth"]
    assert len(left_out) == 1
    assert left_out[0].startswith(said)
    with pytest.raises(DataError, match=re.escape(said)):
        read_text_rows(path)


def test_a_cell_may_be_as_long_as_an_article(tmp_path: Path) -> None:
    """Law: no cell is too long."""
    path = tmp_path / "texts.csv"
    path.write_text("text\nfirst\n" + "word " * 40_000 + "\nlast\n")
    assert [len(row.text) for row in read_text_rows(path)] == [5, 200_000, 4]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"text": "bad \\ud83d"}', "texts.jsonl:2: `\\ud83d` is half a character"),
        ('{"text": "big", "id": ' + "9" * 5000 + "}", "texts.jsonl:2: a number in it is too long"),
        ('{"text": "deep", "x": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply"),
    ],
)
def test_json_that_python_does_not_hold_is_a_bad_row(tmp_path: Path, bad: str, said: str) -> None:
    """Law: what cannot become a text or a number costs its row alone, which is named."""
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "good"}}\n{bad}\n{{"text": "\\ud83d\\ude00"}}\n')
    texts, left_out = skipping(path)
    assert texts == ["good", "\U0001f600"]
    assert len(left_out) == 1
    assert said in left_out[0]


def test_what_a_dataset_lacks_on_this_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a library that `datasets` misses is an error of the framework that names it."""

    def refuse(*_: object, **__: object) -> None:
        """As it does where sound is to be encoded."""
        raise ImportError("please install 'torchcodec'")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"`hf:clips:train` cannot be read: .*'torchcodec'"):
        read_rows("hf:clips:train")
