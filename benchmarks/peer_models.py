"""A base with tokens of a sample before its text, with or without changes to its weights.

It has the methods of a ``SafeModel`` that evaluation calls, so peers are measured by the same code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peer_arms import RANK
from torch import Tensor, nn

from safe_framework.core.base_model import freeze
from safe_framework.core.modality import Modality, split_by_modality
from safe_framework.core.model import SafeModel
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import Frames, Tokens

PRESENT = "present"
LORA: dict[str, Any] = {
    "r": RANK,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": "all-linear",
}


class PrefixModel(nn.Module):
    """Projected tokens in front of a text's embeddings, the form of LLaVA (arXiv:2304.08485).

    The tokens start as large as the base's embeddings are; ``scale`` is learned.

    Args:
        safe: whose encoder, projector and processor are used, and whose base is the student.
        change: what is trained in the base: ``"frozen"``, ``"lora"`` or ``"full"``.
    """

    base_change = None  # evaluation asks a SafeModel whether its base was changed by itself

    def __init__(self, safe: SafeModel, change: str) -> None:
        super().__init__()
        self._safe = (safe,)  # in a tuple, so that its parameters do not count as this model's
        self.change = change
        self.name = next(iter(safe.modalities))
        self.projector = safe.modality(self.name).projector
        self.language = cast(Any, safe.base)  # of transformers: more than a Module
        words = self.language.get_input_embeddings().weight
        self.scale = nn.Parameter(words.detach().float().square().mean().sqrt())
        self.student: Any = _student(self.language, change)
        self.base: Any = self.language if change == "frozen" else None

    # What evaluation reads of a SafeModel

    def original_base(self) -> AbstractContextManager[None]:
        """A block that changes nothing: no adapter tells what the base was."""
        return nullcontext()

    @property
    def safe(self) -> SafeModel:
        """Where the encoder and the processor are."""
        return self._safe[0]

    @property
    def modalities(self) -> Sequence[str]:
        """The names of the modalities."""
        return (self.name,)

    @property
    def gates(self) -> Mapping[str, float]:
        """Always open: a prefix is given or not."""
        return {self.name: 1.0}

    @property
    def attends(self) -> Mapping[str, str]:
        """A prefix acts on all that stands behind it."""
        return {self.name: "all"}

    @property
    def processor(self) -> Any:
        """Turns texts and samples into batches."""
        return self.safe.processor

    @property
    def tokenizer(self) -> Any:
        """The base's."""
        return self.safe.tokenizer

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.scale.device

    def modality(self, name: str) -> Modality:
        """The modality of that name."""
        return self.safe.modality(name)

    def encode(self, name: str, samples: Sequence[Sample]) -> Frames:
        """The encoder's frames of raw samples."""
        return self.safe.encode(name, samples)

    # Calls

    def prompt_columns(self, batch: Mapping[str, Any]) -> int:
        """How many columns of what ``generate`` returns are the prompt's."""
        return int(batch["input_ids"].shape[1])

    def train(self, mode: bool = True) -> PrefixModel:
        """Switch what is trained; a frozen base stays in evaluation mode."""
        super().train(mode)
        if self.change == "frozen":
            self.language.eval()
        return self

    def forward(self, *, gate: Mapping[str, float] | None = None, **inputs: Any) -> Any:
        """Call the base; logits are those of the text's own positions."""
        own, tokens = self._split(inputs, gate)
        if tokens is None:
            return self.student(**own)
        with _not_scored(self.language.get_output_embeddings(), tokens.mask.shape[1]):
            return self.student(**self._joined(own, tokens, positions=True))

    @torch.no_grad()
    def generate(self, *, gate: Mapping[str, float] | None = None, **inputs: Any) -> Any:
        """The base's own ``generate``; returned texts begin with the prompt."""
        own, tokens = self._split(inputs, gate)
        if tokens is None:
            return self.student.generate(**own)
        prompt = own["input_ids"]
        out = self.student.generate(**self._joined(own, tokens, positions=False))
        if isinstance(out, Tensor):
            return torch.cat([prompt, out], dim=1)
        out.sequences = torch.cat([prompt, out.sequences], dim=1)
        return out

    def off(self) -> AbstractContextManager[Any]:
        """Within the block, whatever of the change can be switched off is off."""
        disabled: Any = self.student.disable_adapter() if self.change == "lora" else nullcontext()
        return disabled  # type: ignore[no-any-return]  # PEFT has no types

    # Parameters

    def trained(self) -> dict[str, nn.Parameter]:
        """What training changes, by name; an embedding that is the head too counts once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def shipped(self) -> dict[str, Tensor]:
        """What has to be saved: all that was trained, and the projector's buffers."""
        buffers = {f"projector.{name}": b for name, b in self.projector.named_buffers()}
        return {name: t.detach() for name, t in {**self.trained(), **buffers}.items()}

    # Inside

    def _split(
        self, inputs: Mapping[str, Any], gate: Mapping[str, float] | None
    ) -> tuple[dict[str, Any], Tokens | None]:
        """The base's own arguments, and the tokens of a batch; None where no sample is present."""
        own, given = split_by_modality((), inputs, self.modalities)
        columns = given.get(self.name)
        if columns is None or (gate or {}).get(self.name, 1.0) == 0 or not columns[PRESENT].any():
            return dict(own), None
        present = columns.pop(PRESENT).bool()
        tokens = self.projector(self.modality(self.name).encode(columns))
        return dict(own), Tokens(tokens.values, tokens.mask & present.unsqueeze(1))

    def _joined(self, own: dict[str, Any], tokens: Tokens, *, positions: bool) -> dict[str, Any]:
        """The arguments with tokens before the text, by embeddings."""
        joined = dict(own)
        words = self.language.get_input_embeddings()(joined.pop("input_ids"))
        prefix = (self.scale * tokens.values).to(words.dtype)
        mask = torch.cat([tokens.mask.long(), joined["attention_mask"].long()], dim=1)
        joined |= {"inputs_embeds": torch.cat([prefix, words], dim=1), "attention_mask": mask}
        if positions:  # ``generate`` makes them from the mask in the same way
            joined["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        return joined


def _student(base: nn.Module, change: str) -> Any:
    freeze(base)
    if change == "full":
        return base.requires_grad_(True)
    if change == "frozen":
        return base
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():  # PEFT asks by a name that transformers has given up
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        return get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM"))


@contextmanager
def _not_scored(head: nn.Module, count: int) -> Iterator[None]:
    """Within the block, the output embeddings are not shown the first ``count`` positions."""

    def rest(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, count:], *args[1:])

    handle = head.register_forward_pre_hook(rest, prepend=True)
    try:
        yield
    finally:
        handle.remove()
