"""A DINOv2 that an ONNX export holds, as a checkpoint folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import quietly
from safe_framework.pretrained.converters.onnx_dinov2 import read_graph, write_dinov2

HIDDEN, LAYERS = 128, 2


def field(number: int, value: bytes | int) -> bytes:
    """One field of a Protocol Buffers message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """7 bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def tensor(name: str, values: np.ndarray) -> bytes:
    """A stored array."""
    sizes = b"".join(field(1, size) for size in values.shape)
    content = np.ascontiguousarray(values, "<f4").tobytes()
    return field(5, sizes + field(2, 1) + field(8, name.encode()) + field(9, content))


def node(name: str, operation: str, *inputs: str) -> bytes:
    """An operation."""
    taken = b"".join(field(1, value.encode()) for value in inputs)
    return field(1, taken + field(3, name.encode()) + field(4, operation.encode()))


@pytest.fixture(scope="module")
def model() -> Dinov2Model:
    """A random DINOv2 of two heads of 64, whose every weight differs from the next."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=2, mlp_ratio=2,
        image_size=28, patch_size=7,
    )  # fmt: skip
    made = Dinov2Model(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        made.embeddings.mask_token.zero_()
    return made


def export(model: Dinov2Model) -> bytes:
    """The model as PyTorch exports it: weights of linear layers transposed and without names."""
    parts, number = [field(1, 8)], 0
    older = {f"{new}_proj": old for new, old in {"q": "query", "k": "key", "v": "value"}.items()}
    graph = [tensor("decoder.final.weight", np.ones(3)), node("/decoder/MatMul", "MatMul", "x")]
    for name, value in model.state_dict().items():
        for new, old in older.items():
            name = name.replace(f"attention.{new}", f"attention.attention.{old}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        values = value.numpy()
        if name == "embeddings.position_embeddings":
            graph += [tensor("onnx::1", values[:, :1]), tensor("onnx::2", values[:, 1:])]
            graph += [node("/backbone/embeddings/Reshape_1", "Reshape", "onnx::2", "shape")]
            graph += [node("/backbone/embeddings/Concat_6", "Concat", "onnx::1", "patches")]
        elif name.endswith("weight") and values.ndim == 2:
            number += 1
            module = name.removesuffix(".weight").replace(".layer.", ".layer#").replace(".", "/")
            graph += [tensor(f"onnx::MatMul_{number}", values.T)]
            path = f"/backbone/{module.replace('#', '.')}/MatMul"
            graph += [node(path, "MatMul", "x", f"onnx::MatMul_{number}")]
        elif name != "embeddings.mask_token":
            graph += [tensor(f"backbone.{name}", values)]
    return b"".join([*parts, field(7, b"".join(graph))])


@pytest.fixture
def source(tmp_path: Path, model: Dinov2Model) -> Path:
    """The export."""
    path = tmp_path / "model.onnx"
    path.write_bytes(export(model))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder to write into."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def test_every_weight_survives(source: Path, target: Path, model: Dinov2Model) -> None:
    """Law: the folder's backbone has the weights that were stored, bit for bit."""
    write_dinov2(source, target)
    with quietly():
        loaded, report = Dinov2Model.from_pretrained(target, output_loading_info=True)
    assert not any(report.values())
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)
    sizes = (loaded.config.image_size, loaded.config.patch_size, loaded.config.num_attention_heads)
    assert sizes == (28, 7, 2)


def test_the_random_state_is_left_alone(source: Path, target: Path) -> None:
    """Law: converting draws nothing from the caller's random numbers."""
    before = torch.get_rng_state()
    write_dinov2(source, target)
    assert torch.equal(torch.get_rng_state(), before)


def test_packed_dimensions_are_read(tmp_path: Path) -> None:
    """Law: sizes that are packed into bytes are the same sizes."""
    content = np.arange(6, dtype="<f4").tobytes()
    packed = field(1, varint(2) + varint(3)) + field(2, 1) + field(8, b"a") + field(9, content)
    (tmp_path / "a.onnx").write_bytes(field(7, field(5, packed)))
    graph = read_graph(tmp_path / "a.onnx")
    assert graph.arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.999999])
def test_a_truncated_file_is_refused(source: Path, target: Path, share: float) -> None:
    """Law: a file cut anywhere is an error that names it."""
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"model\.onnx` is not a whole ONNX model"):
        write_dinov2(source, target)


@pytest.mark.parametrize("data", [b"GGUF" * 99, b"text\n" * 99, bytes(999), b"\xff" * 999])
def test_a_foreign_file_is_refused(source: Path, target: Path, data: bytes) -> None:
    """Law: a file of another format is an error that names it."""
    source.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.onnx` is not a whole ONNX model"):
        write_dinov2(source, target)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (b"backbone.layernorm.weight", "Missing key"),
        (b"/backbone/embeddings/Concat_6", "it lacks 'Concat'"),
        (b"backbone.encoder.layer.0.mlp.fc1.bias", "it lacks 'encoder.layer.0.mlp.fc1.bias'"),
    ],
)
def test_a_lacking_array_is_named(source: Path, target: Path, changed: bytes, words: str) -> None:
    """Law: a model of which a part is called otherwise is refused, never filled at random."""
    data = source.read_bytes()
    assert data.count(changed) == 1
    source.write_bytes(data.replace(changed, changed[::-1]))
    with pytest.raises(CheckpointError, match=rf"(?s)not a DINOv2 that can be read: .*{words}"):
        write_dinov2(source, target)
