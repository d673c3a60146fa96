"""A composed base's projector is trained once, and nothing else is."""

import io
import json

import attrs
import pytest
import torch
from rich.console import Console

from safe_framework.cli import main
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import ComposeSpec
from safe_framework.core import build
from safe_framework.errors import CheckpointError, DataError, SafeError
from safe_framework.experimental.vision_language import train as training
from safe_framework.experimental.vision_language.compose import compose, projector_of
from safe_framework.experimental.vision_language.pictures import read_captioned, read_picture
from safe_framework.experimental.vision_language.train import (
    CaptionCollator,
    PromptedPictures,
    _choices,
    _content_f1,
    _normalise,
    _other_picture,
    call_on_features,
    compose_recipe,
    score,
    train_projector,
)
from safe_framework.pretrained.base_model import load_base
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal

pytestmark = pytest.mark.slow

RECIPE = """
[base]
model = "{folder}/composed"

[base.compose]
vision = "{parts}/dinov2"
language = "{parts}/llama"
train = "train.jsonl"
test = "test.jsonl"
align_steps = 5
max_steps = 120
batch_size = 8
learning_rate = 2e-2
warmup_steps = 5

[modalities.touch]
encoder = {{ use = "whisper", model = "none" }}
projector = {{ use = "standard" }}
fusion = {{ use = "lora" }}
"""


@pytest.fixture
def quiet():
    """Bars that nobody sees."""
    return WorkProgress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def recipe(parts, tmp_path_factory):
    """A recipe that composes the tiny parts."""
    folder = tmp_path_factory.mktemp("recipe")
    text = RECIPE.format(folder=folder, parts=parts)
    (parts / "recipe.toml").write_text(text, "utf-8")
    return read_recipe(parts / "recipe.toml")


@pytest.fixture(scope="module")
def composed(recipe):
    """The folder that the recipe's base is composed in, and its scores."""
    return compose_recipe(recipe, WorkProgress(Console(file=io.StringIO())))


def test_held_out_pictures_are_captioned(composed):
    """The trained projector tells colours on pictures that training never saw."""
    _, scores = composed
    assert (scores.pictures, scores.choices) == (8, 4)
    assert scores.seeing.chosen.value >= 0.75, scores
    assert scores.shuffled.chosen.value <= 0.5
    assert scores.blind.chosen.value <= 0.5
    assert scores.seeing.words.value >= scores.seeing.exact.value
    assert scores.seeing.chosen.n == 8


def test_the_folder_is_a_base(composed, recipe):
    """What was composed loads as any base does, sees pictures, and has its processor."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder, scores = composed
    base, processor = load_base(recipe.base)
    assert isinstance(base, LlavaForConditionalGeneration)
    assert type(processor) is LlavaProcessor
    picture = read_picture(recipe.folder / "test0.png")
    batch = processor(images=[picture], text=["<image>"], return_tensors="pt")
    assert base(**batch).logits.isfinite().all()
    note = json.loads((folder / training.NOTE).read_text("utf-8"))
    assert note["scores"]["seeing"]["chosen"]["value"] == scores.seeing.chosen.value
    assert note["compose"]["vision"] == recipe.base.compose.vision


def test_only_the_projector_changes(parts, quiet):
    """Training leaves every bit of both parts, and freezes the projector again."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = read_captioned(parts / "train.jsonl", model, processor, quiet)
    spec = ComposeSpec(vision="v", language="l", max_steps=2, align_steps=1, warmup_steps=0)
    train_projector(model, processor.tokenizer, rows, spec, quiet)
    changed = {n for n, v in model.state_dict().items() if not bitwise_equal(v, before[n])}
    assert changed == {n for n in before if ".multi_modal_projector." in n}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_training_repeats(parts, quiet):
    """The same seed trains the same projector, and the caller's seed is not moved."""

    def trained():
        model, processor = compose(str(parts / "clip"), str(parts / "llama"))
        rows = read_captioned(parts / "train.jsonl", model, processor, quiet)
        spec = ComposeSpec(vision="v", language="l", max_steps=2, align_steps=2)
        train_projector(model, processor.tokenizer, rows, spec, quiet)
        return projector_of(model).linear_1.weight

    assert bitwise_equal(trained(), trained())


def test_captions_alone_are_learned(parts, quiet):
    """Labels are the caption and the end of the text; a picture has its places."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    rows = read_captioned(parts / "train.jsonl", model, processor, quiet)[:2]
    collate = CaptionCollator(processor.tokenizer, "w8 <image> w9", model.config.image_token_id)
    batch = collate(rows)
    image = model.config.image_token_id
    assert batch["input_ids"][0].tolist() == [8, image, image, image, image, 9, 7, 3, 1]
    assert batch["labels"][0].tolist() == [-100] * 6 + [7, 3, 1]
    assert call_on_features(model, **batch).loss.isfinite()


def test_a_transparent_picture_stands_on_white(tmp_path):
    """What is transparent is white, and a picture that is not square is not cut."""
    from PIL import Image

    Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.size == (4, 4)
    assert picture.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "gone.png", "caption": "a"}, r"`.*gone\.png` does not exist"),
        ({"image": "rows.jsonl", "caption": "a"}, r"`.*rows\.jsonl` cannot be read"),
        ({"image": "a.png"}, r"rows\.jsonl:1: `caption` must be a text"),
        ({"image": "a.png", "caption": " "}, r"rows\.jsonl:1: `caption` must be a text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(parts, tmp_path, quiet, row, words):
    """A missing or broken picture and a missing caption are named."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    with pytest.raises(DataError, match=words):
        read_captioned(tmp_path / "rows.jsonl", model, processor, quiet)


