"""A valid recipe becomes typed data; what is no recipe at all is a clear error."""

from pathlib import Path

import attrs
import pytest

from safe_framework.config.diagnostics import RecipeError, locate_error
from safe_framework.config.read import parse_recipe, read_recipe
from safe_framework.config.schema import (
    BaseSpec,
    EvaluationSpec,
    GateSpec,
    PluginSpec,
    RetentionSpec,
    TrainingSpec,
)
from safe_framework.errors import SafeError, SampleError

SMALLEST = """\
[base]
model = "some/model"

[modalities.audio]
encoder = { use = "chime", model = "bell" }
projector = { use = "squeeze" }
fusion = { use = "echo", layers = [0, 3], table = { a = 1 } }
"""

FULL = f"""{SMALLEST}
gate = {{ value = 1, warmup_steps = 20 }}

[[retention]]
use = "anchor"
weight = 2

[data]
train = "train.jsonl"
test = "sub/test.jsonl"
"""


def refusal(text, **keywords):
    """The problems that a text is refused with, as lines, columns and messages."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, **keywords)
    return [(p.line, p.column, p.message) for p in caught.value.problems]


def test_a_cache_of_the_base_needs_speedups(installed):
    """Law: what `speedups = "off"` forbids is refused where `cache` names it; frames are not."""
    table = '[training]\nspeedups = "off"\ncache = '
    assert refusal(SMALLEST + table + '["frames", "prefix", "teacher"]') == [
        (10, 20, "`prefix` is a speed-up, and `speedups` switches all of them off"),
        (10, 30, "`teacher` is a speed-up, and `speedups` switches all of them off"),
    ]
    assert parse_recipe(SMALLEST + table + '["frames"]').training.speedups == "off"
    assert parse_recipe(SMALLEST + table.replace("off", "on") + '["prefix"]')


def test_scenes_are_instead_of_captions_and_need_a_question(installed):
    """Law: a base is trained on captions or on scenes, and scenes are asked about by its prompt."""
    head = '[base.compose]\nvision = "v"\nlanguage = "l"\n'
    scenes = "[base.compose.scenes]\ntrain = 8"
    asked = 'prompt = "<image>{question}"\n'
    assert parse_recipe(SMALLEST + head + asked + scenes).base.compose.scenes.train == 8
    needs = "`prompt` must hold `{question}` once, after `<image>`"
    assert refusal(SMALLEST + head + scenes) == [(11, 15, needs)]
    assert refusal(SMALLEST + head + 'prompt = "{question}<image>"\n' + scenes) == [(11, 10, needs)]
    both = "`train` names captioned pictures, and [base.compose.scenes] draws its own"
    assert refusal(SMALLEST + head + 'train = "a.jsonl"\n' + asked + scenes) == [(11, 1, both)]


def test_what_is_not_written_has_its_default(installed):
    """The smallest recipe says what is used and nothing else."""
    recipe = parse_recipe(SMALLEST)
    assert recipe.base == BaseSpec(model="some/model")
    assert recipe.retention == ()
    assert recipe.data is None
    assert recipe.data_files() == {}
    assert (recipe.training, recipe.evaluation) == (TrainingSpec(), EvaluationSpec())
    assert recipe.modalities["audio"].gate == GateSpec()


def test_what_is_written_is_read(installed):
    """Arrays become tuples, whole numbers serve as numbers, and options are those given."""
    recipe = parse_recipe(FULL)
    audio = recipe.modalities["audio"]
    assert audio.encoder == PluginSpec("chime", {"model": "bell"})
    assert audio.fusion.options == {"layers": (0, 3), "table": {"a": 1.0}}
    assert audio.gate == GateSpec(value=1.0, warmup_steps=20)
    assert type(audio.gate.value) is float
    assert recipe.retention == (RetentionSpec("anchor", weight=2.0),)


def test_the_text_is_kept(installed):
    """A recipe keeps the text that its author wrote."""
    recipe = parse_recipe(SMALLEST, source="mine.toml")
    assert (recipe.text, recipe.source) == (SMALLEST, "mine.toml")


def test_data_files_are_relative_to_the_folder(installed, tmp_path):
    """File names become absolute paths in the recipe's folder."""
    assert parse_recipe(FULL, folder=tmp_path).data_files() == {
        "train": tmp_path / "train.jsonl",
        "test": tmp_path / "sub" / "test.jsonl",
    }


def test_an_empty_text_misses_what_every_recipe_needs():
    """A recipe needs a base and a modality."""
    assert refusal("") == [(1, 1, "`base` is missing"), (1, 1, "`modalities` is missing")]


def test_modalities_must_not_be_empty():
    """A recipe without modality has nothing to do."""
    assert refusal('base = { model = "m" }\n[modalities]\n') == [
        (2, 2, "`modalities` must not be empty")
    ]


def test_a_syntax_error_is_shown_like_any_other():
    """What tomli cannot parse has a line, a column and a caret too."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe("[base]\nmodel 3\n")
    assert str(caught.value) == (
        "recipe.toml:2:7: not valid TOML: expected '=' after a key in a key/value pair\n"
        "   2 | model 3\n"
        "     |       ^"
    )


def test_a_syntax_error_at_the_very_end_is_shown():
    """A position after the last line is valid."""
    assert [(line, column) for line, column, _ in refusal("a = [\n")] == [(2, 1)]


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("weight = true", ("retention", 0), "`weight` of retention regularizer `anchor` must be"),
        ("wieght = 1", ("retention", 0), "unknown option `wieght` of retention regularizer"),
    ],
)
def test_keys_beside_use_are_the_plugins(installed, option, path, message):
    """A mistake in a plugin's table names the plugin."""
    ((line, _, found),) = refusal(f'{SMALLEST}[[retention]]\nuse = "anchor"\n{option}\n')
    assert line == 10
    assert found.startswith(message)


