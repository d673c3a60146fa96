"""docs/data.md is right about itself."""

import re
from pathlib import Path

from safe_framework.config.read import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def test_the_first_recipe_is_whole() -> None:
    """Law: the first run's recipe is valid, and its table has the columns that it names."""
    block = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    table = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    assert table is not None
    recipe = parse_recipe(block[1])
    assert recipe.data is not None
    assert not recipe.training.note
    assert set(recipe.data.fields.values()) == set(table[1].splitlines()[0].split(","))
