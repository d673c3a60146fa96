"""The check of data finds what is planted, names it with its row, and is content with the rest."""

import json
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from torch import Tensor

from safe_framework.data.audio import check_waveform
from safe_framework.data.checks import DataReport, SampleRequirements, check_data
from safe_framework.data.checks import rows as samples_checked
from safe_framework.data.checks.findings import KINDS
from safe_framework.data.checks.near_duplicates import likeness_of
from safe_framework.data.checks.recipe import check_target
from safe_framework.data.fields import RowFields
from safe_framework.errors import SampleError
from safe_framework.testing.toys import ToyEncoder

RATE = 8000
LONGEST = 2.0


class Listener(ToyEncoder):
    """An encoder of at most three seconds of sound."""

    sampling_rate = RATE

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        """Nothing but its refusals."""
        for index, sample in enumerate(samples):
            check_waveform(sample, f"`samples[{index}]`", "listener", RATE)
            if sample.seconds > 3:
                raise SampleError(f"`samples[{index}]` is longer than 3 s", hint="cut it")
        return {}


def wave(seed: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray[Any, Any]:
    """Quiet noise, which is another for each seed."""
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate)).clip(-4, 4)


def row(name: str, answer: object = "tone", question: object = "What?") -> dict[str, Any]:
    """A row of the task."""
    return {"question": question, "answer": answer, "audio": name}


def write(path: Path, rows: Sequence[object]) -> None:
    """A JSONL file; a text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines), "utf-8")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A folder whose data have no fault."""
    for seed, name in enumerate(("a", "b", "c", "d", "e", "f")):
        soundfile.write(tmp_path / f"{name}.wav", wave(seed), RATE)
    write(tmp_path / "train.jsonl", [row("a.wav"), row("b.wav"), row("c.wav", "bell")])
    write(tmp_path / "test.jsonl", [row("d.wav"), row("e.wav", "bell")])
    write(tmp_path / "texts.jsonl", [{"text": "one"}, {"text": "two"}])
    write(tmp_path / "unseen.jsonl", [{"text": "three"}])
    return tmp_path


def check(folder: Path) -> DataReport:
    """The report on the folder."""
    names = {"train": "train", "test": "test", "retention": "texts", "retention_test": "unseen"}
    sources = {key: folder / f"{name}.jsonl" for key, name in names.items()}
    return check_data(sources, {"audio": SampleRequirements(Listener(), True, LONGEST, RATE)})


def test_sound_data_have_no_finding(sound: Path) -> None:
    """Law: nothing is found where nothing is wrong, and the rows are counted by answer."""
    report = check(sound)
    assert report.findings == ()
    assert report.counts["train"].answers == {"tone": 2, "bell": 1}
    assert report.counts["test"].samples == {"audio": 2}
    assert report.counts["train"].seconds == pytest.approx(1.5)
    assert report.counts["retention"].rows == 2


