"""The adapter on disk: whole or absent, and only on the base that it was made for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safe_framework.core import adapter
from safe_framework.core.adapter import CONFIG, WEIGHTS
from safe_framework.core.build import load_tensors
from safe_framework.core.model import SafeModel
from safe_framework.errors import AdapterError, SafeError
from safe_framework.utils.files import atomic_folder
from safe_framework.utils.hashing import tensors_fingerprint
from tests.core import killed_writes
from tests.laws.calls import all_same, forward_tensors
from tests.support.toys import (
    ToyEncoder,
    ToyFusion,
    ToyProjector,
    attached,
    felt,
    llama,
    lora,
    texts,
    tokenizer,
)


def with_modality(
    base: Any = None, *, encoder_seed: int = 0, seed: int = 0, **options: Any
) -> SafeModel:
    """A base with a LoRA modality that is as if trained from ``seed``."""
    model = SafeModel(base if base is not None else llama(), tokenizer())
    torch.manual_seed(encoder_seed)
    encoder = ToyEncoder()
    torch.manual_seed(seed)
    model.add_modality(
        "touch", encoder=encoder, projector=ToyProjector(), fusion=lora(model, **options)
    )
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved adapter."""
    return with_modality().save_pretrained(tmp_path / "adapter", without_recipe=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("init", ["base", "random"])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, init: str) -> None:
    """Saved and loaded into a model of other weights, tensors and outputs are the same bits."""
    model = with_modality(init=init)
    model.set_gate(0.25)
    other = with_modality(seed=5, init=init)
    batch = texts(model.base, 2, 4) | felt(2)
    assert not all_same(forward_tensors(other, batch), forward_tensors(model, batch))
    load_tensors(other, model.save_pretrained(tmp_path / "adapter", without_recipe=True))
    assert all_same(forward_tensors(other, batch), forward_tensors(model, batch))
    assert other.gates == {"touch": 0.25}


def test_special_values_survive(tmp_path: Path) -> None:
    """NaN, infinities and -0.0 are stored as they are."""
    model, other = with_modality(), with_modality(seed=1)
    parameter = next(iter(model.trainable_parameters().values()))
    parameter.data.flatten()[:4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    load_tensors(other, model.save_pretrained(tmp_path / "adapter", without_recipe=True))
    assert tensors_fingerprint(other.adapter_tensors()) == tensors_fingerprint(
        model.adapter_tensors()
    )


def test_what_can_be_rebuilt_is_not_stored(folder: Path) -> None:
    """The file holds what training changes: no base, no encoder, no copied projection."""
    stored = load_file(folder / WEIGHTS)
    prefixed = {f"{key}" for key in with_modality().trainable_parameters()}
    assert set(stored) == prefixed


def test_random_projections_are_stored(tmp_path: Path) -> None:
    """Frozen weights that were drawn cannot be rebuilt, so they travel along."""
    model = with_modality(init="random")
    stored = load_file(model.save_pretrained(tmp_path / "adapter", without_recipe=True) / WEIGHTS)
    frozen = [key for key in stored if "base_layer" in key and "query" in key]
    assert len(frozen) == 2
    assert all(key not in model.trainable_parameters() for key in frozen)


def test_it_is_small_and_holds_no_pickle(folder: Path) -> None:
    """A folder of four plain files, hardly larger than its trainable numbers."""
    files = contents(folder)
    assert set(files) == {WEIGHTS, CONFIG, "README.md"}
    numbers = sum(p.numel() for p in with_modality().trainable_parameters().values())
    assert sum(map(len, files.values())) < 4 * numbers + 8_000
    assert not any(data[:1] == b"\x80" or data[:2] == b"PK" for data in files.values())


def test_saving_twice_writes_the_same_bytes(folder: Path) -> None:
    """An adapter is a function of its model: no time, path or order is in it."""
    first = contents(folder)
    with_modality().save_pretrained(folder, without_recipe=True)
    assert contents(folder) == first


def _weights() -> Any:
    base = llama()
    base.model.norm.weight.data[0] += 1e-6
    return base


OTHER_BASES: dict[str, tuple[Callable[[], Any], str]] = {
    "weights": (_weights, "weights differ"),
    "heads": (lambda: llama(num_attention_heads=2, num_key_value_heads=1), "config differ"),
    "positions": (
        lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 5e3}),
        "config differ",
    ),
}


@pytest.mark.parametrize("kind", OTHER_BASES)
def test_another_base_is_refused(folder: Path, kind: str) -> None:
    """A base that differs in one weight or one fact is refused, and the error says in what."""
    make, message = OTHER_BASES[kind]
    model = with_modality(make(), seed=3)
    before = tensors_fingerprint(model.adapter_tensors())
    with pytest.raises(AdapterError, match=f"made for another base .*: {message}"):
        load_tensors(model, folder)
    assert tensors_fingerprint(model.adapter_tensors()) == before


