"""``safe check`` looks at a recipe's rows, without building anything."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from safe_framework.cli import main
from tests.core.conftest import checkpoints as checkpoints
from tests.core.conftest import recipe as recipe
from tests.support import seeing

GOOD = {"question": "what is this", "answer": "low"}


@pytest.fixture
def write(tmp_path: Path, checkpoints: Path, recipe: Callable[..., Path]) -> Callable[..., str]:
    """Writes the training rows and a recipe of a base that sees; gives its file's name."""
    base = seeing.save(tmp_path / "seeing", *seeing.seeing_bases()["llava"]())
    Image.new("RGB", (2, 2)).save(tmp_path / "red.png")

    def written(rows: Sequence[object], data: str = "", *, sees: bool = True) -> str:
        """The recipe."""
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        text = recipe().read_text("utf-8")
        if sees:
            text = text.replace(f"{checkpoints}/base", str(base))
        path = tmp_path / "checked.toml"
        names = "".join(f'{key} = "rows.jsonl"\n' for key in ("train", "test", "retention_test"))
        path.write_text(f"{text}[data]\n{names}{data}", "utf-8")
        return str(path)

    return written


def test_rows_in_order_are_passed_over(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a recipe whose rows and pictures are whole is valid, and nothing more is said."""
    path = write([GOOD, {**GOOD, "image": "red.png"}])
    assert main(["check", path]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path} is a valid recipe\nit can be built, but not run: [[retention]]")
    assert "refused" not in said


def test_all_that_a_run_would_be_refused_for_is_said(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: unread fields, pictures, samples and texts that are wrong are said at once; exit 1."""
    rows = [
        {**GOOD, "id": 1}, {**GOOD, "image": "gone.png"}, {**GOOD, "audio": "gone.wav"},
        {"question": "q"}, [],
    ]  # fmt: skip
    assert main(["check", write(rows)]) == 1
    said = capsys.readouterr().out
    assert "a run would be refused for its data:\n" in said
    assert 'add `ignore = ["id"]` to [data]' in said
    for words in (
        "rows.jsonl:2: `image`: the picture `", "rows.jsonl:3: `audio`: there is no file `",
        "rows.jsonl:4: `answer` must be a text", "rows.jsonl:5: a row must be a JSON object",
    ):  # fmt: skip
        assert words in said


def test_rows_that_are_skipped_are_no_error(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: with `on_bad_row = "skip"` bad rows are listed and exit with 0; unread fields do not."""
    rows = [GOOD, {**GOOD, "image": "gone.png"}]
    assert main(["check", write(rows, 'on_bad_row = "skip"\n')]) == 0
    said = capsys.readouterr().out
    assert "a run would leave out rows:\nrows.jsonl:2: `image`" in said
    assert main(["check", write([{**GOOD, "id": 1}], 'on_bad_row = "skip"\n')]) == 1


def test_pictures_that_a_base_does_not_take_are_said(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a picture for a base of text is refused before anything is built, or ignored."""
    rows = [{**GOOD, "image": "red.png"}]
    assert main(["check", write(rows, sees=False)]) == 1
    assert "rows.jsonl:1 has a picture, but a base of type `llama` takes none" in (
        capsys.readouterr().err
    )
    assert main(["check", write(rows, 'ignore = ["image"]\n', sees=False)]) == 0


def test_a_late_picture_is_seen(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a picture for a base of text is refused wherever it stands in its file."""
    rows = [*[GOOD] * 1000, {**GOOD, "image": "red.png"}]
    assert main(["check", write(rows, sees=False)]) == 1
    assert "rows.jsonl:1001: `image`: it has a picture, but" in capsys.readouterr().out


def test_many_errors_are_cut_short(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: of many errors the first are shown, and how many more there are."""
    rows = [{**GOOD, "image": f"gone-{number}.png"} for number in range(30)]
    assert main(["check", write(rows)]) == 1
    said = capsys.readouterr().out
    assert len(re.findall(r"gone-\d+.png", said)) == 20
    assert "and 30 more: `safe data check` lists all\n" in said


def test_what_a_run_needs_besides_is_said(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Law: a recipe that can be built and not be run is valid, and says what a run needs."""
    path = Path(write([GOOD]))
    path.write_text(path.read_text().replace('retention_test = "rows.jsonl"\n', ""))
    assert main(["check", str(path)]) == 0
    assert "not run: a run needs `retention_test` in [data]" in capsys.readouterr().out
