"""The examples do what they say, on tiny random models; and the depth maps that ship are sound."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safe_framework.cli import main
from safe_framework.config.read import read_recipe
from safe_framework.runs.run import run_recipe
from safe_framework.utils.catalogue import FOLDER
from safe_framework.verification.certificate import Certificate
from tests.plugins.backbones import write_backbone
from tests.runs.conftest import RECIPE, write_base, write_rows, write_tones, write_whisper

EXAMPLES = Path(__file__).parents[2] / "examples"
MAPS = FOLDER / "data" / "depth"
DEPTH_RECIPE = RECIPE.replace("modalities.audio", "modalities.depth").replace(
    'use = "whisper", model = "{folder}/whisper"', 'use = "depth", model = "{folder}/dinov2"'
)

DECIDES = """attend = "answer"
relevance = {{ irrelevant = ["{folder}/unlike.txt"], calibrate = false }}"""
ASKED = 'question = {{ bank = "{folder}/asked.jsonl", replace = true }}'
UNLIKE = "\n".join(f"the {thing} {what}" for thing in ("cat", "mat") for what in "abcdefgh")


def write_maps(folder: Path, name: str, count: int) -> None:
    """A JSONL file of walls, of which every second is far."""
    rows = []
    for number in range(count):
        metres = (1.0 + 4.0 * (number % 2)) * (1 + number / 50)
        np.savez_compressed(folder / f"{name}{number}.npz", np.full((9, 9), metres, np.float16))
        answer = "cat" if number % 2 else "dog"
        rows.append({"question": "what is this", "answer": answer, "depth": f"{name}{number}.npz"})
    write_rows(folder / f"{name}.jsonl", rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, sounds, maps, texts, and a recipe for each modality."""
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base")
    write_whisper(folder / "whisper")
    (folder / "dinov2").mkdir()
    write_backbone(folder / "dinov2", "dinov2")
    (folder / "audio").mkdir()
    (folder / "depth").mkdir()
    write_tones(folder / "audio", "train", 8, 200)
    write_tones(folder / "audio", "test", 4, 230)
    write_maps(folder / "depth", "train", 8)
    write_maps(folder / "depth", "test", 4)
    (folder / "unlike.txt").write_text(UNLIKE, "utf-8")
    write_rows(folder / "asked.jsonl", [{"question": f"what is {it}"} for it in ("this", "that")])
    for name, recipe in {"audio": RECIPE, "depth": DEPTH_RECIPE}.items():
        texts = [{"text": text} for text in ("the cat sat on a mat", "the dog ran", "on the mat")]
        write_rows(folder / name / "texts.jsonl", texts)
        write_rows(folder / name / "texts_test.jsonl", texts[:2])
        table = f"[modalities.{name}]"
        text = recipe.replace(table, f"{table}\n{DECIDES}").replace("[data]", f"[data]\n{ASKED}")
        text = text.format(folder=folder)
        for file in ("train", "test", "texts", "texts_test"):
            text = text.replace(f'"{file}.jsonl"', f'"{folder}/{name}/{file}.jsonl"')
        (folder / f"{name}.toml").write_text(text, "utf-8")
    return folder


def call(name: str, *arguments: str) -> None:
    """Run an example as a script, with the folder that holds it on the path."""
    before, sys.argv = sys.argv, [name, *arguments]
    sys.path.insert(0, str(EXAMPLES))
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before
        sys.path.remove(str(EXAMPLES))


