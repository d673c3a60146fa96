"""What a certificate asks with pictures, of a base that sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import safe_framework
from safe_framework import verify
from safe_framework.cli import main
from safe_framework.config.schema import StageBSpec
from safe_framework.core.call import ModelCall
from safe_framework.core.model import SafeModel
from safe_framework.pretrained import quietly
from safe_framework.verification.bench import Bench
from safe_framework.verification.calls import CALLS, OFF_METHODS
from safe_framework.verification.certificate import Certificate, Law, Verdict
from safe_framework.verification.pictures import (
    PictureBenches,
    made_up_picture,
    picture_benches,
)
from safe_framework.verification.target import with_made_up_modality
from tests.experimental.base_finetuning.changed import LAYERS, LORA, moved
from tests.runs.conftest import cache, world, write_rows
from tests.support.lanes import slow_but
from tests.support.seeing import picture, save, seeing_bases
from tests.support.toys import attached, llama, texts, tokenizer
from tests.support.toys import llava as toy_llava

__all__ = ["cache", "world"]

SEEN = "Pictures are seen"
OF_TEXT = [
    "Untouched",
    "Off is the base",
    "Off runs the base's operations",
    "Plugins propose",
    "Rows",
    "Fresh is silent",
    "Composition",
    "Nothing silent",
    "The prompt is the base's",
    "Irrelevant is absent",
    "On is heard",
    "Cached decoding agrees",
    "Threads",
]
ONE_BY_ONE = {"blip-2-opt", "blip-2-t5", "instructblip", "florence2"}
"""Types whose rows all have a picture, or none has."""


def model_of(name: str = "llava") -> SafeModel:
    """A tiny model of a type with its real processor, and a made-up modality that has an effect."""
    model = with_made_up_modality(*seeing_bases()[name]())
    generator = torch.Generator().manual_seed(0)
    for parameter in model.trainable_parameters().values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def benches_of(model: SafeModel) -> PictureBenches:
    """The benches with pictures, of which there are some."""
    found = picture_benches(model)
    assert isinstance(found, PictureBenches)
    return found


def by_name(certificate: Certificate) -> dict[str, Law]:
    """The laws by what they are called."""
    return {law.name: law for law in certificate.laws}


Told = list[tuple[int, int]]


@pytest.fixture(scope="module")
def progress() -> Told:
    """What was said of the progress of that certificate."""
    return []


@pytest.fixture(scope="module")
def certified(progress: Told) -> Certificate:
    """The certificate of a LLaVA."""

    def tell(label: str, done: int, total: int, note: str) -> None:
        progress.append((done, total))

    return verify(model_of(), calls="quick", progress=tell)


def test_every_law_is_asked_with_pictures(certified: Certificate) -> None:
    """Each law but L1, which is of the base itself, has a row with pictures in the batch."""
    with_pictures = [f"{name}, with pictures" for name in OF_TEXT if name != "Untouched"]
    assert list(by_name(certified)) == [*OF_TEXT, *with_pictures, SEEN]
    assert certified.failures == ()
    assert by_name(certified)[SEEN].verdict is Verdict.HOLDS


def test_every_call_and_every_way_is_made_with_pictures(certified: Certificate) -> None:
    """Every call of the certificate is compared in rows of all kinds and with a picture in each."""
    for label in ("with pictures", "a picture in each row"):
        made = [c for c in certified.comparisons if c.call.endswith(f", {label}")]
        assert {c.call for c in made} == {f"{call.name}, {label}" for call in CALLS}
        assert {c.off for c in made} == set(OFF_METHODS)
    traced = [c for c in certified.comparisons if c.trace and "with pictures" in c.call]
    assert {c.call for c in traced} == {"forward, with pictures", "greedy, with pictures"}


def test_a_text_base_has_the_rows_that_it_had() -> None:
    """Nothing of pictures is said of a base that does not see."""
    model = attached(llama(), tokenizer=tokenizer())
    assert picture_benches(model) is None
    certificate = verify(model, calls="quick")
    assert list(by_name(certificate)) == OF_TEXT
    assert not [c for c in certificate.comparisons if "picture" in c.call]


@pytest.mark.parametrize("name", slow_but(["florence2"], seeing_bases()))
def test_every_type_keeps_the_laws_with_pictures(name: str) -> None:
    """Every law holds on every image-text type, or does not apply; each type sees."""
    certificate = verify(model_of(name), calls="quick")
    laws = by_name(certificate)
    assert certificate.failures == ()
    assert laws[SEEN].verdict is Verdict.HOLDS
    assert laws["Rows, with pictures"].verdict is Verdict.HOLDS
    assert ("asked apart" in laws[SEEN].detail) == (name in ONE_BY_ONE)


@pytest.mark.slow
def test_the_full_list_is_every_pair() -> None:
    """With all calls asked for, each is compared in each way in rows of all kinds."""
    made = verify(model_of()).comparisons
    pairs = {(c.call, c.off) for c in made if c.call.endswith(", with pictures")}
    assert len(pairs) == len(CALLS) * len(OFF_METHODS)


# The rows


def test_the_rows_are_of_four_kinds() -> None:
    """A picture and a sample, each alone, and neither, in one batch; each row is what it says."""
    model = model_of()
    main_bench = benches_of(model).main
    assert main_bench.rows == "picture alone, text alone, sample alone, picture and sample"
    plain = main_bench.bench.batches["plain"]
    pictured = (plain["input_ids"] == model.base.config.image_token_id).any(1)
    assert pictured.tolist() == [True, False, False, True]
    assert (main_bench.pictured, main_bench.bench.heard) == ((0, 3), (2, 3))
    assert len(plain["pixel_values"]) == 2


@pytest.mark.parametrize(("side", "first"), [("left", 0), ("right", -1)])
def test_rows_are_padded_on_the_side_that_they_say(side: str, first: int) -> None:
    """Rows with and without a picture are padded on one side, the longest not at all."""
    mask: Tensor = benches_of(model_of()).main.bench.batches[side]["attention_mask"]
    assert mask[:, first].tolist() == [0, 0, 0, 1]
    assert mask[:, -1 - first].all()


def test_a_placeholder_is_not_to_be_predicted() -> None:
    """The labels of a call with a loss leave out what stands for a picture."""
    model = model_of()
    bench = benches_of(model).main.bench
    call = next(call for call in CALLS if call.labels)
    given = bench.inputs(call)
    image = given["input_ids"] == model.base.config.image_token_id
    assert image.any()
    assert (given["labels"][image] == -100).all()
    assert (given["labels"][~image] != -100).any()


def test_other_pictures_are_other_pixels() -> None:
    """Made-up pictures are the same for the same seed, and others for another."""
    assert made_up_picture(1).tobytes() == made_up_picture(1).tobytes()
    assert made_up_picture(1).tobytes() != made_up_picture(2).tobytes()
    main_bench = benches_of(model_of()).main
    plain, others = main_bench.bench.batches["plain"], main_bench.others
    assert torch.equal(plain["input_ids"], others["input_ids"])
    assert not torch.equal(plain["pixel_values"], others["pixel_values"])


# What is wrong is found


def test_a_blind_base_is_told() -> None:
    """A base whose logits no picture changes does not pass, though every other law holds."""
    model = model_of()
    for parameter in model.base.model.multi_modal_projector.parameters():
        parameter.data.zero_()
    certificate = verify(model, calls="quick")
    assert [law.name for law in certificate.failures if law.name != "Untouched"] == [SEEN]
    findings = by_name(certificate)[SEEN].findings
    first = "forward, with pictures: another picture in row 0 changes no logit"
    assert findings[0] == first
    assert any("greedy, with pictures with the senses on" in found for found in findings)


def _without_pictures(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Drop the pixels of a model's calls where ``when`` says so of it."""
    real = ModelCall._run

    def run(self: ModelCall, method: Any, args: Any, inputs: Any, uncompiled: Any) -> Any:
        if when(self):
            inputs = {key: value for key, value in inputs.items() if key != "pixel_values"}
        return real(self, method, args, inputs, uncompiled)

    monkeypatch.setattr(ModelCall, "_run", run)