def test_another_tokenizer_is_refused(folder: Path) -> None:
    """Other words for the same ids make another model."""
    model = with_modality()
    model.tokenizer.add_tokens(["new"])
    with pytest.raises(AdapterError, match="tokenizer differ"):
        load_tensors(model, folder)


def test_another_encoder_is_refused(folder: Path) -> None:
    """Frames of another encoder mean something else."""
    with pytest.raises(AdapterError, match="encoder of modality `touch` is not the one"):
        load_tensors(with_modality(encoder_seed=1), folder)


@pytest.mark.parametrize("options", [{"rank": 3}, {"layers": [0]}, {"targets": ["query"]}])
def test_another_shape_is_refused(folder: Path, options: dict[str, Any]) -> None:
    """An adapter of other options is refused, some differing tensors named, none copied."""
    model = with_modality(seed=3, **options)
    before = tensors_fingerprint(model.adapter_tensors())
    with pytest.raises(AdapterError, match=r"does not fit the model: touch\.fusion"):
        load_tensors(model, folder)
    assert tensors_fingerprint(model.adapter_tensors()) == before


def test_another_modality_is_refused(folder: Path) -> None:
    """A model without the adapter's modality says which ones it has."""
    with pytest.raises(SafeError, match=r"no modality `touch`\nhint: .*smell"):
        load_tensors(attached(llama(), "smell", tokenizer=tokenizer()), folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """Half a folder is not an adapter."""
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"is not an adapter: it has no `{name}`"):
        load_tensors(with_modality(), folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_truncated_file_is_named(folder: Path, name: str, share: float) -> None:
    """A file that was cut off is refused by name, and the model keeps its tensors."""
    whole = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(whole[: int(len(whole) * share)])
    model = with_modality(seed=3)
    before = tensors_fingerprint(model.adapter_tensors())
    with pytest.raises(AdapterError, match=f"`{name}` of `.*` cannot be read"):
        load_tensors(model, folder)
    assert tensors_fingerprint(model.adapter_tensors()) == before


def test_a_config_of_other_keys_is_refused(folder: Path) -> None:
    """A config without its keys is an adapter error and no TypeError."""
    (folder / CONFIG).write_text(json.dumps({"format": adapter.FORMAT}))
    with pytest.raises(AdapterError, match=f"`{CONFIG}` of `.*` cannot be read"):
        load_tensors(with_modality(), folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    """The error says what to update."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"format": 99, "more": 1}))
    with pytest.raises(AdapterError, match=r"format 99.*\nhint: update safe-framework"):
        load_tensors(with_modality(), folder)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    """Saving into a folder that holds something else is refused and touches nothing."""
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(AdapterError, match="is not empty and holds no adapter"):
        with_modality().save_pretrained(tmp_path, without_recipe=True)
    assert contents(tmp_path) == {"thesis.tex": b"all my work"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """An existing empty folder is as good as none."""
    assert (with_modality().save_pretrained(tmp_path, without_recipe=True) / WEIGHTS).is_file()


@pytest.mark.parametrize("step", ["_card", "_modality_identity", "cpu_copy"])
def test_a_crash_while_writing_keeps_the_old_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever fails on the way, the old adapter is whole and nothing lies beside it."""
    before = contents(folder)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter, step, crash)
    with pytest.raises(KeyboardInterrupt):
        with_modality(seed=9).save_pretrained(folder, without_recipe=True)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_crash_while_renaming_keeps_the_old_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The old adapter is not deleted before the new one is in its place."""
    before, rename, calls = contents(folder), os.replace, []

    def crash(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == fails_at:
            raise OSError("disk gone")
        rename(*paths)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(AdapterError, match=r"cannot be saved to `.*`: disk gone"):
        with_modality(seed=9).save_pretrained(folder, without_recipe=True)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_saving_again_keeps_what_is_not_the_adapters(folder: Path) -> None:
    """Law: saving deletes nothing that no writer made; what was measured on old weights goes."""
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("a week of work")
    (folder / "certificate.json").write_text("{}")
    with_modality(seed=9).save_pretrained(folder, without_recipe=True)
    assert (folder / "notes" / "mine.txt").read_text() == "a week of work"
    assert not (folder / "certificate.json").exists()


OTHERS: dict[str, dict[str, str]] = {
    "PEFT": {"adapter_config.json": '{"peft_type": "LORA"}', WEIGHTS: "theirs"},
    "no JSON": {"adapter_config.json": "{", WEIGHTS: "theirs"},
    "no table": {"adapter_config.json": "[]"},
    "a folder": {"adapter_config.json/mine": "all my work"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_adapter_of_another_library_is_left_alone(kind: str, tmp_path: Path) -> None:
    """Law: files of the same names are not ours, unless their config says so."""
    for name, text in OTHERS[kind].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(AdapterError, match="holds no adapter of this library"):
        with_modality().save_pretrained(tmp_path, without_recipe=True)
    for name, text in OTHERS[kind].items():
        assert (tmp_path / name).read_text() == text


def test_weights_of_somebody_else_beside_an_adapter_stay(folder: Path) -> None:
    """Law: only files of the adapter's own names are replaced."""
    (folder / "model.safetensors").write_text("theirs")
    with_modality(seed=9).save_pretrained(folder, without_recipe=True)
    assert (folder / "model.safetensors").read_text() == "theirs"


@pytest.mark.parametrize("name", ["loop", "loop/below", "nul\0", "half\ud800"], ids=ascii)
def test_what_is_no_place_is_named(name: str, tmp_path: Path) -> None:
    """Law: a loop of links, or a name that no file can have, is an error of the adapter's."""
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    with pytest.raises(AdapterError, match="the adapter cannot be saved to"):
        with_modality().save_pretrained(tmp_path / name, without_recipe=True)
    assert sorted(os.listdir(tmp_path)) == ["back", "loop"]


def test_a_folder_that_was_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: where one stands in a folder that is gone, nothing is saved beside it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(AdapterError, match="the adapter cannot be saved to `adapter`"):
        with_modality().save_pretrained("adapter", without_recipe=True)


def test_a_model_without_a_modality_is_not_saved(tmp_path: Path) -> None:
    """Law: what could not be loaded is not written."""
    with pytest.raises(AdapterError, match="has no modality"):
        SafeModel(llama(), tokenizer()).save_pretrained(tmp_path / "adapter", without_recipe=True)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_is_not_saved_below_a_file(tmp_path: Path) -> None:
    """Golden text: a place that cannot be written is named, with what to do."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AdapterError) as caught:
        with_modality(seed=9).save_pretrained(tmp_path / "file" / "adapter", without_recipe=True)
    assert str(caught.value) == (
        f"the adapter cannot be saved to `{tmp_path / 'file' / 'adapter'}`: File exists\n"
        "hint: choose another folder, or make room in it"
    )


def test_a_trained_encoder_travels_along(tmp_path: Path) -> None:
    """An encoder with a trainable parameter is part of the adapter; the base never is."""
    model = attached(llama(), fusion=ToyFusion(layers=(0,)), tokenizer=tokenizer())
    model.modality("touch").encoder.requires_grad_(True)
    stored = load_file(model.save_pretrained(tmp_path / "adapter", without_recipe=True) / WEIGHTS)
    assert {key for key in stored if "encoder" in key} == {
        "touch.encoder.mix.weight",
        "touch.encoder.mix.bias",
    }


def test_an_adapter_that_was_moved_aside_is_put_back(folder: Path) -> None:
    """A writer killed between its two renames loses nothing: the next one finds the old adapter."""
    before = contents(folder)
    folder.rename(folder.with_name(".adapter-0123abcd.old"))

    def failing(temporary: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_folder(folder, failing, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What writers left that were killed, each at another step."""
    root = tmp_path_factory.mktemp("killed")
    script = Path(killed_writes.__file__)
    out = subprocess.run([sys.executable, script, root], check=True, capture_output=True, text=True)
    ended = json.loads(out.stdout)
    assert ended == {step: 0 if step == "done" else -signal.SIGKILL for step in killed_writes.STEPS}
    return root


@pytest.mark.parametrize("step", killed_writes.STEPS)
def test_a_writer_that_is_killed_leaves_one_whole_folder(killed: Path, step: str) -> None:
    """Law: the folder is the old or the new one, whole; only between two renames it is aside."""
    folder = killed / step / "adapter"
    new = step in ("renamed", "removing_the_old", "done")
    word = b"new" if new else b"old"
    whole = {"first": word, "second": word}
    if step == "between_the_renames":
        (aside,) = folder.parent.glob(".adapter-*.old")
        assert not folder.exists()
        assert contents(aside) == whole
    else:
        assert contents(folder) == whole


@pytest.mark.parametrize("step", killed_writes.STEPS)
def test_the_next_writer_clears_up(killed: Path, tmp_path: Path, step: str) -> None:
    """Law: after a kill at any step the next writer finds a whole folder and leaves one."""
    folder = shutil.copytree(killed / step, tmp_path / step) / "adapter"

    def failing(_: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_folder(folder, failing, overwrite=True)
    assert contents(folder) in [{"first": w, "second": w} for w in (b"old", b"new")]
    assert os.listdir(folder.parent) == ["adapter"]
    atomic_folder(
        folder, lambda temporary: killed_writes.contents(temporary, "newest"), overwrite=True
    )
    assert contents(folder) == {"first": b"newest", "second": b"newest"}
    assert os.listdir(folder.parent) == ["adapter"]