@pytest.mark.slow
def test_both_modalities_from_data_to_certificate(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the tour trains, measures, certifies and saves; its adapter composes with another."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    depth = tmp_path / "depth"
    call(
        "add_depth_modality.py", "--shipped", "--recipe", f"{world}/depth.toml",
        "--output", str(depth),
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "retention, depth absent        1.000, bit for bit" in output
    assert "gain over shuffled depth" in output
    certificate = Certificate.from_json((depth / "adapter/certificate.json").read_text("utf-8"))
    assert certificate.holds

    audio = run_recipe(f"{world}/audio.toml", output=tmp_path / "audio", quiet=True)
    call("two_modalities.py", str(audio), str(depth / "adapter"), "--questions", "3")
    output = capsys.readouterr().out
    assert "audio alone, beside the other adapter: bit for bit as before" in output
    assert "depth alone, beside the other adapter: bit for bit as before" in output
    assert output.count("auto") == 3
    assert "opens for questions about" in output


COMPOSE = """
[base]
model = "{folder}/base"

[base.compose]
vision = "{world}/dinov2"
language = "{world}/base"
train = "train.jsonl"
test = "test.jsonl"
layer = 2
align_steps = 2
max_steps = 4
batch_size = 4
warmup_steps = 0

[modalities.depth]
encoder = {{ use = "depth", model = "{world}/dinov2" }}
projector = {{ use = "standard" }}
fusion = {{ use = "lora" }}
"""


def write_composed(world: Path, folder: Path) -> None:
    """A composed base of the tiny models, as `safe compose` writes it, and its pictures."""
    folder.mkdir()
    for name, count in (("train", 8), ("test", 2)):
        pictures = [f"{name}{number}.png" for number in range(count)]
        for number, picture in enumerate(pictures):
            Image.new("RGB", (8, 8), ("red", "blue")[number % 2]).save(folder / picture)
        captions = [("a cat", "a dog")[number % 2] for number in range(count)]
        write_rows(
            folder / f"{name}.jsonl",
            [{"image": p, "caption": c} for p, c in zip(pictures, captions, strict=True)],
        )
    (folder / "recipe.toml").write_text(COMPOSE.format(folder=folder, world=world), "utf-8")
    assert main(["compose", str(folder / "recipe.toml"), "--quiet"]) == 0


@pytest.mark.slow
def test_depth_for_a_base_that_sees(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: with depth off, pictures get the composed base's captions, bit for bit."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    composed, depth = tmp_path / "composed", tmp_path / "depth"
    write_composed(world, composed)
    call(
        "add_depth_modality.py", "--vision", "--shipped", "--recipe", f"{world}/depth.toml",
        "--composed", str(composed), "--output", str(depth),
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "a picture of 'a cat'" in output
    assert "captions, depth switched off   bit for bit the composed base's" in output
    assert "retention, depth absent        1.000, bit for bit" in output
    config = json.loads((depth / "adapter/adapter_config.json").read_text("utf-8"))
    assert "Llava" in json.dumps(config)
    certificate = Certificate.from_json((depth / "adapter/certificate.json").read_text("utf-8"))
    assert certificate.holds


def test_a_base_that_cannot_be_composed_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: without a composed base and without pictures to make one, the fix is named."""
    options = ("--composed", str(tmp_path / "none"), "--stamps", str(tmp_path / "stamps"))
    with pytest.raises(SystemExit):
        call("add_depth_modality.py", "--vision", *options)
    output = capsys.readouterr().err
    assert f"there is no composed base in `{tmp_path}/none/base`" in output
    assert "hint: apt-get download tuxpaint-stamps-default && dpkg-deb -x" in output


def test_stamps_become_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: captioned pictures are split without overlap, and the recipe for them is sound."""
    stamps = tmp_path / "stamps"
    stamps.mkdir()
    for number in range(70):
        (stamps / f"{number}.png").touch()
        (stamps / f"{number}_mirror.png").touch()
        (stamps / f"{number}.txt").write_text(f"A picture of {number}.\nUne image.\n", "utf-8")
    (stamps / "alone.png").touch()
    call("compose_stamps.py", str(stamps), str(tmp_path / "made"))
    assert "60 pictures in" in capsys.readouterr().out
    spec = read_recipe(str(tmp_path / "made/recipe.toml")).base.compose
    assert spec is not None
    captions = {}
    for name in ("train", "test"):
        lines = (tmp_path / f"made/{name}.jsonl").read_text("utf-8").splitlines()
        captions[name] = {json.loads(line)["caption"] for line in lines}
    assert (len(captions["train"]), len(captions["test"])) == (10, 60)
    assert not captions["train"] & captions["test"]


def rows(split: str) -> list[dict[str, str]]:
    """The rows of a split of the maps that ship."""
    return [json.loads(line) for line in (MAPS / f"{split}.jsonl").read_text("utf-8").splitlines()]


def test_no_map_is_in_both_splits() -> None:
    """Law: no test map is a training map, by name or by content."""
    files = {split: {row["depth"] for row in rows(split)} for split in ("train", "test")}
    content = {
        split: {np.load(MAPS / name)["depth"].tobytes() for name in names}
        for split, names in files.items()
    }
    assert {split: len(names) for split, names in files.items()} == {"train": 252, "test": 72}
    assert {split: len(held) for split, held in content.items()} == {"train": 252, "test": 72}
    assert not content["train"] & content["test"]
    assert {path.name for path in (MAPS / "maps").iterdir()} == {
        Path(name).name for names in files.values() for name in names
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_distances_are_true(split: str) -> None:
    """Law: what is nearest in a map is as far away as its row says, to a third of a metre."""
    metres = {"one metre": 1.0, "two metres": 2.0, "three metres": 3.0}
    distances = [row for row in rows(split) if row["answer"] in metres]
    assert len(distances) == len(rows(split)) // 2
    for row in distances:
        depth = np.load(MAPS / row["depth"])["depth"]
        nearest = np.quantile(depth[depth > 0], 0.01) / 1000
        assert abs(nearest - metres[row["answer"]]) < 1 / 3, row


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_even(split: str) -> None:
    """Law: every thing is nearest equally often, and every distance is asked equally often."""
    counts = Counter((row["question"], row["answer"]) for row in rows(split))
    assert len(counts) == 6 + 3
    for question in {question for question, _ in counts}:
        assert len({count for (asked, _), count in counts.items() if asked == question}) == 1


def test_the_set_is_small() -> None:
    """Law: all maps together take at most two megabytes."""
    assert sum(path.stat().st_size for path in MAPS.rglob("*") if path.is_file()) <= 2_000_000
