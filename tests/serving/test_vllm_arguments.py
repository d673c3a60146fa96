"""What vLLM is told of an adapter's folder, and which adapters and versions are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import safe_framework
from safe_framework.errors import AdapterError, DataError
from safe_framework.serving.vllm.arguments import (
    SEEING,
    engine_arguments,
    find_adapter,
    fingerprint,
)
from safe_framework.serving.vllm.versions import check_versions


def saved(recipe: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """The adapter of a recipe that was changed."""
    text = recipe.read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text, "utf-8")
    safe_framework.build(recipe).save_pretrained(folder)
    return folder


def test_vllm_is_told_the_base_and_the_adapter(
    recipe: Callable[..., Path], tmp_path: Path, checkpoints: Path
) -> None:
    """Law: vLLM loads the base in transformers' type, and knows the adapter by its fingerprint.

    Another tensor is another fingerprint.
    """
    folder = saved(recipe(), tmp_path / "run" / "adapter")
    assert find_adapter(str(tmp_path / "run")) == folder
    assert find_adapter(str(checkpoints / "base")) is None
    told = engine_arguments(folder)
    assert told["model"] == told["tokenizer"] == str(checkpoints / "base")
    assert told["dtype"] == "float32"
    assert engine_arguments(folder, "bfloat16")["dtype"] == "bfloat16"
    before = fingerprint(folder)
    assert told["hf_overrides"] == {
        "architectures": ["ListeningLlamaForCausalLM"],
        "safe_adapter": str(folder),
        "safe_fingerprint": before,
        "safe_sees": False,
    }
    model = safe_framework.load(folder)
    model.modality("audio").fusion.blocks.at(1).nothing.data += 1  # type: ignore[union-attr, operator]  # LoRA's
    model.save_pretrained(folder)
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("gate =", "markers = true\ngate =")], "`audio` has markers in the text"),
        (
            [("gate =", 'markers = true\nattend = "after"\ngate =')],
            "`audio` has markers in the text",
        ),
        (
            [("gate =", "transcript = true\ngate =")],
            "what was said in a sample of `audio` is put into the prompt",
        ),
    ],
)  # fmt: skip
def test_adapters_are_refused_by_what_they_ask(
    recipe: Callable[..., Path], tmp_path: Path, changes: list[tuple[str, str]], told: str
) -> None:
    """Law: what the engine does not do is named, before anything is loaded."""
    folder = saved(recipe(), tmp_path / "adapter", *changes)
    with pytest.raises(AdapterError) as error:
        engine_arguments(folder)
    assert told in error.value.message
    assert error.value.hint == "serve it by `safe serve --engine transformers`"


def test_bases_are_refused_by_name(
    recipe: Callable[..., Path], tmp_path: Path, checkpoints: Path
) -> None:
    """Law: a base that is not served is named; of those that see, those that are are named too."""
    from tests.support.toys import t5, tokenizer

    t5().save_pretrained(tmp_path / "base")  # type: ignore[operator]  # transformers' own
    tokenizer().save_pretrained(tmp_path / "base")
    change = f"{checkpoints}/base", f"{tmp_path}/base"
    folder = saved(recipe(), tmp_path / "adapter", change)
    with pytest.raises(AdapterError) as error:
        engine_arguments(folder)
    assert "its base is a `T5ForConditionalGeneration`" in error.value.message
    assert error.value.hint is not None
    assert all(name in error.value.hint for name in SEEING)


@pytest.mark.parametrize(("experts", "served"), [(None, True), (1, True), (8, False)])
def test_mixtures_of_experts_are_refused(
    recipe: Callable[..., Path],
    tmp_path: Path,
    checkpoints: Path,
    experts: int | None,
    served: bool,
) -> None:
    """Law: a base of several experts is refused, whatever its layers look like in a trial."""
    import json

    config = json.loads((checkpoints / "base" / "config.json").read_text("utf-8"))
    folder = saved(recipe(), tmp_path / "adapter")
    place = folder / "recipe.toml"
    text = place.read_text("utf-8").replace(f"{checkpoints}/base", f"{tmp_path}/base")
    place.write_text(text, "utf-8")
    (tmp_path / "base").mkdir()
    text = json.dumps({**config, "num_local_experts": experts})
    (tmp_path / "base" / "config.json").write_text(text, "utf-8")
    if served:
        assert engine_arguments(folder)["model"] == f"{tmp_path}/base"
        return
    with pytest.raises(AdapterError, match="its base is a mixture of experts"):
        engine_arguments(folder)


def test_decoders_beside_a_tower_are_refused_by_name(
    recipe: Callable[..., Path], tmp_path: Path, checkpoints: Path
) -> None:
    """Law: a base that sees is served on decoders that are; another one is named, with those."""
    import json

    folder = saved(recipe(), tmp_path / "adapter")
    config = json.loads((checkpoints / "base" / "config.json").read_text("utf-8"))
    for decoder, served in {"llama": True, "opt": False}.items():
        seeing = {
            **config, "architectures": ["LlavaForConditionalGeneration"],
            "text_config": {"model_type": decoder},
        }  # fmt: skip
        place = tmp_path / decoder
        place.mkdir()
        (place / "config.json").write_text(json.dumps(seeing), "utf-8")
        text = (folder / "recipe.toml").read_text("utf-8")
        copy = tmp_path / f"adapter-{decoder}"
        shutil.copytree(folder, copy)
        (copy / "recipe.toml").write_text(text.replace(f"{checkpoints}/base", str(place)), "utf-8")
        if served:
            assert engine_arguments(copy)["hf_overrides"]["safe_sees"] is True
            continue
        with pytest.raises(AdapterError) as error:
            engine_arguments(copy)
        assert "on a decoder of type `opt`" in error.value.message
        assert "decoders: llama, mistral, qwen2, qwen3" in error.value.hint


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (("0.31.0", "5.19.0"), "the engine `vllm` needs vLLM 0.32, not 0.31.0"),
        (("0.33.0rc1", "5.19.0"), "the engine `vllm` needs vLLM 0.32, not 0.33.0rc1"),
        (
            ("0.32.0", "5.23.0"),
            "vLLM 0.32 needs transformers 5.16 or newer, below 5.20, not 5.23.0",
        ),
        (
            ("0.32.0", "5.2.1"),
            "vLLM 0.32 needs transformers 5.16 or newer, below 5.20, not 5.2.1",
        ),
    ],
)
def test_versions_are_refused_with_the_fix(versions: tuple[str, str], told: str) -> None:
    """Law: other versions than those that the engine was seen with are refused at the start."""
    with pytest.raises(DataError) as error:
        check_versions(*versions)
    assert error.value.message == told
    assert "pip install 'safe-framework[vllm]'" in error.value.hint


def test_versions_that_work_are_taken() -> None:
    """Law: the versions of the tests, and their later corrections, are not refused."""
    check_versions("0.32.0+cpu", "5.16.1")
    check_versions("0.32.1", "5.19.3")


def test_without_vllm_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: where vLLM is missing, it is said what to install."""
    monkeypatch.setattr("safe_framework.serving.vllm.versions._installed_vllm", lambda: None)
    with pytest.raises(DataError, match="which is not installed"):
        check_versions()