def test_a_broken_plugin_is_named_where_it_is_used(installed):
    """A plugin whose options cannot be read is a problem of the line that uses it."""
    ((line, column, found),) = refusal(SMALLEST.replace('"chime"', '"broken"'))
    assert (line, column) == (5, 19)
    assert found.startswith("encoder `broken` of acme-safe 0.1 (acme_broken:Encoder) failed")


def test_carets_stand_under_wide_letters_and_tabs():
    """The caret line takes as many columns as the line above it."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe('base = {\tmodel = "m", "名" = 1 }\n[modalities]\na = 1\n')
    first = str(caught.value).split("\n\n")[0].split("\n")
    assert first[2] == "     |         \t             ^^^"


@pytest.mark.parametrize("name", ["my-audio", "a__b", "1st", "a.b"])
def test_a_modality_is_named_by_an_identifier(installed, name):
    """A name becomes an attribute and a prefix of parameter names."""
    ((line, _, found),) = refusal(SMALLEST.replace("modalities.audio", f'modalities."{name}"'))
    assert line == 4
    assert found == f"modality `{name}` must be named by an identifier without `__`"


def test_a_file_is_read(installed, tmp_path):
    """A path leads to the recipe, and its folder is where the file is."""
    path = tmp_path / "mine.toml"
    path.write_text(f"\ufeff{SMALLEST}", "utf-8")
    assert read_recipe(path) == read_recipe(str(path))
    assert read_recipe(path).folder == tmp_path


def test_a_name_is_looked_up_in_the_catalogue():
    """A word that is no file is the name of a recipe that ships."""
    assert read_recipe("quickstart").modalities


def test_a_misspelt_catalogue_name_is_guessed():
    """A word that is neither says so, and offers the nearest name."""
    with pytest.raises(RecipeError) as caught:
        read_recipe("quikstart")
    assert caught.value.message == "`quikstart` is neither a file nor a recipe of the catalogue"
    assert caught.value.hint.startswith("did you mean `quickstart`?")


def test_a_missing_file_is_guessed_from_its_neighbours(tmp_path):
    """A path that leads nowhere offers the nearest recipe beside it."""
    (tmp_path / "mine.toml").touch()
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "mien.toml")
    assert str(caught.value) == (
        f"there is no file `{tmp_path / 'mien.toml'}`\n"
        f"hint: did you mean `mine.toml`? recipes in `{tmp_path}`: mine.toml"
    )


def test_a_file_that_is_not_text_is_refused(tmp_path):
    """Bytes that are not UTF-8 are no recipe."""
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_recipe(tmp_path / "a.toml")


def test_what_a_constructor_refuses_is_shown_where_it_is_written(installed):
    """A range that only the plugin knows is reported like any other."""
    recipe = parse_recipe(SMALLEST)
    path = ("modalities", "audio", "fusion")
    refused = ValueError("`layers` must be below 2, not 3")
    assert str(locate_error(recipe, path, refused, "fusion adapter `echo`")) == (
        "recipe.toml:7:35: `layers` of fusion adapter `echo` must be below 2, not 3\n"
        '   7 | fusion = { use = "echo", layers = [0, 3], table = { a = 1 } }\n'
        "     |                                   ^^^^^^"
    )


def test_a_refused_default_is_shown_at_its_table(installed):
    """An option that is not written, and an error that names none, lead to the plugin's table."""
    recipe = parse_recipe(SMALLEST)
    path = ("modalities", "audio", "encoder")
    unwritten = locate_error(recipe, path, ValueError("`rate` must be 8000"), "encoder `chime`")
    assert unwritten.problems[0].message == "`rate` of encoder `chime` must be 8000"
    nameless = locate_error(recipe, path, SampleError("no bell", hint="ring"), "encoder `chime`")
    assert nameless.problems[0].message == "encoder `chime`: no bell"
    assert nameless.problems[0].hint == "ring"
    assert [(p.line, p.column) for p in unwritten.problems] == [(5, 1)]
    assert [(p.line, p.column) for p in nameless.problems] == [(5, 11)]


def test_one_mistake_can_be_shown_by_itself(installed):
    """Any caller can point at a key of a recipe."""
    error = RecipeError.at(parse_recipe(SMALLEST), ("base", "model"), "no such model", "look again")
    assert isinstance(error, SafeError)
    assert str(error).endswith("hint: look again")
    assert (error.problems[0].line, error.problems[0].column) == (2, 9)


def test_every_default_is_in_range():
    """A spec made with its defaults alone is sound, and out of range it is refused."""
    assert attrs.evolve(TrainingSpec(), max_steps=1).max_steps == 1
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, not 0"):
        TrainingSpec(max_steps=0)
    with pytest.raises(ValueError, match="`max_grad_norm` must be above 0, not inf"):
        TrainingSpec(max_grad_norm=float("inf"))


def test_a_missing_data_file_is_reported_only_when_reading(installed, tmp_path):
    """A text on its own may name files that are elsewhere."""
    assert parse_recipe(FULL, folder=tmp_path).data is not None
    (tmp_path / "a.toml").write_text(FULL)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "a.toml")
    assert [problem.message for problem in caught.value.problems] == [
        "there is no file `train.jsonl`",
        "there is no file `sub/test.jsonl`",
    ]
    assert Path(caught.value.problems[0].source) == tmp_path / "a.toml"