def plant(folder: Path) -> dict[tuple[str, str], str]:
    """Put one fault into each row; give each row's position and kind with words of its message."""
    loud = np.sign(wave(11))
    broken = wave(12).astype(np.float32)
    broken[7] = np.nan
    for name, values, rate in (
        ("silent", np.zeros(RATE), RATE), ("loud", loud, RATE), ("low", wave(13, rate=4000), 4000),
        ("long", wave(14, 2.5), RATE), ("endless", wave(15, 3.5), RATE),
    ):  # fmt: skip
        soundfile.write(folder / f"{name}.wav", values, rate)
    soundfile.write(folder / "nan.wav", broken, RATE, subtype="FLOAT")
    soundfile.write(folder / "copy.flac", soundfile.read(folder / "a.wav")[0], RATE)
    (folder / "torn.wav").write_bytes((folder / "a.wav").read_bytes()[:20])
    write(
        folder / "train.jsonl",
        [
            row("a.wav"), row("gone.wav"), row("torn.wav"), row("silent.wav"), row("nan.wav"),
            row("loud.wav"), row("low.wav"), row("long.wav"), row("endless.wav"),
            row("b.wav", answer=" "), row("c.wav", question=None), "{not json", row("f.wav"),
            {"question": "What?", "answer": "tone"}, row("f.wav"), row("f.wav", "bell"),
            {**row("g.wav"), "source": "bank", "speaker": "Ann"},
        ],
    )  # fmt: skip
    soundfile.write(folder / "g.wav", wave(16), RATE)
    soundfile.write(folder / "softer.wav", soundfile.read(folder / "b.wav")[0] / 3, RATE)
    write(
        folder / "test.jsonl",
        [
            row("a.wav"), row("copy.flac"), row("d.wav", "gong"), row("softer.wav"),
            {**row("e.wav"), "source": "bank", "speaker": "Bob"},
        ],
    )  # fmt: skip
    write(folder / "unseen.jsonl", [{"text": "two"}, {"text": ""}])
    return {
        ("train.jsonl:2", "missing-file"): "gone.wav",
        ("train.jsonl:3", "unreadable-file"): "torn.wav",
        ("train.jsonl:4", "silence"): "peak is 0",
        ("train.jsonl:5", "not-finite"): "1 of its 4000 numbers",
        ("train.jsonl:6", "clipped"): "100.0% of it",
        ("train.jsonl:7", "wrong-rate"): "4000 Hz",
        ("train.jsonl:8", "too-long"): "2.5 s, more than 2 s",
        ("train.jsonl:9", "too-long"): "3.5 s",
        ("train.jsonl:9", "refused"): "it is longer than 3 s",
        ("train.jsonl:10", "empty-answer"): "`answer` must be a text that is not empty, not ' '",
        ("train.jsonl:11", "empty-question"): "`question` must be a text",
        ("train.jsonl:12", "bad-row"): "not JSON",
        ("train.jsonl:14", "no-sample"): "no `audio`",
        ("train.jsonl:15", "duplicate"): "repeats train.jsonl:13",
        ("train.jsonl:16", "contradiction"): "`tone` in train.jsonl:13 and `bell` here",
        ("test.jsonl:1", "leak"): "the same file as that of train.jsonl:1 in `train`",
        ("test.jsonl:2", "leak"): "the same content as that of train.jsonl:1 in `train`",
        ("test.jsonl:3", "untrained-answer"): "`gong` is in no row of `train`",
        ("test.jsonl:4", "near-duplicate"): "nearly that of train.jsonl:10 in `train`",
        ("test.jsonl:5", "shared-source"): "1 rows have the source `bank`",
        ("unseen.jsonl:1", "leak"): "same content as that of texts.jsonl:2 in `retention`",
        ("unseen.jsonl:2", "empty-text"): "`text` must be a text",
    }


