"""Low-rank updates of linear modules of the base (LoRA), made and written by PEFT.

``output + alpha / rank * B(A(dropout(input)))`` (LoRA, Hu et al. 2021, arXiv:2106.09685). PEFT
makes the updates on a shell that holds the base's modules at their paths, and hooks that know
whose call is running add them to the outputs. So no module of the base is replaced, no tensor of
it is written, and switching the updates off is a branch not taken, for one thread alone; PEFT's
own ``disable_adapter`` would switch them off for every thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.adapter import copy_tensors
from safe_framework.core.base_change import (
    BaseChange,
    ChangedCall,
    ChangeHook,
    is_suspended,
    use_original_base,
)
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import cpu_copy

if TYPE_CHECKING:
    from peft import LoraConfig

FOLDER, WEIGHTS, CONFIG = "base_lora", "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_NAME = "default"


class LowRankUpdate(nn.Module):
    """The two matrices that PEFT makes for one linear module, without that module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.lora_A, self.lora_B = layer.lora_A[_NAME].float(), layer.lora_B[_NAME].float()
        self.dropout, self.scaling = layer.lora_dropout[_NAME], layer.scaling[_NAME]

    def forward(self, inputs: Tensor) -> Tensor:
        """What is added to the module's output."""
        hidden = self.dropout(inputs.to(self.lora_A.weight.dtype))
        added: Tensor = self.lora_B(self.lora_A(hidden)) * self.scaling
        return added


class LoraChange(BaseChange):
    """A base with low-rank updates of linear modules.

    Args:
        base: whose linear modules.
        config: PEFT's, whose ``target_modules`` are paths in ``base``.
        owner: key of the model whose calls it changes.

    Raises:
        SafeError: PEFT cannot make an update of one of the modules.
    """

    method = "lora"
    reversible = True

    def __init__(self, base: nn.Module, config: LoraConfig, owner: str) -> None:
        super().__init__()
        self.config, self.owner = config, owner
        self.paths = tuple(sorted(config.target_modules or ()))
        updates = _make_updates(base, config, self.paths)
        self.updates = nn.ModuleDict({_key(path): updates[path] for path in self.paths})
        self._handles: list[RemovableHandle] = [
            base.get_submodule(path).register_forward_hook(ChangeHook(owner, path))
            for path in self.paths
        ]

    def tensors(self, base: nn.Module) -> dict[str, nn.Parameter]:
        """Both matrices of every update, by the names that PEFT gives them."""
        return {
            f"{path}.{factor}.weight": getattr(self.updates[_key(path)], factor).weight
            for path in self.paths
            for factor in ("lora_A", "lora_B")
        }

    def call(self) -> ChangedCall | None:
        """One call of the changed base; None within ``original``."""
        return None if is_suspended(self) else ChangedCall(self.owner, self._add_update)

    def _add_update(self, path: str, inputs: Tensor, output: Tensor) -> Tensor:
        added: Tensor = self.updates[_key(path)](inputs)
        return (output + added).to(output.dtype)

    def original(self, base: nn.Module) -> AbstractContextManager[None]:
        """A block within which no update is added, in this thread or task."""
        return use_original_base(self)

    @contextmanager
    def taking_gradients(self, base: nn.Module) -> Iterator[None]:
        """A block within which the updates are trained, as they may be at any time."""
        yield

    def remove(self, base: nn.Module) -> None:
        """Take the hooks off the base."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def write(self, base: nn.Module, folder: Path) -> None:
        """Write a folder that PEFT itself can load."""
        from safetensors.torch import save_file

        (folder / FOLDER).mkdir()
        tensors = {f"{_PEFT_PREFIX}{k}": cpu_copy(t) for k, t in self.tensors(base).items()}
        save_file(tensors, folder / FOLDER / WEIGHTS, metadata={"format": "pt"})
        options: dict[str, Any] = self.config.to_dict()  # type: ignore[no-untyped-call]  # PEFT's
        config = {key: _as_json(value) for key, value in options.items()}
        text = json.dumps(config, indent=2, sort_keys=True, default=str)
        (folder / FOLDER / CONFIG).write_text(f"{text}\n", "utf-8")

    def facts(self) -> dict[str, Any]:
        """The method and its modules; the rest is in PEFT's config."""
        return {"method": self.method, "modules": list(self.paths)}

    def describe(self) -> str:
        """How many modules have an update, and of which rank."""
        return f"LoRA of rank {self.config.r} in {len(self.paths)} modules of the base"


def read(
    base: nn.Module, config: Mapping[str, Any], folder: Path, *, owner: str, layers_path: str
) -> LoraChange:
    """The change that ``write`` put into an adapter's folder, which PEFT's own config describes."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    lora: Any = LoraConfig.from_pretrained(str(folder / FOLDER))
    change = LoraChange(base, lora, owner)
    weights = folder / FOLDER / WEIGHTS
    source = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in load_file(weights).items()}
    target = {key: tensor.detach() for key, tensor in change.tensors(base).items()}
    try:
        copy_tensors(target, source, weights)
    except BaseException:
        change.remove(base)
        raise
    return change


def _make_updates(
    base: nn.Module, config: LoraConfig, paths: tuple[str, ...]
) -> dict[str, LowRankUpdate]:
    from peft import inject_adapter_in_model

    shell = nn.Module()
    for path in paths:
        _insert_module(shell, path, base.get_submodule(path))
    try:
        inject_adapter_in_model(config, shell)
    except ValueError as error:
        raise SafeError(f"PEFT cannot change this base: {error}") from error
    return {
        path: LowRankUpdate(shell.get_submodule(path)).to(_device_of(base, path)) for path in paths
    }


def _insert_module(shell: nn.Module, path: str, module: nn.Module) -> None:
    """Let ``shell`` hold a module at a dotted path, in empty modules."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in dict(shell.named_children()):
            shell.add_module(parent, nn.Module())
        shell = shell.get_submodule(parent)
    shell.add_module(name, module)


def _device_of(base: nn.Module, path: str) -> Any:
    weight: Tensor = base.get_submodule(path).weight  # type: ignore[assignment]  # of a linear map
    return weight.device


def _key(path: str) -> str:
    """A path as a name that a module may have."""
    return path.replace(".", "/")


def _as_json(value: Any) -> Any:
    """A value as JSON has it, sets in order, so that equal configs make equal files."""
    return sorted(value) if isinstance(value, (set, frozenset)) else value
