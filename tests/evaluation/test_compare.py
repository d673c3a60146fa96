"""Two runs on the same rows: what differs, how surely, and when nothing may be compared."""

import json

import attrs
import numpy as np
import pytest

from safe_framework.cli import main
from safe_framework.errors import DataError
from safe_framework.evaluation.compare_runs import compared, mcnemar


def answering(evaluation, right):
    """The evaluation with as many rows as flags, right where a flag is set."""
    like = evaluation.answers[0]
    rows = tuple(
        attrs.evolve(like, place=f"test.jsonl:{n}", expected="piano", answer="piano" if ok else "x")
        for n, ok in enumerate(right)
    )
    return attrs.evolve(evaluation, answers=rows)


def keeping(evaluation, *shares):
    """The evaluation with these shares of tokens kept, of texts that are equally long."""
    kept = evaluation.retention
    overall = attrs.evolve(kept.overall, shares=shares, lengths=(10,) * len(shares))
    return attrs.evolve(evaluation, retention=attrs.evolve(kept, overall=overall))


def test_mcnemar_is_the_exact_coin():
    """Law: with five rows gained and none lost p is 2/32; with as many of each it is 1."""
    base = np.zeros(8)
    better = np.array([1.0] * 5 + [0.0] * 3)
    assert mcnemar(base, better) == pytest.approx(2 / 32)
    assert mcnemar(better, base) == pytest.approx(2 / 32)
    assert mcnemar(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 1.0
    assert mcnemar(base, base) == 1.0


def test_a_run_does_not_differ_from_itself(evaluation):
    """Law: the same run twice differs by exactly 0, with an interval of no width and p 1."""
    for row in compared([evaluation], [evaluation]):
        assert (row.difference, row.low, row.high, row.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_sees_what_intervals_apart_would_not(evaluation):
    """Law: a small gain on the same rows is found, since rows are paired."""
    worse = answering(evaluation, [n % 2 == 0 for n in range(60)])
    better = answering(evaluation, [n % 2 == 0 or n < 16 for n in range(60)])
    right = compared([worse], [better])[0]
    assert right.difference == pytest.approx(8 / 60)
    assert right.low > 0
    assert right.test == "exact McNemar"
    assert right.p == pytest.approx(2 / 2**8)


def test_what_was_kept_is_paired_by_text(evaluation):
    """Law: tokens kept are compared text by text, weighted by their lengths."""
    one = keeping(evaluation, 0.9, 0.8, 0.7)
    other = keeping(evaluation, 0.95, 0.85, 0.75)
    kept = compared([one], [other])[2]
    assert kept.difference == pytest.approx(0.05)
    assert kept.low == pytest.approx(0.05)
    assert kept.test == "paired bootstrap"


def test_older_results_are_compared_without_texts(evaluation):
    """Law: where a run did not keep its texts' shares, only answers are compared."""
    assert [row.name for row in compared([evaluation], [evaluation])] == [
        "right answers",
        "token F1",
    ]


def test_seeds_are_aggregated(evaluation):
    """Law: several seeds give their mean and spread, and an interval that draws seeds too."""
    worse = [answering(evaluation, [n < 20 + shift for n in range(60)]) for shift in (0, 6)]
    better = [answering(evaluation, [n < 22 + shift for n in range(60)]) for shift in (0, 6)]
    right = compared(worse, better)[0]
    assert right.first.value == pytest.approx(23 / 60)
    assert right.first.spread == pytest.approx(np.std([20 / 60, 26 / 60], ddof=1))
    assert right.low < 0 < right.high
    assert right.test == "paired bootstrap"
    alone = compared(worse)[0]
    assert (alone.first, alone.second, alone.p) == (right.first, None, None)


def test_other_rows_are_refused(evaluation):
    """Law: runs that were tested on different rows are never paired."""
    with pytest.raises(DataError, match=r"tested on different rows.*\nhint: compare runs with"):
        compared([answering(evaluation, [1, 0])], [answering(evaluation, [1, 0, 1])])


def test_the_command_prints_and_writes(evaluation, tmp_path, capsys):
    """Law: ``safe compare A B`` shows both sides and writes what it shows, read from disk."""
    for name, right in (("a", [1, 0, 0, 0]), ("b", [1, 1, 1, 0])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(answering(evaluation, right).to_json())
    folders, path = [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "found.json"
    assert main(["compare", *folders, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "+50.0 points" in printed
    assert "exact McNemar" in printed
    assert json.loads(path.read_text())["rows"][0]["p"] == pytest.approx(0.5)
    assert main(["compare", folders[0], "--against", folders[1], folders[1]]) == 0
    assert "(2 runs" in capsys.readouterr().out