@pytest.mark.slow
def test_a_dropped_picture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that leaves the picture out of an off call is the base on text, and not on these."""
    _without_pictures(monkeypatch, lambda call: not call.modalities)
    failed = {law.name for law in verify(model_of(), calls="quick").failures}
    assert failed >= {"Off is the base, with pictures", SEEN}
    assert "Off is the base" not in failed


@pytest.mark.slow
def test_a_sense_that_hides_the_picture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is blind while it hears keeps L2, and does not pass."""
    _without_pictures(monkeypatch, lambda call: bool(call.modalities))
    certificate = verify(model_of(), calls="quick")
    laws = by_name(certificate)
    assert laws["Off is the base, with pictures"].verdict is Verdict.HOLDS
    findings = laws[SEEN].findings
    assert findings
    assert all("with the senses on: another picture" in found for found in findings)


# A base that was fine-tuned


@pytest.mark.slow
@pytest.mark.parametrize("spec", [LORA, LAYERS], ids=["lora", "layers"])
def test_a_changed_base_is_asked_with_pictures(spec: StageBSpec, recipe: Path) -> None:
    """With pictures too, off is the changed base, and the drift is of the rows with theirs."""
    model = safe_framework.build(recipe)
    moved(model, spec)
    certificate = verify(model, calls="quick")
    laws = by_name(certificate)
    assert certificate.failures == ()
    assert laws["Off is the changed base, with pictures"].key == "B1"
    assert laws["Off is the changed base, with pictures"].verdict is Verdict.HOLDS
    assert laws[SEEN].verdict is Verdict.HOLDS
    if spec is LORA:  # two calls of each: on text, rows of all kinds, a picture in each, own rows
        assert laws["off() is the original base"].detail == "8 calls bit for bit"
    assert certificate.base_changed is not None
    assert certificate.base_changed.drift.texts == 1


# Where there is no processor


