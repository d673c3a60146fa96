"""Rows that are in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ChainDataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterable

from safe_framework.data.audio import Waveform
from safe_framework.data.readers import MemoryRows, iterate_rows
from safe_framework.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"question": "which", "answer": "low", "level": 1},
    {"question": "which", "answer": "high", "level": 2},
]


class Mapped(TorchDataset[dict[str, Any]]):
    """Of a length, and no iterator: plain iteration would not end by itself."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index % 2]

    def __len__(self) -> int:
        return 2


class Streamed(TorchIterable[dict[str, Any]]):
    """Iterated anew each time."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


def generated() -> Iterator[dict[str, Any]]:
    """The rows, one after another."""
    yield from ROWS


def hugging_face() -> Any:
    """The rows as a dataset."""
    from datasets import Dataset

    return Dataset.from_list(ROWS)


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": generated,
    "generator function": lambda: generated,
    "torch": Mapped,
    "torch iterable": Streamed,
    "datasets": hugging_face,
    "datasets iterable": lambda: hugging_face().to_iterable_dataset(),
    "datasets in numpy": lambda: hugging_face().with_format("numpy"),
    "datasets in torch": lambda: hugging_face().with_format("torch"),
    "datasets transformed": lambda: hugging_face().with_transform(dict),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_the_same_rows(kind: str) -> None:
    """Law: whatever holds them, rows are the same whenever they are asked for, and so is a hash."""
    rows = MemoryRows(KINDS[kind](), "train")
    for _ in range(2):
        found = list(iterate_rows(rows))
        assert [dict(row.values) for row in found] == ROWS
        assert [row.place for row in found] == ["train[0]", "train[1]"]
    assert rows.digest() == MemoryRows(ROWS, "other").digest()


def test_a_class_label_is_its_name() -> None:
    """Law: a label of ``datasets`` is read as its name, as from a folder."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"answer": ClassLabel(names=["low", "high"]), "question": Value("string")})
    found = Dataset.from_list([{"answer": 1, "question": "which"}], features=features)
    (row,) = MemoryRows(found, "train")
    assert row.values["answer"] == "high"


def test_a_sound_of_datasets_is_not_decoded() -> None:
    """Law: sound comes as the bytes that lie there, so that ``datasets`` needs no decoder."""
    from datasets import Audio, Dataset

    stored = Dataset.from_list([{"audio": {"bytes": b"RIFF", "path": None}}])
    found = stored.cast_column("audio", Audio())
    (row,) = MemoryRows(found, "train")
    assert row.values["audio"]["bytes"] == b"RIFF"


def test_values_are_as_a_file_would_hold_them() -> None:
    """Law: paths, numbers of NumPy, arrays, tensors and waveforms are taken."""
    wave = Waveform(np.zeros(4, np.float32), 8000)
    given = {
        "a": Path("x.wav"), "b": np.int64(3), "c": np.zeros(2), "d": torch.ones(2), "e": wave,
        "f": [Path("y.wav"), wave], "g": np.str_("word"), "h": torch.tensor(2.5),
    }  # fmt: skip
    (row,) = MemoryRows([given], "train")
    held = row.values
    assert (held["a"], held["b"], held["g"], held["h"]) == ("x.wav", 3, "word", 2.5)
    assert held["c"]["array"].tolist() == [0, 0]
    assert held["d"]["array"].tolist() == [1, 1]
    assert held["e"]["sampling_rate"] == 8000
    assert held["f"][0] == "y.wav"
    assert held["f"][1]["array"].shape == (4,)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"a": 1}], [{"a": "1"}]),
        ([{"a": np.zeros(2)}], [{"a": np.zeros((2, 1))}]),
        ([{"a": np.zeros(2)}], [{"a": np.zeros(2, np.float32)}]),
        ([{"a": b"x"}], [{"a": b"y"}]),
        ([{"a": ["x", "y"]}], [{"a": ["xy"]}]),
        ([{"a": None}], [{}]),
        ([{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1}]),
    ],
)
def test_other_rows_have_another_hash(one: list[Any], other: list[Any]) -> None:
    """Law: rows that differ in a type, a shape, a bit or their order are told apart."""
    assert MemoryRows(one, "train").digest() != MemoryRows(other, "train").digest()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"train": [1], "test": [2]}, r"`train` is a mapping of columns \(`train`, `test`\)"),
        (3, "`train` is a `int`, of which no rows can be had"),
    ],
)
def test_what_is_no_rows_is_refused(source: Any, words: str) -> None:
    """Law: an object without rows is named, with what to give."""
    with pytest.raises(DataError, match=words):
        MemoryRows(source, "train")


def test_splits_of_datasets_are_named() -> None:
    """Law: of a dataset with splits, the fix names one."""
    from datasets import DatasetDict

    found = DatasetDict({"train": hugging_face(), "test": hugging_face()})
    with pytest.raises(DataError, match=r"splits \(`train`, `test`\).*\nhint: .*=found\['train'\]"):
        MemoryRows(found, "retention")


def test_streams_of_torch_are_chained() -> None:
    """Law: a dataset that can be iterated is, though it has a length that nothing computes."""
    rows = MemoryRows(ChainDataset([Streamed(), Streamed()]), "train")
    assert [row.values for row in rows] == [row.values for row in rows] == 2 * ROWS


@pytest.mark.parametrize("kind", [None, "numpy", "arrow", "torch"])
def test_the_format_of_a_stream_changes_no_row(kind: str | None) -> None:
    """Law: rows of a streamed dataset are Python's own values, in whatever format it gives them."""
    stream = hugging_face().to_iterable_dataset().with_format(kind)
    expected = [row.values for row in MemoryRows(hugging_face(), "train")]
    assert [row.values for row in MemoryRows(stream, "train")] == expected


def test_a_column_is_no_rows() -> None:
    """Law: values of one column are refused row by row, by their type."""
    first, *_ = MemoryRows(hugging_face()["question"], "train")
    assert "a row must be a mapping, not a `str`" in str(first.error)


@pytest.mark.parametrize("kind", ["Table", "RecordBatch"])
def test_tables_say_how_they_give_rows(kind: str) -> None:
    """Law: a table whose iteration gives columns is refused, with its own method for rows."""
    import pyarrow

    table = getattr(pyarrow, kind).from_pylist(ROWS)
    with pytest.raises(DataError, match=r"another library\nhint: give train=table.to_pylist\(\)"):
        MemoryRows(table, "train")
