"""Sizes of the catalogue's recipes."""

import attrs
import pytest

from safe_framework.cli import main
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.errors import CheckpointError, SafeError
from safe_framework.pretrained import meta_models, read_card
from safe_framework.runs.model_sizes import sizes_of
from safe_framework.utils import catalogue


def test_the_parts_make_up_the_whole():
    """Totals are the sums of the parts, and nothing of base and encoder is trained."""
    sizes = sizes_of(read_recipe("quickstart"))
    (parts,) = sizes.modalities.values()
    assert [part.name for part in parts] == ["encoder", "projector", "fusion", "segments"]
    assert sizes.base.trainable == parts[0].trainable == 0
    assert sizes.total == sizes.base.parameters + sum(part.parameters for part in parts)
    assert sizes.trainable == 1_452_187  # what the README says of the quickstart


def test_markers_are_counted():
    """Two vectors as wide as the base, where the recipe asks for markers."""
    recipe = read_recipe("quickstart")
    modalities = {"audio": attrs.evolve(recipe.modalities["audio"], markers=True)}
    more = sizes_of(attrs.evolve(recipe, modalities=modalities))
    assert more.trainable - sizes_of(recipe).trainable == 2 * 576


def changed(old, new):
    """The quickstart with one thing changed."""
    recipe = read_recipe("quickstart")
    assert old in recipe.text
    return parse_recipe(recipe.text.replace(old, new), folder=recipe.folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "layers = [16, 20, 24]",
            "layers = [30]",
            r"`layers` of `lora` must be between -30 and 29",
        ),
        ("layer = 1", "layer = 5", r"`layer` of `whisper` must be between -5 and 4"),
        ('"whisper-tiny.en"', '"some/whisper"', "sizes of `some/whisper` are not known"),
        ('"smollm2-135m-instruct-q4"', '"llama-2"', "sizes of `llama-2` are not known"),
    ],
)
def test_what_does_not_fit_is_refused(old, new, words):
    """Layers that do not exist and checkpoints of unknown size are found without weights."""
    with pytest.raises(SafeError, match=words):
        sizes_of(changed(old, new))


@pytest.mark.parametrize("fact", ["parameters", "hidden_size", "layers"])
def test_a_card_that_contradicts_itself_is_refused(fact, tmp_path, monkeypatch):
    """A fact that the card's own config does not make is named."""
    cards = catalogue.cards()
    text = cards["smollm2-135m-instruct-q4"].read_text("utf-8")
    value = read_card(cards["smollm2-135m-instruct-q4"]).facts[fact]
    path = tmp_path / "smollm2-135m-instruct-q4.toml"
    head, tail = text.split("[facts]", 1)
    tail = tail.replace(f"{fact} = {value:_}", f"{fact} = 7", 1)
    path.write_text(f"{head}[facts]{tail}", "utf-8")
    monkeypatch.setattr(meta_models.catalogue, "cards", lambda: cards | {path.stem: path})
    with pytest.raises(CheckpointError) as caught:
        sizes_of(read_recipe("quickstart"))
    assert caught.value.message == (
        f"the card `{path.stem}` says `{fact} = 7`, its config makes {value}"
    )


def test_check_prints_the_parts(capsys):
    """``safe check NAME --sizes`` shows each part and their sum."""
    assert main(["check", "medium", "--sizes"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["medium", "is", "a", "valid", "recipe"]
    assert [line[:2] for line in lines[2:6]] == [
        ["base", "clip-vit-large-patch14"],
        ["audio", "encoder"],
        ["audio", "projector"],
        ["audio", "fusion"],
    ]
    assert lines[-1][0] == "total"
    assert lines[-1][-1] == "72,099,872"
