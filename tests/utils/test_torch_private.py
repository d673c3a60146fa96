"""Private members of torch: they exist, and one file alone uses them."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import safe_framework
from safe_framework.core import hook_inventory
from safe_framework.utils import torch_private

PACKAGE = Path(safe_framework.__file__).parent
MODULE = ("_forward_pre_hooks", "_forward_hooks", "_call_impl", "_compiled_call_impl")


@pytest.mark.parametrize("name", [*MODULE, *hook_inventory._KINDS])
def test_each_member_of_a_module_exists(name: str) -> None:
    """Law: torch still has what the framework reads of a module."""
    assert hasattr(nn.Linear(1, 1), name)


def test_what_is_read_is_what_torch_counts() -> None:
    """Law: writes are counted, hooks are seen, and a compiled call comes and goes."""
    values, module = torch.zeros(2), nn.Linear(1, 1)
    before = torch_private.write_count(values)
    values.add_(1)
    assert torch_private.write_count(values) == before + 1
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    assert len(torch_private.forward_hooks(module)) == 1
    assert len(torch_private.forward_pre_hooks(module)) == 1
    assert torch_private.compiled_call(module) is None
    torch_private.set_compiled_call(module, lambda: "compiled")
    assert module() == "compiled"
    torch_private.set_compiled_call(module, None)
    assert torch_private.compiled_call(module) is None
    assert torch_private.uncompiled_call(module)(torch.ones(1, 1)).shape == (1, 1)


def test_no_other_file_reads_them() -> None:
    """Law: a private member of torch's modules and tensors is named in one file."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "torch_private.py"]
    assert len(files) > 150
    private = {*MODULE, "_version", "_modules", "_parameters", "_buffers"}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in private
    ]
    assert found == []