def test_a_base_is_not_composed_over(composed, recipe, quiet):
    """A folder that is there is left alone."""
    with pytest.raises(SafeError, match="exists already"):
        compose_recipe(recipe, quiet)


def test_what_was_not_composed_says_how(recipe, tmp_path):
    """Building names the command that makes the base."""
    text = recipe.text.replace("/composed", "/nowhere")
    with pytest.raises(CheckpointError) as caught:
        build.build(parse_recipe(text, folder=recipe.folder))
    assert "/nowhere`, which [base.compose] describes, has" in caught.value.message
    assert caught.value.hint == "safe compose RECIPE"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('train = "train.jsonl"\n', "", "names no captioned pictures"),
        ("[base.compose]", "[base.compose]\nunknown = 1", "unknown key `base.compose.unknown`"),
        ('"train.jsonl"', '"trian.jsonl"', "there is no file `trian.jsonl`"),
    ],
)
def test_a_mistake_is_named(recipe, tmp_path, capsys, old, new, words):
    """``safe compose`` refuses a recipe without pictures or with mistakes."""
    path = recipe.folder / f"mistake{len(new)}.toml"
    path.write_text(recipe.text.replace(old, new).replace("/composed", "/other"), "utf-8")
    assert main(["compose", str(path), "--quiet"]) == 1
    assert words in capsys.readouterr().err


def test_a_recipe_without_the_table_has_nothing_to_compose(quiet):
    """A base that is whole is not composed."""
    with pytest.raises(SafeError, match=r"has no \[base.compose\]"):
        compose_recipe(read_recipe("quickstart"), quiet)


def test_captions_are_compared_by_their_words():
    """Case, punctuation and small words do not count."""
    assert _normalise("A  Duck!") == "a duck"
    assert _content_f1("the duck", "A rubber duck.") == pytest.approx(2 / 3)
    assert _content_f1("duck duck", "A duck.") == pytest.approx(2 / 3)
    assert _content_f1("", "A") == 0.0


@torch.no_grad()
def test_a_kept_prompt_gives_the_whole_calls_likelihoods(parts, quiet):
    """Captions are chosen as by calls on picture, prompt and caption together."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    rows = read_captioned(parts / "test.jsonl", model, processor, quiet)
    collate = CaptionCollator(processor.tokenizer, "w8 <image>", model.config.image_token_id)
    asked = PromptedPictures(model, collate, [row.features for row in rows])
    captions = ["w3", "w4 w7", "w5 w6 w7"]
    chosen = asked.likeliest([captions] * len(rows))
    for row, place in zip(rows, chosen, strict=True):
        whole = [attrs.evolve(row, caption=caption) for caption in captions]
        losses = [float(call_on_features(model, **collate([one])).loss) for one in whole]
        assert place == min(range(3), key=losses.__getitem__)


@torch.no_grad()
def test_captions_are_the_whole_calls_words(parts, quiet):
    """A caption of cached decoding is what calls without a cache say, word by word."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    rows = read_captioned(parts / "test.jsonl", model, processor, quiet)[:3]
    collate = CaptionCollator(processor.tokenizer, "<image> w8", model.config.image_token_id)
    said = PromptedPictures(model, collate, [row.features for row in rows]).captions()
    for row, text in zip(rows, said, strict=True):
        ids = collate.prompt_ids(len(row.features))
        start = len(ids)
        while len(ids) < start + 16:
            out = call_on_features(model, row.features[None], input_ids=torch.tensor([ids]))
            ids.append(int(out.logits[0, -1].argmax()))
            if ids[-1] == processor.tokenizer.eos_token_id:
                break
        assert text == processor.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_blind_says_one_thing(parts, quiet):
    """The language model alone says the same whatever is shown, prompt or none."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    rows = read_captioned(parts / "test.jsonl", model, processor, quiet)
    for prompt in ("<image>", "w8 <image> w9"):
        collate = CaptionCollator(processor.tokenizer, prompt, model.config.image_token_id)
        assert len(set(PromptedPictures(model, collate, [None] * 3).captions())) == 1
        scores = score(model, processor.tokenizer, rows, prompt, 0, quiet)
        assert scores.blind.chosen.value <= 0.5


def test_another_picture_has_another_caption(parts, quiet):
    """Controls show another picture; the captions to choose among differ from each other."""
    model, processor = compose(str(parts / "clip"), str(parts / "llama"))
    rows = read_captioned(parts / "test.jsonl", model, processor, quiet)
    for number, row in enumerate(rows):
        assert rows[_other_picture(rows, number)].caption != row.caption
        choices = _choices(rows, number, torch.Generator().manual_seed(0))
        assert choices[0] == row.caption
        assert len(set(choices)) == len(choices) == 4
