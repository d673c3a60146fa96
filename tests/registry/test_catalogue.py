"""The catalogue is plain files, found by name."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from safe_framework.config.read import read_recipe
from safe_framework.data.preview import missing_sources, preview
from safe_framework.pretrained import read_card
from safe_framework.utils import catalogue


def test_every_recipe_is_valid():
    """A recipe of the catalogue can be used as it is, data files included."""
    recipes = catalogue.recipes()
    assert "quickstart" in recipes
    for name in recipes:
        assert read_recipe(name).source == str(catalogue.recipe_path(name))


def test_no_recipe_would_be_refused_for_its_data():
    """Every recipe that ships reads all of its rows and fields, without a model."""
    recipes = [read_recipe(name) for name in catalogue.recipes()]
    assert len(recipes) >= 8
    for recipe in recipes:
        seen = preview(recipe)
        assert (seen.errors, seen.skipped) == ((), ())
        assert missing_sources(recipe) is None


def test_every_card_can_be_read():
    """A card of the catalogue says which checkpoint it is, under its own name."""
    cards = catalogue.cards()
    assert cards
    for name in cards:
        assert read_card(catalogue.card_path(name)).name == name


def test_every_launch_configuration_is_accelerates():
    """Each is read by Accelerate, says what it is for, and leaves precision to the recipe."""
    kinds = {}
    for name, path in catalogue.launches().items():
        assert path.read_text("utf-8").startswith("# ")
        config = load_config_from_file(str(path))
        assert config.mixed_precision == "no"
        kinds[name] = config.distributed_type.value
    assert kinds == {"ddp": "MULTI_GPU", "deepspeed": "DEEPSPEED", "fsdp2": "FSDP"}


def test_a_misspelt_name_is_guessed():
    """An unknown name offers the nearest one."""
    with pytest.raises(catalogue.CatalogueError) as caught:
        catalogue.recipe_path("quikstart")
    assert caught.value.message == "the catalogue holds no recipe `quikstart`"
    assert caught.value.hint.startswith("did you mean `quickstart`? recipes: ")