def test_pixels_are_made_from_the_config() -> None:
    """A base without its processor is asked with pixels, and the certificate says so."""
    base, processor = seeing_bases()["llava"]()
    certificate = verify(with_made_up_modality(base, processor.tokenizer), calls="quick")
    law = by_name(certificate)[SEEN]
    assert law.verdict is Verdict.HOLDS
    assert law.detail.endswith("no image processor: pixels of the shape that its config names")
    assert by_name(certificate)["Rows, with pictures"].verdict is Verdict.HOLDS
    assert certificate.failures == ()


@pytest.mark.slow
def test_pictures_that_cannot_be_made_are_said() -> None:
    """Where neither a processor nor the config gives pictures, one row says so."""
    base, processor = seeing_bases()["qwen2-vl"]()
    certificate = verify(with_made_up_modality(base, processor.tokenizer), calls="quick")
    law = by_name(certificate)[SEEN]
    assert law.verdict is Verdict.NOT_APPLICABLE
    assert law.detail.startswith("pictures were not asked: the base has no image processor, and")
    assert list(by_name(certificate)) == [*OF_TEXT, SEEN]


@pytest.mark.slow
def test_given_pixels_are_asked_of() -> None:
    """Pictures among the caller's inputs are in every law's batch, and are seen."""
    base = toy_llava()
    certificate = verify(attached(base), inputs=texts(base, 2, 6), calls="quick")
    assert list(by_name(certificate)) == [*OF_TEXT, SEEN]
    assert by_name(certificate)[SEEN].detail.endswith("rows: as given")
    assert certificate.failures == ()


# Rows of the recipe


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Path:
    """A recipe on a base that sees, whose test rows and retention texts hold pictures."""
    with quietly():
        base = save(tmp_path / "base", *seeing_bases()["llava"]())
    for colour in ("red", "blue"):
        picture(colour, 12, 10).save(tmp_path / f"{colour}.png")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text("utf-8").splitlines()]
    seen = [
        {**row, "audio": str(world / row["audio"]), "image": f"{colour}.png"}
        for row, colour in zip(rows, ["red", "blue"], strict=False)
    ]
    write_rows(tmp_path / "test.jsonl", seen)
    write_rows(tmp_path / "texts.jsonl", [{"text": "the cat sat", "image": "red.png"}])
    text = (world / "recipe.toml").read_text("utf-8").replace(f'"{world}/base"', f'"{base}"')
    for key in ("train", "retention"):
        name = {"train": "train.jsonl", "retention": "texts.jsonl"}[key]
        text = text.replace(f'{key} = "{name}"', f'{key} = "{world}/{name}"')
    text = text.replace('retention_test = "texts_test.jsonl"', 'retention_test = "texts.jsonl"')
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.slow
def test_the_recipes_own_rows_are_asked(recipe: Path) -> None:
    """Rows of the recipe's test with pictures are compared, with the samples that they have."""
    model = safe_framework.build(recipe)
    own = benches_of(model).more[-1]
    assert (own.rows, own.pictured) == ("2 of the recipe", (0, 1))
    assert own.bench.samples["audio__present"].tolist() == [True, True]
    assert "audio__frames" not in own.bench.samples  # the rows' own sounds, not made-up frames
    certificate = verify(model, calls="quick")
    assert certificate.failures == ()
    made = {c.call for c in certificate.comparisons if c.call.endswith(", rows of the recipe")}
    assert made == {f"{call.name}, rows of the recipe" for call in CALLS}


def test_rows_that_are_gone_are_said(recipe: Path) -> None:
    """A recipe whose files are gone is verified on made-up pictures, and the law says why."""
    model = safe_framework.build(recipe)
    (recipe.parent / "red.png").unlink()
    found = benches_of(model)
    assert [one.bench.label for one in found.more] == ["a picture in each row"]
    assert found.note.startswith("rows of the recipe were not asked: ")
    assert "red.png" in found.note


# The command


@pytest.mark.slow
def test_the_command_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe, the first lines name the target and the time; later ones how far it is."""
    monkeypatch.setattr("safe_framework.utils.progress._APART", 0.0)  # as if it took long
    with quietly():
        base = save(tmp_path / "base", *seeing_bases()["llava"]())
    assert main(["verify", str(base), "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"loading {base} ..."
    assert lines[1].startswith("verify: about ")
    assert any(" left  " in line and "with pictures" in line for line in lines)
    assert any("Pictures are seen" in line for line in lines)


def test_progress_begins_at_once_and_ends_whole(certified: Certificate, progress: Told) -> None:
    """Law: what is done rises from 0 to the total, which does not change."""
    done, totals = zip(*progress, strict=True)
    assert done[0] == 0
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


def test_a_bench_keeps_its_label() -> None:
    """A call of a labelled bench is told apart from the same call on plain text."""
    bench = benches_of(model_of()).main.bench
    assert isinstance(bench, Bench)
    assert bench.name(CALLS[0]) == "forward, with pictures"
    assert attrs.evolve(bench, label="").name(CALLS[0]) == "forward"
