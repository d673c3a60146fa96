"""What an adapter in vLLM reads of its base: each weight once, and no other base's."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import safe_framework
from safe_framework.core import build
from safe_framework.errors import AdapterError, SafeError
from safe_framework.utils.tensors import is_bfloat16_fast
from tests.optional.vllm.conftest import Case, Making, asked, engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def other_base(adapter: Path, folder: Path) -> Path:
    """The same adapter, whose base on the disk has another number in one weight."""
    shutil.copytree(adapter.parent, folder)
    weights = load_file(folder / "base" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1
    save_file(weights, folder / "base" / "model.safetensors", {"format": "pt"})
    recipe = folder / "adapter" / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace(str(adapter.parent), str(folder)), "utf-8")
    return folder / "adapter"


def refusal(adapter: Path) -> tuple[str, str | None]:
    """In which words ``load`` refuses an adapter."""
    with pytest.raises(AdapterError, match="was made for another base") as found:
        safe_framework.load(adapter)
    return found.value.message, found.value.hint


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight was read since, by vLLM or by transformers."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    found, streamed, loaded = Counter[str](), DefaultModelLoader.get_all_weights, build.load_base

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        """As vLLM's own."""
        for name, tensor in streamed(*args, **kwargs):
            found[name] += 1
            yield name, tensor

    def in_transformers(*args: Any, **kwargs: Any) -> Any:
        """As the framework's own."""
        base, processor = loaded(*args, **kwargs)
        found.update(name for name, one in base.state_dict().items() if not one.is_meta)
        return base, processor

    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", counted)
    monkeypatch.setattr(build, "load_base", in_transformers)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_weight_is_read_once(adapter: Making, read: Counter[str], dtype: str) -> None:
    """Law: a start reads each weight of the base once, in whichever type vLLM holds it."""
    folder = adapter()
    names = load_file(folder.parent / "base" / "model.safetensors").keys()
    read.clear()  # of what made the adapter
    with engine(folder, dtype=dtype) as llm:
        one, other = asked(llm, [Case(5, 0), Case(5)])
    assert one != other
    assert read == Counter(dict.fromkeys(names, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoders_compute_in_the_engines_type(adapter: Making, dtype: str) -> None:
    """Law: in bfloat16 where the device is fast at it; what was trained keeps its own type."""
    from safe_framework.serving.vllm.adapter import load_adapter

    folder = adapter()
    with engine(folder, dtype=dtype) as llm:
        asked(llm, [Case(5, 0)])
        modality = load_adapter(str(folder)).modality("audio")
    halved = dtype == "bfloat16" and is_bfloat16_fast(torch.device("cpu"))
    assert next(modality.encoder.parameters()).dtype is getattr(
        torch, dtype if halved else "float32"
    )
    for part in (modality.projector, modality.fusion):
        assert {one.dtype for one in part.parameters()} == {torch.float32}


def test_another_base_is_refused(adapter: Making, tmp_path: Path, read: Counter[str]) -> None:
    """Law: where one number of the base is another, no engine starts; it says why as ``load`` does.

    The number is of a weight of which the adapter is not made.
    """
    folder = other_base(adapter(), tmp_path / "other")
    read.clear()  # of what made the adapter
    with pytest.raises(AdapterError) as found, engine(folder):
        pass
    assert set(read.values()) == {1}
    assert (found.value.message, found.value.hint) == refusal(folder)


@pytest.mark.parametrize("size", [1, 2])
def test_another_base_is_refused_in_other_processes(
    adapter: Making, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: also where vLLM's processes are its own, one or several, `safe serve` says why."""
    from safe_framework.serving.vllm.adapter import load_adapter
    from safe_framework.serving.vllm.engine import VllmEngine

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = other_base(adapter(), tmp_path / "other")
    options = {"kv_cache_memory_bytes": 2**26, "tensor_parallel_size": size}
    server = VllmEngine(load_adapter(str(folder)), folder, options=options)
    try:
        with pytest.raises(AdapterError) as found:
            server.start()
    finally:
        server.stop()
    assert (found.value.message, found.value.hint) == refusal(folder)


@pytest.mark.parametrize(
    ("options", "starts"), [({"gpu_memory_utilization": 0.9999}, False), ({}, True)]
)
def test_memory_that_is_in_use_is_left(
    adapter: Making, options: dict[str, Any], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: vLLM takes no more memory than is free; told to take more, the error says it."""
    import psutil

    from safe_framework.serving.vllm.adapter import load_adapter
    from safe_framework.serving.vllm.engine import VllmEngine

    real = psutil.virtual_memory()
    taken = real._replace(available=real.total // 6)  # so that the test takes little
    monkeypatch.setattr(psutil, "virtual_memory", lambda: taken)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    folder = adapter()
    server = VllmEngine(load_adapter(str(folder)), folder, options={"max_model_len": 64, **options})
    try:
        if starts:
            server.start()
        else:
            with pytest.raises(SafeError, match="did not start") as found:
                server.start()
            assert "kv_cache_memory_bytes" in str(found.value.hint)
    finally:
        server.stop()
