"""What a certificate says, in the terminal and on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path

import attrs
import pytest
from rich.console import Console

from safe_framework.verification.certificate import Certificate, Comparison, Law, Verdict, summary

HERE = Path(__file__).parent
LAWS = (
    Law("L1", "Untouched", Verdict.HOLDS, "23 tensors hashed before and after"),
    Law("L2", "Off is the base", Verdict.HOLDS, "112 calls bit for bit"),
    Law("L6", "Composition", Verdict.NOT_APPLICABLE, "the model has one sense"),
    Law("", "Threads", Verdict.HOLDS, "off is the base while another thread hears"),
)
CERTIFICATE = Certificate(
    format=1,
    made="2026-01-02T03:04:05+00:00",
    versions={"python": "3.11.7", "torch": "2.13.0"},
    device="cpu",
    dtype="float32",
    attention="sdpa",
    calls="full",
    inputs="made up",
    base={"class": "LlamaForCausalLM", "model": "", "weights": "aa", "tokenizer": ""},
    modalities={"touch": {"weights": "bb", "gate": "1.0"}},
    laws=LAWS,
    comparisons=(
        Comparison("forward", "gate 0", "no_grad", True, operations=256, trace="cc"),
        Comparison("greedy", "off()", "inference", False, "`sequences[0, 8]` is 4"),
    ),
    seconds=1.234,
)
BROKEN = attrs.evolve(
    CERTIFICATE,
    laws=(
        Law("L1", "Untouched", Verdict.FAILS, "23 tensors", tuple(f"fault {n}" for n in range(7))),
        *LAWS[1:],
    ),
)


def printed(certificate: Certificate, width: int = 80) -> str:
    """What the terminal shows."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary(certificate))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


@pytest.mark.parametrize(("name", "certificate"), [("holds", CERTIFICATE), ("fails", BROKEN)])
def test_the_summary_is_as_it_was(name: str, certificate: Certificate) -> None:
    """One line a law, its findings below, then counts and versions."""
    assert printed(certificate) == (HERE / f"{name}.txt").read_text("utf-8")


def test_text_is_not_taken_as_markup() -> None:
    """A finding cannot change how the summary looks."""
    law = Law("L1", "Untouched", Verdict.FAILS, "", ("[red]gone[/red]",))
    assert "[red]gone[/red]" in printed(attrs.evolve(CERTIFICATE, laws=(law,)))


def test_a_round_trip_keeps_everything() -> None:
    """What is written is read back equal."""
    for certificate in (CERTIFICATE, BROKEN):
        assert Certificate.from_json(certificate.to_json()) == certificate


def test_the_file_says_what_holds_in_words() -> None:
    """Verdicts are words, and every finding is in the file."""
    laws = json.loads(BROKEN.to_json())["laws"]
    assert [law["verdict"] for law in laws] == ["fails", "holds", "not applicable", "holds"]
    assert len(laws[0]["findings"]) == 7


def test_only_a_failure_fails() -> None:
    """A law that does not apply is no failure."""
    assert CERTIFICATE.holds
    assert not BROKEN.holds
    assert [law.name for law in BROKEN.failures] == ["Untouched"]


def test_it_is_written_whole(tmp_path: Path) -> None:
    """Writing leaves one file, which replaces an older one."""
    path = tmp_path / "certificate.json"
    path.write_text("old", "utf-8")
    assert CERTIFICATE.write(path) == path
    assert Certificate.from_json(path.read_text("utf-8")) == CERTIFICATE
    assert list(tmp_path.iterdir()) == [path]
