"""What is fuzzed: for each kind of input, whole ones, how they are mutated, and what reads them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import attrs
import numpy as np

from safe_framework.cli import main
from safe_framework.config.read import read_recipe
from safe_framework.core.build import attach, build, load
from safe_framework.data.checks.recipe import check_target
from safe_framework.data.images import read_image
from safe_framework.data.pictures import Picture
from safe_framework.data.preview import preview
from safe_framework.data.recipe_data import RecipeData
from safe_framework.data.samples import read_sample
from safe_framework.errors import SafeError
from safe_framework.pretrained.base_model import load_base
from tests.fuzz.mutations import (
    TOML_VALUES,
    VALUES,
    mutated_bytes,
    mutated_json,
    mutated_text,
)
from tests.runs.conftest import (
    EVERY_METHOD,
    RECIPE,
    write_base,
    write_rows,
    write_tones,
    write_whisper,
)

Case = Callable[[Random, Path], object]
"""Draws one mutated input and reads it; what it writes goes to the folder."""


@attrs.frozen
class World:
    """What all subjects share: a folder with a base, an encoder, rows, sounds and recipes."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> World:
        """Make it in an empty folder."""
        write_base(folder / "base")
        write_whisper(folder / "whisper")
        write_tones(folder, "train", 4, 200)
        write_tones(folder, "test", 2, 230)
        texts = ["the cat sat on a mat", "the dog ran"]
        for name in ("texts", "texts_test"):
            write_rows(folder / f"{name}.jsonl", [{"text": text} for text in texts])
        recipe = RECIPE.format(folder=folder)
        (folder / "recipe.toml").write_text(recipe, "utf-8")
        return cls(folder)

    @property
    def recipe(self) -> str:
        """The text of a recipe that runs."""
        return (self.folder / "recipe.toml").read_text("utf-8")


_MORE_TABLES = """
[monitor]
eval_steps = 5
held_out = 0.5
on_forget = { rollback = true, learning_rate = 0.5 }

[[curriculum]]
name = "easy"
where = { answer = ["high", "low"] }
retention_weight = 0.5
steps = 3

[[curriculum]]
learning_rate = 0.1
until = { accuracy = 0.9 }
"""

_MIX = """
[data]
retention = "texts.jsonl"
retention_test = "texts_test.jsonl"
on_bad_row = "skip"

[[data.mix]]
name = "pitch"
train = "train.jsonl"
test = "test.jsonl"
weight = 2.0

[[data.mix]]
name = "kinds"
task = "classification"
train = "train.jsonl"
test = "test.jsonl"
labels = ["high", "low"]
"""


def recipes(world: World) -> Case:
    """Texts of recipes: checked as ``safe check`` does, and built where that finds no fault."""
    whole = world.recipe
    start, end = whole.index("[data]"), whole.index("[training]")
    texts = [
        whole,
        whole + _MORE_TABLES,
        whole.replace("[data]", f"{EVERY_METHOD}\n[data]"),
        whole[:start] + _MIX + whole[end:],
        whole.replace(
            'use = "lora", rank = 2, layers = [0, 1], dropout = 0.1', 'use = "cross_attention"'
        ),
        whole.replace(
            'use = "standard", tokens = 2, hidden_dim = 8, dropout = 0.2, noise = 0.1',
            'use = "resampler", tokens = 2',
        ),
        whole.replace("gate = {", "inline = true\ngate = {"),
    ]
    mistakes = (Path(__file__).parent.parent / "config" / "mistakes.toml").read_text("utf-8")

    def case(random: Random, folder: Path) -> None:
        content = mutated_text(random.choice(texts), [*texts, mistakes], TOML_VALUES, random)
        path = folder / "recipe.toml"
        path.write_bytes(content)
        with beside(world.folder, folder):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = main(["check", str(path)])
            if code:
                raise SafeError(said.getvalue())
            build(path).detach()

    return case


@contextlib.contextmanager
def beside(world: Path, folder: Path) -> Iterator[None]:
    """Within the block, the world's rows and sounds are in the folder too."""
    names = [path.name for path in world.iterdir() if path.is_file() and path.suffix != ".toml"]
    for name in names:
        if not (folder / name).exists():
            (folder / name).symlink_to(world / name)
    yield


def refusals(*reads: Callable[[], object]) -> list[SafeError]:
    """The error of each reading that is refused."""
    found = []
    for read in reads:
        try:
            read()
        except SafeError as error:
            found.append(error)
    return found


