"""A whole run whose rows have two samples: trained, measured, shown and asked like any other."""

import json
from pathlib import Path

import pytest

import safe_framework
from safe_framework.cli import main
from safe_framework.data.checks.recipe import check_target
from safe_framework.evaluation.attention import read_attention
from safe_framework.runs.finished import open_run
from safe_framework.runs.run import run_recipe
from tests.runs.conftest import write_rows

pytestmark = pytest.mark.slow


def pairs(name: str, count: int) -> list[dict[str, object]]:
    """Rows with two tones, of which the first is high or low; a third has one tone alone."""
    rows: list[dict[str, object]] = []
    for number in range(count):
        first, second = number % count, (number + 1) % count
        answer = "high" if number % 2 else "low"
        both = [f"{name}{first}.wav", f"{name}{second}.wav"]
        if number % 3 == 2:
            rows.append({"question": "what is this", "answer": answer, "audio": both[0]})
        elif number % 3:
            text = "is <audio> this or <audio>"
            rows.append({"question": text, "answer": answer, "audio": both})
        else:
            rows.append({"question": "what is", "answer": answer, "audio": both, "align": answer})
    return rows


@pytest.fixture(scope="module", params=["", "inline = true\n"], ids=["plain", "inline"])
def finished(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a whole run; not to be changed."""
    for name, count in (("train", 8), ("test", 4)):
        write_rows(world / f"{name}_pairs.jsonl", pairs(name, count))  # type: ignore[arg-type]
    text = (world / "recipe.toml").read_text("utf-8").replace("max_steps = 9", "max_steps = 4")
    for name in ("train", "test"):
        text = text.replace(f'"{name}.jsonl"', f'"{name}_pairs.jsonl"')
    text = text.replace("gate =", f"{request.param}gate =")
    recipe = world / f"pairs{bool(request.param)}.toml"
    recipe.write_text(text, "utf-8")
    checked = check_target(str(recipe), longest=30)
    assert not [one for one in checked.findings if one.data in ("train", "test")]
    assert checked.counts["train"].samples["audio"] == 14  # of 8 rows
    return run_recipe(str(recipe), output=tmp_path_factory.mktemp("pairs") / "run", quiet=True)


def test_a_run_hears_all_samples(finished: Path) -> None:
    """Law: every row is trained on and asked, absent and gate 0 are the base, order is learned."""
    found = json.loads((finished / "metrics.json").read_text("utf-8"))
    assert len(found["answers"]) == 4
    assert found["retention"]["absent"]["identical"]
    assert found["gate_zero"]["logits_identical"]
    model = safe_framework.load(finished / "adapter")
    assert model.modality("audio").segments.weight.any()


def test_the_report_plays_each_sample(finished: Path) -> None:
    """Law: a card has a player for each sound of its row, which says which one it is."""
    page = (finished / "report.html").read_text("utf-8")
    rows = [row for row in pairs("test", 4) if isinstance(row["audio"], list)]
    assert page.count("(1 of 2)") == page.count("(2 of 2)") == len(rows)
    assert page.count("<audio") == 2 * len(rows) + 4 - len(rows)


def test_a_finished_run_is_asked_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: gate and attention are measured on rows with several samples; answers stay the run's."""
    assert main(["sweep", str(finished), "--gates", "1", "--texts", "1", "--budget", "0"]) == 0
    capsys.readouterr()
    assert main(["report", str(finished)]) == 0
    attention, run = read_attention(finished), open_run(finished)
    assert attention is not None
    long = {row.place: row.seconds for row in attention}
    for number, row in enumerate(pairs("test", 4), 1):
        place = f"test_pairs.jsonl:{number}"
        if place in long:
            assert long[place] == pytest.approx(0.2 * (1 + isinstance(row["audio"], list)))
    assert len(run.evaluation.answers) == 4
