"""Fields of rows that nobody reads are told of, all at once, with the line that ends it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import Recipe
from safe_framework.data.checks.recipe import check_target
from safe_framework.data.fields import RowFields, ignoring, row_fields, unread_error
from safe_framework.data.preview import preview
from safe_framework.data.readers import Row
from safe_framework.data.recipe_data import RecipeData
from safe_framework.errors import DataError

GOOD = {"question": "what is this", "answer": "low"}
TEXT = {"text": "the cat sat"}


@pytest.fixture
def write(tmp_path: Path, recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    """Writes rows for each source, and a recipe with lines of its own."""

    def written(data: str = "", rest: str = "", **sources: list[dict[str, Any]]) -> Recipe:
        """A recipe with ``train`` and whatever else is given."""
        for key, rows in {"train": [GOOD], **sources}.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (tmp_path / f"{key}.jsonl").write_text(lines, "utf-8")
            if f"{key}.jsonl" not in data:
                data = f'{key} = "{key}.jsonl"\n' + data
        text = f"{recipe().read_text('utf-8')}[data]\n{data}{rest}"
        (tmp_path / "written.toml").write_text(text, "utf-8")
        return parse_recipe(text, str(tmp_path / "written.toml"), tmp_path)

    return written


def refused(recipe: Recipe, key: str = "train") -> str:
    """Why a source of a recipe is not read."""
    data = RecipeData(recipe)
    with pytest.raises(DataError) as caught:
        data.texts(key) if key.startswith("retention") else data.examples(key, {})
    return str(caught.value)


def test_a_misspelt_field_is_named_with_its_row(write: Callable[..., Recipe]) -> None:
    """Law: a field that nobody reads stops the reading, whatever a default does without it."""
    rows = [GOOD, {"quesiton": "is it high", "answer": "low"}]
    recipe = write('question = "what"\n', train=rows)
    assert refused(recipe) == (
        "train.jsonl:2: nothing reads the field `quesiton` (did you mean `question`?)\n"
        'hint: correct what is misspelt; if they are not to be read, add `ignore = ["quesiton"]`'
        " to [data]"
    )


def test_a_row_without_its_question_says_what_it_has(write: Callable[..., Recipe]) -> None:
    """Law: where a needed field is missing, the one that was meant is asked after."""
    recipe = write(train=[{"quesiton": "is it high", "answer": "low"}])
    assert "hint: did you mean `quesiton`? its fields are: quesiton, answer" in refused(recipe)


def test_many_columns_are_one_message_with_the_line_that_ends_it(
    write: Callable[..., Recipe],
) -> None:
    """Law: all fields of all sources that nobody reads are named at once, in a line to paste."""
    extra = {f"column {number}": number for number in range(10)}
    sources = {
        "train": [{**GOOD, **extra}] * 3,
        "test": [{**GOOD, **extra}],
        "retention": [{**TEXT, "id": 7}],
    }
    message = refused(write(**sources))
    line = next(part for part in message.split("`") if part.startswith("ignore = "))
    assert tomli.loads(line) == {"ignore": [*extra, "id"]}
    assert [part.partition(": ")[0] for part in message.split("\n")] == [
        "train.jsonl:1", "test.jsonl:1", "retention.jsonl:1", "hint",
    ]  # fmt: skip
    data = RecipeData(write(f"{line}\n", **sources))
    assert len(data.examples("train", {})) == 3
    assert [row.text for row in data.texts("retention")] == ["the cat sat"]
    assert data.examples("train", {})[0].fields == GOOD


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_the_line_to_paste_is_toml_whatever_the_fields_are_called(names: list[str]) -> None:
    """Law: pasted, the line ignores exactly the fields that were named; none is unread then."""
    row = Row("rows.jsonl:1", Path(), dict.fromkeys(names, 1))
    fields = RowFields(read=frozenset({"question"}))
    fields.note(row)
    if not fields.unread:
        assert all(name == "question" or name.startswith("__") for name in names)
        return
    line = ignoring([fields]).partition("add `")[2].rpartition("` to [data]")[0]
    ignored = tomli.loads(line)["ignore"]
    again = RowFields(ignored=ignored, read=frozenset({"question"}))
    again.note(row)
    assert not set(ignored) & again.of(row).values.keys()
    assert not again.unread


@pytest.mark.parametrize(
    ("data", "row", "unread"),
    [
        ('task = "captioning"\n', {"caption": "a dog"}, []),
        ('task = "classification"\n', {"label": "dog"}, []),
        ("", {**GOOD, "caption": "a dog"}, ["caption"]),
        ("", {**GOOD, "label": "dog", "text": "a"}, ["label", "text"]),
        ("", {**GOOD, "file_name": None, "touch": None, "id": None}, []),
        ("", {**GOOD, "__index_level_0__": 3}, []),
        ("", {**GOOD, "kind": "colour"}, []),
        ('fields = { answer = "reply" }\n', {"question": "q", "reply": "a"}, []),
        ('fields = { answer = "reply" }\n', {**GOOD, "reply": "a", "more": 1}, ["more"]),
        ('ignore = ["id"]\n', {**GOOD, "id": 3, "more": 1}, ["more"]),
    ],
)  # fmt: skip
def test_what_counts_as_read(
    write: Callable[..., Recipe], data: str, row: Mapping[str, Any], unread: list[str]
) -> None:
    """Law: a field is read by its task, under any name, by modalities and tables, or ignored."""
    fields = row_fields(write(data, train=[dict(row)]), "train")
    fields.note(Row("train.jsonl:1", Path(), row))
    assert list(fields.unread) == unread


def test_another_task_is_offered_for_its_field(write: Callable[..., Recipe]) -> None:
    """Law: a field that another task reads says which."""
    message = refused(write(train=[{**GOOD, "caption": "a dog"}]))
    assert 'field `caption` (`task = "captioning"` does)' in message


def test_a_curriculum_reads_the_fields_that_it_chooses_by(write: Callable[..., Recipe]) -> None:
    """Law: what a stage asks for is read, in every source; anything else is not."""
    stages = '\n[[curriculum]]\nwhere = { level = "easy" }\n'
    row = {**GOOD, "level": "easy"}
    assert len(RecipeData(write(rest=stages, train=[row])).examples("train", {})) == 1
    assert "`level`" in refused(write(train=[row]))


def test_datasets_of_a_mix_have_fields_of_their_own(tmp_path: Path, write: Any) -> None:
    """Law: each dataset ignores what it says and what [data] says, and is told of the rest."""
    mix = (
        '[[data.mix]]\ntrain = "train.jsonl"\nignore = ["id"]\n'
        '[[data.mix]]\ntrain = "more.jsonl"\ntask = "captioning"\n'
    )
    rows = {"train": [{**GOOD, "id": 1, "at": 2}], "more": [{"caption": "a dog", "id": 1, "at": 2}]}
    message = refused(write(f'ignore = ["at"]\n{mix}', **rows))
    assert message.startswith("more.jsonl:1: nothing reads the field `id`\n")


def test_what_another_source_reads_may_be_ignored_in_one(write: Callable[..., Recipe]) -> None:
    """Law: a field that is ignored is still read where something reads it, but for pictures."""
    sources = {"train": [{**GOOD, "text": "w"}], "retention": [{**TEXT, "label": 1}]}
    data = RecipeData(write('ignore = ["text", "label", "question"]\n', **sources))
    assert [row.text for row in data.texts("retention")] == ["the cat sat"]
    assert [row.prompt for row in data.examples("train", {})] == ["what is this"]


def test_fields_of_rows_that_are_left_out_stop_nothing(write: Callable[..., Recipe]) -> None:
    """Law: with `on_bad_row = "skip"`, only rows that are used are asked what nobody reads."""
    rows = [GOOD, {"quesiton": "is it high", "answer": "low"}]
    recipe = write('on_bad_row = "skip"\n', train=rows)
    data = RecipeData(recipe)
    assert len(data.examples("train", {})) == 1
    assert "did you mean `quesiton`?" in data.skipped["train"][0].hint
    assert preview(recipe).errors == ()


def test_foreign_samples_may_have_any_field(write: Callable[..., Recipe]) -> None:
    """Law: what else rows of foreign samples say is nobody's concern."""
    fields = row_fields(write(), "foreign")
    fields.note(Row("foreign.jsonl:1", Path(), {"touch": "a.npy", "title": "rain"}))
    assert fields.unread == {}