def manifests(world: World) -> Case:
    """JSONL, CSV and TSV: previewed, checked, and read as a task and as texts."""
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    rows = [*rows, {**rows[0], "extra": 1, "images": []}, {"text": "the cat ran", "answer": "cat"}]
    recipe = read_recipe(world.folder / "recipe.toml")
    from safe_framework.config.plugins import encoders_of

    encoders = encoders_of(recipe)
    tables = {ending: _table(rows[:4], sign) for ending, sign in ((".csv", ","), (".tsv", "\t"))}
    as_text = [json.dumps(value) for value in VALUES]
    cells = [str(value) for value in VALUES]

    def mutated(random: Random) -> tuple[str, bytes]:
        ending = random.choice((".jsonl", ".jsonl", ".csv", ".tsv"))
        if ending != ".jsonl":
            return ending, mutated_text(tables[ending], list(tables.values()), cells, random)
        lines = [json.dumps(row) for row in rows]
        at = random.randrange(len(lines))
        if random.random() < 0.5:
            lines[at] = json.dumps(mutated_json(rows[at], random))
            return ending, "\n".join(lines).encode()
        text = "\n".join(lines) + "\n"
        return ending, mutated_text(text, [text], as_text, random)

    def case(random: Random, folder: Path) -> None:
        ending, content = mutated(random)
        (folder / f"rows{ending}").write_bytes(content)
        text = world.recipe
        for name in ("train.jsonl", "texts.jsonl"):
            text = text.replace(f'"{name}"', f'"rows{ending}"')
        skip = random.random() < 0.5
        text = text.replace("[data]", f'[data]\non_bad_row = "{"skip" if skip else "error"}"')
        (folder / "recipe.toml").write_text(text, "utf-8")
        with beside(world.folder, folder):
            made = read_recipe(folder / "recipe.toml")
            seen = preview(made)
            check_target(str(folder / "recipe.toml"), longest=30.0)
            check_target(str(folder / f"rows{ending}"), longest=30.0)
            refused = [
                *seen.errors,
                *refusals(
                    lambda: RecipeData(made).examples("train", encoders),
                    lambda: RecipeData(made).texts("retention", encoders),
                    lambda: RecipeData(made).digest("train"),
                ),
            ]
        if refused:
            raise refused[0]

    return case


def _table(rows: Sequence[Mapping[str, Any]], separator: str) -> str:
    names = list(rows[0])
    cells = [[str(row[name]) for name in names] for row in rows]
    return "".join(f"{separator.join(line)}\n" for line in [names, *cells])


