"""A tiny adapter that was moved away from its silent start, and two local tasks."""

from pathlib import Path

import pytest
import torch

import safe_framework
from tests.runs.conftest import cache, world, write_rows

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
    text = (world / "recipe.toml").read_text("utf-8")
    recipe = world / "marked.toml"
    table = "[modalities.audio]\n"
    recipe.write_text(text.replace(table, table + "markers = true\ninline = true\n"), "utf-8")
    return adapter_of(recipe, tmp_path_factory.mktemp("marked") / "adapter")
