"""``[stage_b]`` of a recipe, and what its mistakes look like."""

from pathlib import Path

import pytest

from safe_framework.config.diagnostics import RecipeError
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import StageBSpec

HEAD = """\
[base]
model = "m"

[modalities.audio]
encoder = { use = "whisper", model = "w" }
projector = { use = "standard" }
fusion = { use = "lora" }

[stage_b]
"""


def test_it_is_absent_by_default() -> None:
    """Law: a recipe without the table has Stage A alone."""
    assert parse_recipe(HEAD.replace("[stage_b]", "")).stage_b is None


def test_its_methods_of_retention_are_plugins() -> None:
    """Law: [[stage_b.retention]] takes what [[retention]] takes, options included."""
    table = 'method = "lora"\n[[stage_b.retention]]\nuse = "fisher"\nweight = 2\nexamples = 4\n'
    spec = parse_recipe(HEAD + table).stage_b
    assert spec is not None
    (method,) = spec.retention
    assert (method.use, method.weight, method.options) == ("fisher", 2.0, {"examples": 4})
    assert spec.replay_weight == StageBSpec("lora").replay_weight


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('method = "full"', '`stage_b.method` must be "lora" or "layers", not the string "full"'),
        (
            'method = "lora"\ndropout = 1.0',
            "`stage_b.dropout` must be at least 0 and below 1, not 1.0",
        ),
        ('method = "lora"\nrank = 0', "`stage_b.rank` must be at least 1, not 0"),
        ('method = "lora"\nrate = 1', "unknown key `stage_b.rate`"),
        ("rank = 8", "`stage_b.method` is missing"),
    ],
)
def test_wrong_values(table: str, message: str) -> None:
    """Law: a value of another type or out of its range is named with its key."""
    with pytest.raises(RecipeError) as error:
        parse_recipe(HEAD + table)
    assert message in str(error.value)


def test_what_its_method_asks(tmp_path: Path) -> None:
    """Law: layers in place must be named, take no options of LoRA, and a start must be there."""
    path = tmp_path / "recipe.toml"
    path.write_text(f'{HEAD}method = "layers"\nrank = 4\nstart = "gone"\n')
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    text = str(error.value)
    assert "`rank` is an option of `lora`, not of `layers`" in text
    assert "`layers` must say which layers of the base are trained" in text
    assert "`gone` is not an adapter" in text
