"""A card's facts are those of the model that its config makes."""

import pytest

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import read_card, resolve, revision_of
from safe_framework.pretrained.meta_models import base_meta_model, card_of, meta_models
from safe_framework.utils import catalogue

CARDS = [read_card(path) for path in catalogue.cards().values()]
SIZED = [card for card in CARDS if card.config and card.hub]  # of transformers
KINDS = {"language-model", "vision-language-model", "audio-encoder", "image-encoder"}
WIDTHS = ("hidden_size", "d_model", "n_embd")
DEPTHS = ("num_hidden_layers", "encoder_layers", "n_layer")
assert len(SIZED) >= 15


def built(name):
    """The model of a card's config, without weights."""
    with meta_models():
        return base_meta_model(name)


def described(config):
    """The part of a config that a card's width and depth are of."""
    for name in ("audio_config", "text_config", "vision_config"):
        part = getattr(config, name, None)
        if part is not None and (name != "text_config" or config.model_type != "clip"):
            return part
    return config


def test_the_config_makes_as_many_parameters():
    """The number of parameters is that of the model, built from the config without weights."""
    parameters = {card.name: list(built(card.name).parameters()) for card in SIZED}
    found = {name: sum(one.numel() for one in of_card) for name, of_card in parameters.items()}
    assert found == {card.name: card.facts["parameters"] for card in SIZED}
    assert [n for n, of_card in parameters.items() if not all(p.is_meta for p in of_card)] == []


def test_width_and_depth_are_the_configs():
    """Width and layers are what the config says of the part that they are of."""
    import transformers

    for card in SIZED:
        config = described(transformers.AutoConfig.for_model(**card.config))
        (width,) = {getattr(config, name) for name in WIDTHS if hasattr(config, name)}
        assert card.facts["hidden_size"] == width, card.name
        depths = {getattr(config, name) for name in DEPTHS if hasattr(config, name)}
        stages = getattr(config, "depths", None)
        assert card.facts["layers"] in (depths if stages is None else {sum(stages)}), card.name


def test_rates_are_the_preprocessors():
    """A sampling rate is the preprocessor's, and frames follow from its hop."""
    for card in SIZED:
        facts, reads = card.facts, card.preprocessor
        assert facts.get("sampling_rate") == reads.get("sampling_rate"), card.name
        if "frame_rate" in facts:
            rate = reads["sampling_rate"] // reads["hop_length"] // 2
            assert facts["frame_rate"] == rate, card.name
        if "image_size" in facts and reads:
            size = facts["image_size"]
            assert reads["crop_size"] == {"height": size, "width": size}, card.name


def test_it_says_where_its_facts_are_from():
    """A card names its kind, licence, paper and pages, among them that of its hub id."""
    for card in CARDS:
        assert card.kind in KINDS, card.name
        assert card.licence, card.name
        assert card.paper.startswith(("arXiv:", "https://")), card.name
        if card in SIZED:
            number = card.paper.removeprefix("arXiv:")
            pages = {f"https://huggingface.co/{card.hub}", f"https://arxiv.org/abs/{number}"}
            assert pages <= set(card.sources), card.name


def test_a_card_without_a_package_is_on_the_hub():
    """Its location is the hub id, at the commit that its facts are of."""
    card = card_of("llama-2-7b")
    assert card.package is None
    assert resolve("llama-2-7b") == card.hub
    assert revision_of("llama-2-7b") == card.revision
    assert card_of(card.hub) == card


def test_a_card_with_a_package_has_no_commit():
    """Its weights are those of the package, whatever the hub has."""
    assert revision_of("whisper-tiny.en") is None
    assert revision_of("some/model") is None


def test_sizes_that_are_unknown_are_not_guessed():
    """A hub id that no card describes cannot be built without a network."""
    with meta_models(), pytest.raises(CheckpointError) as caught:
        resolve("some/model")
    assert str(caught.value) == (
        "the sizes of `some/model` are not known without its weights\n"
        "hint: name a folder with a config.json, or a card with a `[config]` table"
    )


def test_models_have_weights_again():
    """What stands in for loading is gone after the block, also after an error."""
    import transformers

    original = transformers.PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(CheckpointError), meta_models():
        base_meta_model("some/model")
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is original
    with pytest.raises(CheckpointError, match="neither a folder"):
        resolve("nothing of the kind")
