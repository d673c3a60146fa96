"""``[data]`` with one dataset or a mix of them, and the task of each."""

from pathlib import Path

import pytest

from safe_framework.config.read import parse_recipe
from safe_framework.config.schema import MixSpec
from tests.config.test_read import SMALLEST, refusal

CLASSES = 'task = "classification"\n'


def data(text: str) -> str:
    """The smallest recipe with this ``[data]``."""
    return f"{SMALLEST}\n[data]\n{text}"


def mix(*tables: str, head: str = "") -> str:
    """The smallest recipe with a mix."""
    return data(head + "".join(f"[[data.mix]]\n{table}\n" for table in tables))


def test_one_dataset_is_a_mix_of_one(installed: None) -> None:
    """What ``[data]`` says of its dataset holds for the only one there is."""
    text = 'train = "a.jsonl"\ntest = "b.jsonl"\nprompt = "Q {question}"\nquestion = "what"\n'
    spec = parse_recipe(data(text + CLASSES + 'labels = ["x", "y"]')).data
    assert spec is not None
    assert spec.datasets() == {
        "": MixSpec(
            "a.jsonl", "b.jsonl", "classification", name="", labels=("x", "y"),
            prompt="Q {question}", question="what", fields={},
        )
    }  # fmt: skip


def test_a_mix_fills_in_what_its_datasets_leave_open(installed: None, tmp_path: Path) -> None:
    """Prompt, question and fields come from ``[data]`` where a table has none of its own."""
    recipe = parse_recipe(
        mix(
            'train = "sub/a.jsonl"\ntask = "captioning"\nprompt = "Say it:"',
            'train = "b.jsonl"\ntest = "c.jsonl"\nname = "asked"\nweight = 3',
            head='prompt = "Q {question}"\nfields = { audio = "clip" }\n',
        ),
        folder=tmp_path,
    )
    assert recipe.data is not None
    first, second = recipe.data.datasets().values()
    assert (first.called, first.prompt, first.fields) == ("a", "Say it:", {"audio": "clip"})
    assert (second.called, second.prompt, second.weight) == ("asked", "Q {question}", 3.0)
    assert recipe.data_files() == {
        "train of a": tmp_path / "sub/a.jsonl",
        "train of asked": tmp_path / "b.jsonl",
        "test of asked": tmp_path / "c.jsonl",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (data('test = "b.jsonl"'), "`data.train` is missing"),
        (mix('train = "a"', head='train = "b"\n'), "`data.train` cannot stand beside [[data.mix]]"),
        (mix('train = "a"', head=CLASSES), "`data.task` cannot stand beside [[data.mix]]"),
        (
            mix('train = "x/a.csv"', 'train = "a.jsonl"'),
            "2 datasets of [[data.mix]] are called `a`",
        ),
        (mix('train = "a"\nweight = 0'), "`data.mix[0].weight` must be above 0, not 0.0"),
        (
            mix('train = "a"\nlabels = ["x", "y"]'),
            "`data.mix[0].labels` belong to a classification",
        ),
        (
            data(f'train = "a"\n{CLASSES}labels = ["x", "x"]'),
            "`data.labels` must be at least 2 texts that differ",
        ),
        (data(f'train = "a"\n{CLASSES}read_at = "tokens"'), "`data.read_at` cannot be the tokens"),
        (
            mix('train = "a"\nprompt = "what"'),
            '`data.mix[0].prompt` must contain "{question}", not "what"',
        ),
        (
            data('train = "a"\nsystem = "Be brief."\nchat = false'),
            "`data.system` is the system's message in a chat",
        ),
        (mix('tran = "a"'), "`data.mix[0].train` is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(installed: None, text: str, message: str) -> None:
    """Forms that exclude each other, and options of another task, are named where they stand."""
    assert message in [problem[2] for problem in refusal(text)]


def test_classes_are_read_at_tokens_that_are_inline(installed: None) -> None:
    """With ``inline``, the tokens are there to be read."""
    text = data(f'train = "a"\n{CLASSES}read_at = "tokens"').replace(
        "\n\n[data]", "\ninline = true\n\n[data]"
    )
    assert parse_recipe(text).data.read_at == "tokens"


def test_files_of_a_mix_must_be_there(installed: None, tmp_path: Path) -> None:
    """A missing file of a mix is shown at its own table."""
    from safe_framework.config.diagnostics import RecipeError
    from safe_framework.config.read import read_recipe

    (tmp_path / "recipe.toml").write_text(mix('train = "nowhere.jsonl"'))
    with pytest.raises(RecipeError, match=r"there is no file `nowhere\.jsonl`"):
        read_recipe(tmp_path / "recipe.toml")
