"""Low-rank pairs beside linear modules of the base, made and written by PEFT.

``output + alpha / rank * B(A(dropout(input)))`` (LoRA, Hu et al. 2021, arXiv:2106.09685). PEFT
makes the pairs on a shell that holds the base's modules at their paths, and hooks that know whose
call is running add what the pairs give. So no module of the base is replaced, no tensor of it is
written, and switching the pairs off is a branch not taken, for one thread alone; PEFT's own
``disable_adapter`` would switch them off for every thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.base_change import (
    BaseChange,
    ChangedCall,
    ChangeHook,
    is_suspended,
    suspended,
)
from safe_framework.errors import SafeError
from safe_framework.utils.tensors import cpu_copy

if TYPE_CHECKING:
    from peft import LoraConfig

FOLDER, WEIGHTS, CONFIG = "base_lora", "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_NAME = "default"


class LowRankPair(nn.Module):
    """What PEFT made for one linear module, without that module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.lora_A, self.lora_B = layer.lora_A[_NAME].float(), layer.lora_B[_NAME].float()
        self.dropout, self.scaling = layer.lora_dropout[_NAME], layer.scaling[_NAME]

    def forward(self, inputs: Tensor) -> Tensor:
        """What is added to the module's output."""
        given = self.dropout(inputs.to(self.lora_A.weight.dtype))
        added: Tensor = self.lora_B(self.lora_A(given)) * self.scaling
        return added


class LoraChange(BaseChange):
    """A base whose linear modules answer with a low-rank pair beside them.

    Args:
        base: the pairs' modules are in it.
        config: PEFT's, whose ``target_modules`` are paths in ``base``.
        owner: key of the model whose calls it changes.

    Raises:
        SafeError: PEFT cannot put a pair beside one of the modules.
    """

    method = "lora"
    reversible = True

    def __init__(self, base: nn.Module, config: LoraConfig, owner: str) -> None:
        super().__init__()
        self.config, self.owner = config, owner
        self.places = tuple(sorted(config.target_modules or ()))
        made = _made_by_peft(base, config, self.places)
        self.pairs = nn.ModuleDict({_key(place): made[place] for place in self.places})
        self._handles: list[RemovableHandle] = [
            base.get_submodule(place).register_forward_hook(ChangeHook(owner, place))
            for place in self.places
        ]

    def tensors(self, base: nn.Module) -> dict[str, nn.Parameter]:
        """Both factors of every pair, by the names that PEFT gives them."""
        return {
            f"{place}.{factor}.weight": getattr(self.pairs[_key(place)], factor).weight
            for place in self.places
            for factor in ("lora_A", "lora_B")
        }

    def call(self) -> ChangedCall | None:
        """One call of the changed base; None within ``original``."""
        return None if is_suspended(self) else ChangedCall(self.owner, self._beside)

    def _beside(self, place: str, inputs: Tensor, output: Tensor) -> Tensor:
        added: Tensor = self.pairs[_key(place)](inputs)
        return (output + added).to(output.dtype)

    def original(self, base: nn.Module) -> AbstractContextManager[None]:
        """A block within which no pair is added, in this thread or task."""
        return suspended(self)

    @contextmanager
    def taking_gradients(self, base: nn.Module) -> Iterator[None]:
        """A block within which the pairs are trained, as they may be at any time."""
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
        told: dict[str, Any] = self.config.to_dict()  # type: ignore[no-untyped-call]  # PEFT's
        config = {key: _plain(value) for key, value in told.items()}
        text = json.dumps(config, indent=2, sort_keys=True, default=str)
        (folder / FOLDER / CONFIG).write_text(f"{text}\n", "utf-8")

    def facts(self) -> dict[str, Any]:
        """The method and its modules; PEFT's config tells the rest."""
        return {"method": self.method, "modules": list(self.places)}

    def describe(self) -> str:
        """How many modules got a pair, and of which rank."""
        return f"LoRA of rank {self.config.r} in {len(self.places)} modules of the base"


def read_lora(base: nn.Module, folder: Path, owner: str) -> LoraChange:
    """The change that ``write`` put into an adapter's folder."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    from safe_framework.core.adapter import copy_tensors

    config: Any = LoraConfig.from_pretrained(str(folder / FOLDER))
    change = LoraChange(base, config, owner)
    place = folder / FOLDER / WEIGHTS
    source = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in load_file(place).items()}
    target = {key: tensor.detach() for key, tensor in change.tensors(base).items()}
    try:
        copy_tensors(target, source, place)
    except BaseException:
        change.remove(base)
        raise
    return change


def _made_by_peft(
    base: nn.Module, config: LoraConfig, places: tuple[str, ...]
) -> dict[str, LowRankPair]:
    from peft import inject_adapter_in_model

    shell = nn.Module()
    for place in places:
        _put(shell, place, base.get_submodule(place))
    try:
        inject_adapter_in_model(config, shell)
    except ValueError as error:
        raise SafeError(f"PEFT cannot change this base: {error}") from error
    return {
        place: LowRankPair(shell.get_submodule(place)).to(_device(base, place)) for place in places
    }


def _put(shell: nn.Module, place: str, module: nn.Module) -> None:
    """Let ``shell`` hold a module at a dotted path, in empty modules."""
    *parents, name = place.split(".")
    for parent in parents:
        if parent not in shell._modules:
            shell.add_module(parent, nn.Module())
        shell = shell.get_submodule(parent)
    shell.add_module(name, module)


def _device(base: nn.Module, place: str) -> Any:
    weight: Tensor = base.get_submodule(place).weight  # type: ignore[assignment]  # of a linear map
    return weight.device


def _key(place: str) -> str:
    """A path as a name that a module may have."""
    return place.replace(".", "/")


def _plain(value: Any) -> Any:
    """A value as JSON has it, sets in order, so that equal configs make equal files."""
    return sorted(value) if isinstance(value, (set, frozenset)) else value
