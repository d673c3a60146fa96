"""Recipes for the tiny world of these tests, with a monitor and stages."""

from pathlib import Path

from tests.runs.conftest import write_rows

SENTENCES = [
    f"{first} {verb} {last}"
    for first in ("the cat", "a dog", "the mat", "the cat on a mat", "what")
    for verb in ("sat on", "ran on", "is")
    for last in ("the mat", "a cat")
]

MONITORED = """
[monitor]
eval_steps = 2
held_out = 0.25
patience = 0
tolerance = 0.05
on_forget = { learning_rate = 0.3 }
"""

STAGED = """
[[curriculum]]
name = "low ones"
where = { answer = "low" }
retention_weight = 0.0
steps = 3

[[curriculum]]
name = "until it is learned"
learning_rate = 0.5
steps = 4
until = { task_loss = 100.0 }

[[curriculum]]
name = "all"
"""


def write_recipe(world: Path, name: str, *tables: str, **changes: str) -> str:
    """The world's recipe with more tables, other values, and texts to measure retention on."""
    write_rows(world / "sentences.jsonl", [{"text": text} for text in SENTENCES])
    text = (world / "recipe.toml").read_text("utf-8")
    text = text.replace("[data]", '[data]\nretention_validation = "sentences.jsonl"')
    for key, value in changes.items():
        old = next(line for line in text.splitlines() if line.startswith(f"{key} ="))
        text = text.replace(old, f"{key} = {value}")
    path = world / f"{name}.toml"
    path.write_text(text + "".join(tables), "utf-8")
    return str(path)
