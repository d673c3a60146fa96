"""What is kept of a checkpoint and used again, and that nothing else is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import safe_framework
from safe_framework.config.read import read_recipe
from safe_framework.core import adapter, base_identity, layer_discovery
from safe_framework.errors import AdapterError, UnsupportedBaseError
from safe_framework.pretrained import probe_cache
from safe_framework.utils.hashing import fingerprint
from tests.support.toys import llama

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache into which even tiny and brand-new bases go; the folder of its notes."""
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(probe_cache, "MIN_AGE", 0.0)
    return tmp_path / "cache" / "bases"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for every time that a base is run or hashed in order to know it."""
    seen: list[str] = []

    def recorded(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*args: Any) -> Any:
            seen.append(name)
            return work(*args)

        return done

    monkeypatch.setattr(layer_discovery, "_run", recorded("run", layer_discovery._run))
    for owner in (adapter, base_identity):
        monkeypatch.setattr(owner, "fingerprint", recorded("hash", fingerprint))
    return seen


@pytest.fixture
def saved(recipe: Write, tmp_path: Path) -> Path:
    """An adapter of a base that was loaded once."""
    return safe_framework.build(recipe()).save_pretrained(tmp_path / "adapter")


def weights_of(path: Path) -> Path:
    """The file of the base's weights."""
    return Path(read_recipe(str(path)).base.model) / "model.safetensors"


def test_a_second_build_does_not_run_the_base(recipe: Write, looks: list[str]) -> None:
    """Law: the same files are looked at once, and then known to be the same."""
    first = safe_framework.build(recipe())
    assert "run" in looks
    looks.clear()
    second = safe_framework.build(recipe())
    assert looks == []
    assert second.stack == first.stack
    assert second.stack.layout is first.stack.layout


def test_a_second_load_does_not_hash_the_base(saved: Path, looks: list[str]) -> None:
    """Law: only the encoder is hashed, of whose files nothing is known."""
    first = safe_framework.load(saved)
    assert looks == ["hash", "hash"]
    looks.clear()
    assert safe_framework.load(saved).base_snapshot.identity == first.base_snapshot.identity
    assert looks == ["hash"]


def test_changed_files_are_looked_at_anew(saved: Path, recipe: Write, looks: list[str]) -> None:
    """Law: an adapter is refused on a base whose file has been replaced since it was known."""
    safe_framework.load(saved)
    file = weights_of(recipe())
    other = llama()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    before = file.stat()
    other.save_pretrained(file.parent)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy that hides its age
    assert file.stat().st_size == before.st_size
    looks.clear()
    with pytest.raises(AdapterError, match="weights differ"):
        safe_framework.load(saved)
    llama().save_pretrained(file.parent)  # which other tests share
    assert "run" in looks


def test_a_callers_base_is_always_looked_at(saved: Path, looks: list[str]) -> None:
    """Law: nothing is used again for a model that was in memory: anybody may have changed it."""
    known = safe_framework.load(saved)
    looks.clear()
    base = known.detach()
    with torch.no_grad():
        next(base.parameters()).data.add_(1)  # which torch does not count
    with pytest.raises(AdapterError, match="weights differ"):
        safe_framework.load(saved, base=base, tokenizer=known.tokenizer)
    assert "run" in looks
    assert "hash" in looks


def test_saving_hashes_the_base_as_it_is(saved: Path, tmp_path: Path) -> None:
    """Law: what an adapter records is the base in memory, never what was known of its files."""
    model = safe_framework.load(saved)
    with torch.no_grad():
        next(model.base.parameters()).data.add_(1)
    config = model.save_pretrained(tmp_path / "again") / "adapter_config.json"
    written = json.loads(config.read_text("utf-8"))["base"]
    assert written.items() >= model.base_identity().items()
    assert (
        written["weights"]
        != json.loads((saved / config.name).read_text("utf-8"))["base"]["weights"]
    )


def test_another_base_in_the_same_call_is_not_known(recipe: Write, looks: list[str]) -> None:
    """Law: what is kept belongs to the base that was loaded, not to one that a plugin wraps."""
    base = llama()
    with probe_cache.use_probe_cache(
        base, probe_cache.checkpoint_key(read_recipe(str(recipe())).base)
    ):
        safe_framework.attach(base)
        looks.clear()
        safe_framework.attach(llama())
        assert looks == ["run"]
        looks.clear()
        safe_framework.attach(base)
        assert looks == []


def test_a_refusal_is_not_kept(recipe: Write, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    """Law: a base that could not be served is tried again."""
    with monkeypatch.context() as patched:
        patched.setattr(layer_discovery, "_same", lambda reference, moved: True)
        with pytest.raises(UnsupportedBaseError):
            safe_framework.build(recipe())
    (facts,) = [json.loads(path.read_text("utf-8")) for path in kept.glob("*.json")]
    assert len(facts) == 1
    safe_framework.build(recipe())


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_what_cannot_be_read_is_looked_at_anew(
    recipe: Write, kept: Path, looks: list[str], content: str
) -> None:
    """Law: a broken note costs a look and nothing else."""
    safe_framework.build(recipe())
    (path,) = kept.glob("*.json")
    path.write_text(content, "utf-8")
    looks.clear()
    safe_framework.build(recipe())
    assert "run" in looks


def test_a_cache_that_cannot_be_written_is_no_failure(recipe: Write, kept: Path) -> None:
    """Law: without a folder for the cache, a build is only slower."""
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder should be", "utf-8")
    assert safe_framework.build(recipe()).gates


def test_old_notes_leave(recipe: Write, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: only so many bases are known at a time."""
    monkeypatch.setattr(probe_cache, "_MOST_KEPT", 2)
    for name in ("a", "b"):
        probe_cache.atomic_write(kept / f"{name}.json", b"{}")
        os.utime(kept / f"{name}.json", (1, 1 + ord(name)))
    safe_framework.build(recipe())
    names = {path.stem for path in kept.glob("*.json")}
    assert len(names) == 2
    assert "b" in names


def test_small_and_brand_new_files_are_not_noted(
    recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: what is loaded fast is looked at, and so is what a clock's tick could hide."""
    spec = read_recipe(str(recipe())).base
    assert probe_cache.checkpoint_key(spec)
    with monkeypatch.context() as patched:
        patched.setattr(probe_cache, "MIN_BYTES", 2**24)
        assert probe_cache.checkpoint_key(spec) is None
    monkeypatch.setattr(probe_cache, "MIN_AGE", 3600.0)
    assert probe_cache.checkpoint_key(spec) is None
