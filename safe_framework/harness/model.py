"""The model ``safe`` of lm-evaluation-harness."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from safe_framework.core.build import load
from safe_framework.core.model import SafeModel
from safe_framework.errors import SafeError
from safe_framework.harness.model_accompanied import Accompanied
from safe_framework.harness.model_samples import ABSENT, sample_beside
from safe_framework.utils.hashing import tensors_fingerprint


class SafeLM(HFLM):  # type: ignore[misc]  # lm_eval is not typed
    """The harness's own transformers model, on an adapter and with a sample beside every text.

    With the sense absent or its gate at 0 it makes the very calls that ``--model hf`` makes of
    the base, so that every number is the base's.

    Args:
        adapter: its folder.
        gate: strength from 0 to 1; by default the adapter's own.
        distractor: ``none``, ``silence``, ``noise``, ``shuffled``, ``foreign``, or a file.
        modality: whose gate and sample these are, where the adapter has several.
        like: a sample's file to make silence or noise from, where there is no run.
        recipe: of the adapter's run, where it is no longer where it was.
        seed: decides which sample, the same for all texts, and the noise.
        device: where to put the model.
        **options: the other arguments of ``--model hf`` that suit a loaded model, such as
            ``batch_size``, ``max_length`` or ``add_bos_token``.
    """

    def __init__(
        self,
        adapter: str,
        *,
        gate: float | None = None,
        distractor: str = ABSENT,
        modality: str | None = None,
        like: str | None = None,
        recipe: str | None = None,
        seed: int = 0,
        device: str | None = None,
        **options: Any,
    ) -> None:
        model = load(adapter, device=device).eval()
        name = _chosen(model, modality)
        if gate is not None:
            model.set_gate(gate, name)
        sample = sample_beside(
            model, name, Path(adapter), str(distractor), like=like, recipe=recipe, seed=seed
        )
        inner = getattr(model.tokenizer, "tokenizer", model.tokenizer)
        super().__init__(
            Accompanied(model, name, sample),
            tokenizer=copy.deepcopy(inner),  # it is given a pad token where it has none
            **options,
        )

    @property
    def max_length(self) -> int:
        """The base's, less what the sense puts into a text."""
        return int(super().max_length - self.model.span)

    def get_model_info(self) -> dict[str, Any]:
        """What was judged, beside the results; without asking any hub."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": "",
            "model_sha": tensors_fingerprint(self.model.safe.trainable_parameters()),
            "gates": self.model.safe.gates,
        }

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        ids, mask = self.model.marked(inps, attn_mask)
        logits: Tensor = super()._model_call(ids, None if labels is None else mask, labels)
        if not self.model.span or self.backend == "seq2seq":  # whose logits are of the labels
            return logits
        return self.model.unmarked(ids, logits)  # type: ignore[no-any-return]  # see the class

    def _model_generate(self, context: Tensor, max_length: int, stop: Any, **options: Any) -> Any:
        ids, mask = self.model.marked(context, options.pop("attention_mask"))
        longest = max_length + self.model.span
        out = super()._model_generate(ids, longest, stop, attention_mask=mask, **options)
        if not self.model.span or self.backend == "seq2seq":
            return out
        return torch.cat([context, out[:, ids.shape[1] :]], dim=1)


def _chosen(model: SafeModel, modality: str | None) -> str:
    names = list(model.modalities)
    if modality is None and len(names) == 1:
        return names[0]
    if modality not in names:
        wrong = "the adapter has several" if modality is None else f"there is no `{modality}`"
        raise SafeError(f"{wrong}: {', '.join(names)}", hint="name one with modality=NAME")
    return modality