SOUND_FORMATS = (
    ("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "IMA_ADPCM"), ("flac", "PCM_16"),
    ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_24"),
    ("au", "PCM_16"), ("caf", "PCM_16"), ("w64", "PCM_16"),
)  # fmt: skip


def sounds(world: World) -> Case:
    """Sound files of many formats, read and given to an encoder."""
    from safe_framework.config.plugins import encoders_of

    files = [*(_sound(*form) for form in SOUND_FORMATS), *_by_pyav()]
    whisper = encoders_of(read_recipe(world.folder / "recipe.toml"))["audio"]

    def case(random: Random, folder: Path) -> None:
        content = mutated_bytes(random.choice(files), files, random)
        if random.random() < 0.5:
            path = folder / f"sound.{random.choice(('wav', 'ogg', 'm4a'))}"
            path.write_bytes(content)
            whisper.prepare([read_sample(path, 16_000, "rows.jsonl:1")])
        else:
            whisper.prepare([read_sample({"bytes": content}, 16_000, "rows.jsonl:1")])

    return case


def _sound(kind: str, subtype: str) -> bytes:
    import soundfile

    rate, file = 16_000, io.BytesIO()
    tone = 0.3 * np.sin(440 * np.arange(rate // 10) / rate * 2 * np.pi)
    channels = np.stack([tone, tone], axis=1) if kind in ("flac", "aiff") else tone
    soundfile.write(file, channels, rate, format=kind.upper(), subtype=subtype)
    return file.getvalue()


def _by_pyav() -> list[bytes]:
    """What only PyAV reads."""
    import av

    made = []
    for kind, codec in (("mp4", "aac"), ("matroska", "flac"), ("adts", "aac")):
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as container:
            stream: Any = container.add_stream(codec, rate=16_000)
            stream.layout = "mono"
            for number in range(2):
                values = np.zeros((1, 1024), "f4" if codec == "aac" else "i2")
                frame = av.AudioFrame.from_ndarray(
                    values, "fltp" if codec == "aac" else "s16", "mono"
                )
                frame.sample_rate, frame.pts = 16_000, number * 1024
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        made.append(file.getvalue())
    return made


def pictures(world: World) -> Case:
    """Picture files of many formats, opened for the base and read as arrays."""
    files = list(_pictures())

    def case(random: Random, folder: Path) -> None:
        content = mutated_bytes(random.choice(files), files, random)
        path = folder / f"picture.{random.choice(('png', 'jpg', 'tiff'))}"
        path.write_bytes(content)
        refused = refusals(
            lambda: Picture(path).look(),
            lambda: Picture(content).open(),
            lambda: Picture(content).digest,
            lambda: read_image(path),
            lambda: read_image(content),
        )
        if refused:
            raise refused[0]

    return case


def _pictures() -> Iterator[bytes]:
    from PIL import Image

    values = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    colours = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    plain = {"exif": exif}
    for kind, image, options in (
        ("PNG", colours, plain), ("PNG", colours.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(values[..., 0].astype(np.uint16) * 257), {}),
        ("PNG", colours.convert("RGBA"), {}), ("JPEG", colours, plain),
        ("JPEG", colours.convert("CMYK"), {}), ("BMP", colours, {}),
        ("GIF", colours, {"save_all": True, "append_images": [colours.rotate(90)]}),
        ("TIFF", colours, {"compression": "tiff_lzw"}), ("TIFF", colours.convert("F"), {}),
        ("WEBP", colours, plain), ("PPM", colours, {}), ("TGA", colours, {}), ("ICO", colours, {}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


def arrays(world: World) -> Case:
    """``.npy`` and ``.npz`` files, read as samples."""
    files = []
    for values in (
        np.zeros((4, 3), "f4"),
        np.arange(5),
        np.array(["a", "b"]),
        np.zeros((2, 2), "c8"),
    ):
        for save in (np.save, np.savez_compressed):
            file = io.BytesIO()
            save(file, values)  # type: ignore[operator]  # either writes to a file
            files.append(file.getvalue())

    def case(random: Random, folder: Path) -> None:
        path = folder / f"sample.{random.choice(('npy', 'npz'))}"
        path.write_bytes(mutated_bytes(random.choice(files), files, random))
        read_sample(path, None, "rows.jsonl:1")

    return case


def adapters(world: World) -> Case:
    """Adapters' folders: one file of them changed or gone, loaded on their own base."""
    recipe = read_recipe(world.folder / "recipe.toml")
    base, tokenizer = load_base(recipe.base)
    whole = world.folder / "adapter"
    model = attach(base, tokenizer, recipe=recipe)
    model.save_pretrained(whole)
    model.detach()
    held = {path.name: path.read_bytes() for path in sorted(whole.iterdir()) if path.is_file()}

    def case(random: Random, folder: Path) -> None:
        copy = folder / "adapter"
        shutil.copytree(whole, copy)
        name = random.choice([name for name in held if name != "README.md"])
        (copy / name).unlink()
        if random.random() > 0.02:
            (copy / name).write_bytes(_mutated_file(name, held, random))
        load(copy, base=base, tokenizer=tokenizer).detach()

    return case


def _mutated_file(name: str, held: Mapping[str, bytes], random: Random) -> bytes:
    content = held[name]
    if name.endswith(".json") and random.random() < 0.7:
        return json.dumps(mutated_json(json.loads(content), random)).encode()
    if name.endswith(".toml"):
        text = content.decode()
        return mutated_text(text, [text], TOML_VALUES, random)
    if name.endswith(".safetensors") and random.random() < 0.5:
        return _mutated_header(content, random)
    return mutated_bytes(content, list(held.values()), random)


def _mutated_header(content: bytes, random: Random) -> bytes:
    """A safetensors file with a header of other names, types, shapes or places."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(mutated_json(json.loads(content[8 : 8 + size]), random)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


SUBJECTS: Mapping[str, Callable[[World], Case]] = {
    "recipes": recipes,
    "manifests": manifests,
    "audio files": sounds,
    "picture files": pictures,
    "array files": arrays,
    "adapters": adapters,
}
