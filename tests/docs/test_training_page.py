"""docs/training.md says what is so."""

import re
from pathlib import Path

import tomli

from safe_framework.cli import main
from safe_framework.config.schema import TrainingSpec
from safe_framework.utils import catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")


def test_the_table_has_every_configuration():
    """Each configuration of `accelerate launch` that ships has a row, and no other."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows
    assert sorted(rows) == sorted(catalogue.launches())


def test_what_is_set_is_a_key_of_training():
    """What the page sets, `[training]` takes, with that value."""
    lines = re.findall(r"`(\w+ = [^`]+)`", PAGE)
    assert len(lines) >= 4
    for line in lines:
        assert TrainingSpec(**tomli.loads(line))


def test_the_command_finds_the_configuration(capsys):
    """What is put on the command line of `accelerate launch` prints a file's path."""
    (command,) = re.findall(r"\$\(safe ([^)]+)\)", PAGE)
    assert main(command.split()) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