@pytest.mark.parametrize("held", [0.01, 1.0])
def test_a_long_recording_is_checked_as_a_short_one(
    held: float, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the same is found of a recording that is read piece by piece as of one read at once."""
    plant(sound)
    expected = check(sound)
    monkeypatch.setattr(samples_checked, "_HELD", held)
    assert check(sound) == expected


def test_an_hour_is_checked_in_little_memory(tmp_path: Path) -> None:
    """Law: no more of a recording is held, the longer it is."""
    rate = 1000
    values = wave(0, 3600, rate).astype(np.float32)
    soundfile.write(tmp_path / "hour.wav", values, rate)
    expected = SampleRequirements(None, True, 4000.0)
    tracemalloc.start()
    sample, wrong = samples_checked.open_sample(tmp_path / "hour.wav", expected)
    assert sample is not None
    wrong += samples_checked.sample_problems(sample, expected)
    likeness = likeness_of(sample, "audio")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert wrong == []
    assert likeness is not None
    assert likeness.wave is not None
    assert len(likeness.wave) == 16_000
    assert (sample.seconds, sample.sampling_rate) == (3600.0, rate)
    assert peak < values.nbytes / 2


def test_every_planted_fault_is_found_and_named(sound: Path) -> None:
    """Law: all faults are reported at once, each with its row, kind and fix; and no others."""
    planted = plant(sound)
    report = check(sound)
    found = {(finding.place, finding.kind): finding for finding in report.findings}
    assert found.keys() == planted.keys()
    assert len(found) == len(report.findings) >= 12
    assert [where for where, words in planted.items() if words not in found[where].message] == []
    assert all(finding.hint for finding in report.findings)
    elsewhere = {"unreadable-data", "unread-field", "unseen-picture", "several-frames"}
    assert {kind for _, kind in planted} == set(KINDS) - elsewhere


def test_warnings_are_no_errors(sound: Path) -> None:
    """Law: what may be meant so is a warning; what spoils training or its measures an error."""
    soundfile.write(sound / "a.wav", np.zeros(RATE), RATE)
    report = check(sound)
    assert [finding.severity for finding in report.findings] == ["warning"]
    assert report.errors == 0


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe\x00"])
def test_data_that_cannot_be_read_do_not_hide_the_rest(sound: Path, content: Any) -> None:
    """Law: a source that is missing, empty or no text is one finding; the others are checked."""
    train = sound / "train.jsonl"
    train.unlink()
    if content is not None:
        train.write_bytes(content if isinstance(content, bytes) else content.encode())
    write(sound / "test.jsonl", [row("gone.wav")])
    kinds = [finding.kind for finding in check(sound).findings]
    assert kinds[:2] == ["unreadable-data", "missing-file"]


def test_stages_may_train_on_the_same_rows(sound: Path) -> None:
    """Law: what several stages train on is no leak, and what one of them answers is trained."""
    write(sound / "stage.jsonl", [row("a.wav"), row("f.wav", "gong")])
    write(sound / "test.jsonl", [row("d.wav", "gong"), row("a.wav")])
    keys = {"train": "train", "curriculum[0].train": "stage", "test": "test"}
    sources = {key: sound / f"{name}.jsonl" for key, name in keys.items()}
    report = check_data(sources, {"audio": SampleRequirements(Listener(), True, LONGEST, RATE)})
    assert [(one.place, one.kind) for one in report.findings] == [("test.jsonl:2", "leak")]


def test_the_same_array_twice_is_a_leak(tmp_path: Path) -> None:
    """Law: samples that are no sounds are compared by content too, and emptiness is seen."""
    np.save(tmp_path / "a.npy", np.arange(4.0))
    np.save(tmp_path / "b.npy", np.arange(4.0))
    np.save(tmp_path / "c.npy", np.zeros(4))
    rows = {"train": ["a.npy", "c.npy"], "test": ["b.npy"]}
    for key, names in rows.items():
        write(tmp_path / f"{key}.jsonl", [{**row("", "x"), "audio": name} for name in names])
    sources = {key: tmp_path / f"{key}.jsonl" for key in rows}
    report = check_data(sources, {"audio": SampleRequirements(None, False, LONGEST)})
    assert [(f.place, f.kind) for f in report.findings] == [
        ("train.jsonl:2", "silence"), ("test.jsonl:1", "leak"),
    ]  # fmt: skip


def test_one_file_distinguishes_its_own_samples(sound: Path) -> None:
    """Law: without a recipe, the fields that name sounds or arrays are found by their endings."""
    plant(sound)
    np.save(sound / "touch.npy", np.arange(4.0))
    write(sound / "one.jsonl", [{**row("low.wav"), "touch": "touch.npy"}, row("gone.wav")])
    report = check_target(str(sound / "one.jsonl"), longest=LONGEST, rate=RATE)
    assert [finding.kind for finding in report.findings] == ["wrong-rate", "missing-file"]
    assert report.counts["train"].samples == {"audio": 1, "touch": 1}


def test_texts_alone_are_texts(sound: Path) -> None:
    """Law: a file of texts is checked as texts, and needs no answers."""
    assert check_target(str(sound / "texts.jsonl"), longest=LONGEST).findings == ()


def test_a_folder_of_answers_needs_no_question(sound: Path) -> None:
    """Law: a folder is checked without a recipe's question, and counted by answer."""
    for number, name in enumerate(("bell", "drum", "drum")):
        (sound / "made" / name).mkdir(parents=True, exist_ok=True)
        soundfile.write(sound / "made" / name / f"{number}.wav", wave(20 + number), RATE)
    report = check_target(str(sound / "made"), longest=LONGEST)
    assert report.findings == ()
    assert report.counts["train"].answers == {"bell": 1, "drum": 2}


def test_the_report_is_json(sound: Path) -> None:
    """Law: programs get every finding with its severity, and the counts."""
    plant(sound)
    report = json.loads(check(sound).to_json())
    assert report["ok"] is False
    first = report["findings"][0]
    assert (first["severity"], first["data"], first["place"], first["kind"]) == (
        "error", "train", "train.jsonl:2", "missing-file",
    )  # fmt: skip
    assert report["counts"]["train"]["answers"]["tone"] == 14


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """A folder with pictures and sounds of which no two are alike."""
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        soundfile.write(tmp_path / f"{number}.wav", wave(number), RATE)
    return tmp_path


def look(folder: Path, sources: Mapping[str, list[object]], **options: Any) -> DataReport:
    """The report on rows by key of [data]."""
    for key, rows in sources.items():
        write(folder / f"{key}.jsonl", rows)
    files = {key: folder / f"{key}.jsonl" for key in sources}
    expected = {"audio": SampleRequirements(Listener(), True, LONGEST, RATE)}
    return check_data(files, expected, **options)


def seen_row(picture: object, sound: str | None = None, answer: str = "yes") -> dict[str, Any]:
    """A row of the task with a picture."""
    return {
        "question": "Is this what you hear?",
        "answer": answer,
        "image": picture,
        "audio": sound,
    }


def found(report: DataReport) -> list[tuple[str, str]]:
    """Where findings are, and of which kind."""
    return [(one.place, one.kind) for one in report.findings]


def test_pictures_are_opened_and_counted(seen: Path) -> None:
    """Law: pictures that are not there, not whole or of several frames are named with their row."""
    (seen / "torn.png").write_bytes((seen / "1.png").read_bytes()[:40])
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(seen / "two.gif", save_all=True, append_images=frames[1:])
    names = ["0.png", "gone.png", "torn.png", "two.gif", 3, ["1.png", "gone.png"]]
    rows: list[object] = [seen_row(name, "0.wav", str(n)) for n, name in enumerate(names)]
    rows[5] = {**seen_row(None, "1.wav"), "images": names[5]}
    report = look(seen, {"train": rows})
    assert found(report) == [
        ("train.jsonl:2", "missing-file"), ("train.jsonl:3", "unreadable-file"),
        ("train.jsonl:4", "several-frames"), ("train.jsonl:5", "bad-row"),
        ("train.jsonl:6", "missing-file"),
    ]  # fmt: skip
    assert [one.message.partition(":")[0] for one in report.findings[:3]] == ["`image`"] * 3
    assert report.findings[4].message.startswith("`images`: the picture `")
    assert "has 2 frames, of which the first is read" in report.findings[2].message
    assert report.findings[2].severity == "warning"
    assert all(one.hint for one in report.findings)
    assert report.counts["train"].pictures == 3


def test_texts_may_have_pictures(seen: Path) -> None:
    """Law: pictures of texts are opened and counted as those of the task are."""
    rows: list[object] = [{"text": "w", "image": "0.png"}, {"text": "v", "image": "gone.png"}]
    report = look(seen, {"retention": rows})
    assert found(report) == [("retention.jsonl:2", "missing-file")]
    assert report.counts["retention"].pictures == 1


def test_a_picture_that_is_trained_on_and_measured_is_a_leak(seen: Path) -> None:
    """Law: the same content in what is trained on and what is held out is found, by any name."""
    (seen / "copy.png").write_bytes((seen / "0.png").read_bytes())
    report = look(
        seen,
        {
            "train": [seen_row("0.png", "0.wav"), seen_row("1.png", "1.wav")],
            "test": [seen_row("copy.png", "2.wav"), seen_row("2.png", "3.wav")],
            "retention": [{"text": "w", "image": "0.png"}, {"text": "w", "image": "3.png"}],
            "retention_test": [{"text": "w", "image": "1.png"}, {"text": "w", "image": "2.png"}],
        },
    )
    assert found(report) == [("test.jsonl:1", "leak"), ("retention_test.jsonl:1", "leak")]
    same = "its `picture` is the same {} as that of train.jsonl:{} in `train`"
    assert [one.message for one in report.findings] == [
        same.format("content", 1), same.format("file", 2),
    ]  # fmt: skip


def test_the_same_question_of_another_picture_is_another_row(seen: Path) -> None:
    """Law: rows repeat or contradict each other only if sounds, pictures and question are same."""
    rows: list[object] = [
        seen_row("0.png", "0.wav"),
        seen_row("1.png", "0.wav", "no"),
        seen_row("0.png", "1.wav", "no"),
        seen_row("0.png", answer="no"),
        seen_row("0.png", "0.wav"),
        seen_row("1.png", "0.wav", "yes"),
    ]
    report = look(seen, {"train": rows})
    assert found(report) == [("train.jsonl:5", "duplicate"), ("train.jsonl:6", "contradiction")]
    assert "the same `picture` and `audio` and question are answered `no`" in (
        report.findings[1].message
    )


def test_a_base_that_takes_no_pictures_is_told_of_once(seen: Path) -> None:
    """Law: where nobody would see them, pictures are one finding a source, and are not opened."""
    rows: list[object] = [seen_row("gone.png", "0.wav"), seen_row("1.png", "1.wav")]
    report = look(seen, {"train": rows}, base="blind", takes_pictures=lambda: False)
    assert found(report) == [("train.jsonl:1", "unseen-picture")]
    assert (
        report.findings[0].message == "`image`: it has a picture, but the base `blind` takes none"
    )
    assert report.counts["train"].pictures == 0


def test_fields_that_nobody_reads_are_told_of_once_a_source(seen: Path) -> None:
    """Law: one finding a source names every such field; its line holds those of all sources."""
    rows: list[object] = [{"text": "w", "id": 1}, {"text": "v", "id": 2, "at": 3}]
    fields = {key: RowFields(read={"text"}) for key in ("retention", "retention_test")}
    other: list[object] = [{"text": "u", "url": "x"}]
    report = look(seen, {"retention": rows, "retention_test": other}, fields=fields)
    assert found(report) == [
        ("retention.jsonl:1", "unread-field"), ("retention_test.jsonl:1", "unread-field"),
    ]  # fmt: skip
    assert [one.message for one in report.findings] == [
        "nothing reads the fields `id`, `at` (first in retention.jsonl:2)",
        "nothing reads the field `url`",
    ]
    assert all('ignore = ["id", "at", "url"]' in one.hint for one in report.findings)


def test_one_file_is_looked_at_with_its_pictures(seen: Path) -> None:
    """Law: without a recipe, `image` holds pictures for a base, and is no sense of its own."""
    write(seen / "one.jsonl", [seen_row("0.png", "0.wav"), seen_row("gone.png", "1.wav")])
    report = check_target(str(seen / "one.jsonl"), longest=LONGEST)
    assert found(report) == [("one.jsonl:2", "missing-file")]
    assert (report.counts["train"].samples, report.counts["train"].pictures) == ({"audio": 2}, 1)
