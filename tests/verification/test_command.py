"""``safe verify``: what it takes, what it writes, and the code that it leaves with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import safe_framework
from safe_framework.cli import main
from safe_framework.core.injection import CallInjection
from safe_framework.pretrained import quietly
from safe_framework.verification.certificate import Certificate
from tests.support.toys import llama, tokenizer

RECIPE = """\
[base]
model = "{base}"

[modalities.touch]
encoder = {{ use = "touch" }}
projector = {{ use = "standard", tokens = 2, hidden_dim = 8 }}
fusion = {{ use = "lora", rank = 2, layers = [-1] }}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base."""
    folder = tmp_path_factory.mktemp("base")
    with quietly():
        llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for that base, whose encoder an installed plugin provides."""
    from importlib.metadata import EntryPoint

    from safe_framework.interfaces import registry

    real = registry.group_points
    touch = EntryPoint("touch", "tests.support.toys:ToyEncoder", "safe_framework.encoders")
    monkeypatch.setattr(
        registry,
        "group_points",
        lambda group: [*real(group), *([touch] if group == touch.group else [])],
    )
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(base=base), "utf-8")
    return path


def test_a_base_is_given_a_modality(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anyone can ask whether the laws hold on a base; nothing is written unless asked for."""
    assert main(["verify", str(base), "--quick"]) == 0
    out = capsys.readouterr().out
    assert "Off is the base" in out
    assert "certificate.json" not in out
    assert not (base / "certificate.json").exists()


def test_a_recipe_is_built_and_verified(recipe: Path, tmp_path: Path) -> None:
    """The certificate goes where ``--json`` says."""
    path = tmp_path / "out.json"
    assert main(["verify", str(recipe), "--quick", "--json", str(path)]) == 0
    certificate = Certificate.from_json(path.read_text("utf-8"))
    assert certificate.holds
    assert certificate.modalities["touch"]["encoder"] == "ToyEncoder"


def test_an_adapter_keeps_its_certificate(recipe: Path, tmp_path: Path) -> None:
    """A trained adapter's certificate lies in its folder, and its name is of those weights."""
    model = safe_framework.build(recipe)
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = model.save_pretrained(tmp_path / "run" / "adapter")
    assert main(["verify", str(folder.parent), "--quick"]) == 0  # a run's folder is its adapter's
    certificate = Certificate.from_json((folder / "certificate.json").read_text("utf-8"))
    details = {law.name: law.detail for law in certificate.laws}
    assert "weights as recorded with the adapter" in details["Untouched"]
    assert details["Fresh is silent"] == "a fresh sense by the same recipe"
    assert details["On is heard"].endswith("and its own")
    assert safe_framework.load(folder).gates == {"touch": 1.0}
    model.save_pretrained(folder)
    assert (folder / "certificate.json").exists()  # the weights are the same
    torch.nn.init.zeros_(next(iter(model.trainable_parameters().values())))
    model.save_pretrained(folder)
    assert not (folder / "certificate.json").exists()  # it was of other weights


def test_a_failure_is_an_exit_code(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One law that fails makes the command fail, and is shown."""
    monkeypatch.setattr(CallInjection, "check_fired", lambda self: None)
    assert main(["verify", str(base), "--quick"]) == 1
    assert "a fused layer was bypassed, and the call answered" in capsys.readouterr().out


def test_an_unknown_target_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """What is neither adapter, recipe nor base is refused in words."""
    assert main(["verify", "nosuchthing"]) == 1
    assert "`nosuchthing` is neither a folder, a card, nor a hub id" in capsys.readouterr().err
