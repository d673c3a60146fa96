"""Tiny adapters that were moved away from their silent start, and local tasks."""

from pathlib import Path

import pytest
import torch

import safe_framework
from safe_framework.pretrained import quietly
from tests.runs.conftest import cache, world, write_rows
from tests.support.seeing import picture, save, seeing_bases

__all__ = ["cache", "world"]

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [mat], max_gen_toks: 5}}
metric_list: [{{metric: bypass}}]
"""
SEEN = """
task: seen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/pictures.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_image: !function pictures.of_row
doc_to_text: "<image>{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [mat], max_gen_toks: 5}}
metric_list: [{{metric: bypass}}]
"""
PICTURES = """\
from PIL import Image


def of_row(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""
COLOURS = ["red", "blue", "green", "white", "black"]
TEXTS = ["what is this", "the cat sat on a", "the dog", "what a dog is this cat", "low high"]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task by likelihoods and one by generated text."""
    folder = tmp_path_factory.mktemp("tasks")
    ends = [["dog", "cat"], ["mat", "high low"], ["ran", "sat on"], ["low", "mat"], ["a", "the"]]
    rows = [
        {"text": text, "choices": choices, "label": number % 2, "answer": choices[0]}
        for number, (text, choices) in enumerate(zip(TEXTS, ends, strict=True))
    ]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder), "utf-8")
    (folder / "writing.yaml").write_text(WRITING.format(folder=folder), "utf-8")
    return folder


@pytest.fixture(scope="session")
def picture_tasks(tasks: Path) -> Path:
    """The same folder with a task about pictures in it."""
    rows = []
    for number, colour in enumerate(COLOURS):
        picture(colour, 8 + number, 8).save(tasks / f"{colour}.png")
        text = TEXTS[number % 2]
        rows.append({"image": str(tasks / f"{colour}.png"), "text": text, "answer": colour})
    write_rows(tasks / "pictures.jsonl", rows)
    (tasks / "pictures.py").write_text(PICTURES, "utf-8")
    (tasks / "seen.yaml").write_text(SEEN.format(folder=tasks), "utf-8")
    return tasks


@pytest.fixture(scope="session")
def seeing(world: Path) -> Path:
    """The folder of a base that sees."""
    with quietly():
        return save(world / "seeing", *seeing_bases()["llava"]())


@pytest.fixture(scope="session")
def seeing_adapter(world: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that base."""
    recipe = on_base(world, seeing, "seeing", "")
    return adapter_of(recipe, tmp_path_factory.mktemp("seeing") / "adapter")


@pytest.fixture(scope="session")
def marked_seeing_adapter(
    world: Path, seeing: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter of that base whose modality puts markers and tokens into the text."""
    recipe = on_base(world, seeing, "marked_seeing", "markers = true\ninline = true\n")
    return adapter_of(recipe, tmp_path_factory.mktemp("marked") / "adapter")


def on_base(world: Path, base: Path, name: str, marks: str) -> Path:
    """The recipe of the world on another base, with more lines for its modality."""
    text = (world / "recipe.toml").read_text("utf-8")
    table = "[modalities.audio]\n"
    text = text.replace(f'"{world}/base"', f'"{base}"').replace(table, table + marks)
    recipe = world / f"{name}.toml"
    recipe.write_text(text, "utf-8")
    return recipe


def adapter_of(recipe: Path, folder: Path) -> Path:
    """An adapter that changes outputs, as a trained one does."""
    model = safe_framework.build(recipe)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.5)
    model.set_gate(1.0)
    return model.save_pretrained(folder)


@pytest.fixture(scope="session")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without markers."""
    return adapter_of(world / "recipe.toml", tmp_path_factory.mktemp("plain") / "adapter")


@pytest.fixture(scope="session")
def marked_adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose modality puts markers and tokens into the text."""
    recipe = on_base(world, world / "base", "marked", "markers = true\ninline = true\n")
    return adapter_of(recipe, tmp_path_factory.mktemp("marked") / "adapter")