def test_columns_of_a_dataset_are_fields(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a column of a dataset that nobody reads is told of as a field of a file is."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    rows = [{**GOOD, "url": "x", "empty": None}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "train.jsonl").unlink(missing_ok=True)
    message = refused(write('train = "saved" # not train.jsonl\n'))
    assert message.startswith("saved:1: nothing reads the field `url`\n")


def test_both_checks_name_the_field_as_a_run_does(
    tmp_path: Path, write: Callable[..., Recipe]
) -> None:
    """Law: `safe check` and `safe data check` find what a run is refused for, once a source."""
    rows = [{**GOOD, "id": 1}, {**GOOD, "id": 2}, {**GOOD, "note": "low"}]
    recipe = write(train=rows)
    (error,) = preview(recipe).errors
    assert str(error) == refused(recipe)
    report = check_target(str(tmp_path / "written.toml"), longest=30)
    (found,) = [one for one in report.findings if one.kind == "unread-field"]
    assert (found.place, found.severity) == ("train.jsonl:1", "error")
    assert f"{found.place}: {found.message}" == error.message
    assert found.hint == error.hint
    assert "`id`, `note` (first in train.jsonl:3)" in error.message


def test_all_sources_without_faults_have_no_error() -> None:
    """Law: the error about several sources leaves out those that are read wholly."""
    whole, other = RowFields(read={"text"}), RowFields(read={"text"})
    whole.note(Row("a:1", Path(), {"text": "x"}))
    other.note(Row("b:1", Path(), {"text": "x", "id": 1}))
    assert unread_error([whole, other]).message == "b:1: nothing reads the field `id`"
