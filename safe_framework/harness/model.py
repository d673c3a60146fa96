"""The models ``safe`` and ``safe-multimodal`` of lm-evaluation-harness.

An adapter, with one sample for every text: of text alone, or of text and pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from safe_framework.core.attend import whole_text_columns
from safe_framework.core.build import load
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import Strength
from safe_framework.data.distractors import FOREIGN, KINDS, distractor
from safe_framework.data.samples import read_for
from safe_framework.errors import SafeError
from safe_framework.interfaces.samples import Sample, each_of
from safe_framework.pretrained.base_processor import takes_images
from safe_framework.runs.finished import open_run
from safe_framework.utils.hashing import tensors_fingerprint


class ModelWithSample:
    """What the harness calls instead of a transformers model: the same sample in every call.

    Args:
        model: with its gates set.
        modality: of the sample.
        sample: for every text; None leaves the modality absent.

    Attributes:
        config: the base's.
        span: how many positions the modality inserts into a text.
    """

    def __init__(self, model: SafeModel, modality: str, sample: Sample | None) -> None:
        self.safe, self.modality = model, modality
        self.config: Any = model.base.config
        self._frames = None if sample is None else model.encode(modality, [sample])
        active = self._frames is not None and model.gates[modality] != 0
        self.span = len(model.processor.markers.spans.get(modality, ())) if active else 0

    @property
    def device(self) -> torch.device:
        """Where the harness puts its ids."""
        return self.safe.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return next(self.safe.base.parameters()).dtype

    def num_parameters(self) -> int:
        """Of the base and of what was added to it."""
        return sum(parameter.numel() for parameter in self.safe.parameters())

    def described(self) -> dict[str, Any]:
        """What was evaluated, to be kept with the results; without asking any hub."""
        return {
            "model_num_parameters": self.num_parameters(),
            "model_dtype": self.dtype,
            "model_revision": "",
            "model_sha": tensors_fingerprint(self.safe.trainable_parameters()),
            "gates": self.safe.gates,
        }

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the model with a sample for each text.

        The harness does not say where in a text the answer begins that it scores, so a modality
        that acts on answers acts on all of it, which is harder on what is to be kept; and a gate of
        ``auto`` is decided at its end.
        """
        samples = self._sample_tensors(*args, **inputs)
        samples |= whole_text_columns(self.safe.attends, samples)
        return self.safe(*args, **inputs, **samples)

    def generate(self, **inputs: Any) -> Any:
        """Continue texts with a sample for each."""
        return self.safe.generate(**inputs, **self._sample_tensors(**inputs))

    def insert_markers(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with the modality's markers where a text begins; untouched without any."""
        if not self.span:
            return dict(inputs)
        batch = {
            key: value.cpu() if isinstance(value, Tensor) else value
            for key, value in inputs.items()
        }
        rows, device = len(batch["input_ids"]), inputs["input_ids"].device
        present = [{self.modality: int(self._frames is not None)}] * rows
        changed = self.safe.processor.markers.insert_into_batch(batch, [""] * rows, present)
        return dict(inputs) | {key: value.to(device) for key, value in changed.items()}

    def remove_markers(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits at the texts' own positions, (batch, length, vocabulary)."""
        own = self.safe.processor.markers.words(ids)
        return logits[own].view(len(ids), -1, logits.shape[-1])  # (batch, length, vocabulary)

    def _sample_tensors(self, *args: Any, **inputs: Any) -> dict[str, Tensor]:
        if self._frames is None:
            return {}
        rows = len(args[0] if args else inputs["input_ids"])
        values, mask = self._frames.values, self._frames.mask
        return {
            f"{self.modality}__present": torch.ones(rows, dtype=torch.bool),
            f"{self.modality}__frames": values.expand(rows, -1, -1),
            f"{self.modality}__frames_mask": mask.expand(rows, -1),
        }


ABSENT = "none"
_NAMES = {"silence": "silent"} | {kind: kind for kind in (*KINDS, FOREIGN)}


def choose_distractor(
    model: SafeModel,
    modality: str,
    adapter: Path,
    kind: str,
    *,
    like: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
) -> Sample | None:
    """The sample that a name stands for; None where the modality is absent.

    Args:
        model: whose encoder will take it.
        modality: of the sample.
        adapter: the model's folder; silence, noise and strangers are made from the test samples
            of its run.
        kind: ``none``, ``silence``, ``noise``, ``shuffled``, ``foreign``, or a sample's file.
        like: a sample's file to make silence or noise from, where there is no run.
        recipe: of the run, where it is no longer where it was.
        seed: decides which of the run's samples is taken, and the noise.

    Raises:
        SafeError: there is no such kind or file, or nothing to make it from.
    """
    if kind == ABSENT:
        return None
    encoder = model.modality(modality).encoder
    if kind not in _NAMES:
        if not Path(kind).is_file():
            known = ", ".join(f"`{name}`" for name in (ABSENT, *_NAMES))
            raise SafeError(
                f"`distractor={kind}` is neither a kind of irrelevant sample nor a file",
                hint=f"use one of {known}, or the file of a sample",
            )
        return read_for(encoder, Path(kind), f"distractor={kind}")
    name = _NAMES[kind]
    if like is not None:
        pool: Sequence[Sample] = [read_for(encoder, Path(like), f"like={like}")]
    else:
        pool = _samples_of_run(adapter, recipe, modality, kind)
    return distractor(name, pool, torch.Generator().manual_seed(seed))


def _samples_of_run(
    adapter: Path, recipe: str | None, modality: str, kind: str
) -> Sequence[Sample]:
    """The samples that the run was tested with."""
    try:
        run = open_run(adapter, recipe)
        if kind == FOREIGN:
            return run.foreign(modality)
        held = [example.samples[modality] for example in run.examples(modality)]
        return [one for each in held for one in each_of(each)]
    except SafeError as error:
        raise SafeError(
            f"`{kind}` samples are made from those of the adapter's run: {error.message}",
            hint="name its recipe with recipe=FILE, or one sample with like=FILE, in --model_args",
        ) from error


def open_adapter(
    adapter: str,
    *,
    gate: Strength | None = None,
    distractor: str = ABSENT,
    modality: str | None = None,
    like: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> ModelWithSample:
    """The model of an adapter's folder with one sample for every text.

    Args:
        adapter: its folder.
        gate: strength from 0 to 1, or ``auto``; by default the adapter's own.
        distractor: ``none``, ``silence``, ``noise``, ``shuffled``, ``foreign``, or a file.
        modality: whose gate and sample these are, where the adapter has several.
        like: a sample's file to make silence or noise from, where there is no run.
        recipe: of the adapter's run, where it is no longer where it was.
        seed: decides which sample, the same for all texts, and the noise.
        device: where to put the model.
    """
    model = load(adapter, device=device).eval()
    name = _choose_modality(model, modality)
    if gate is not None:
        model.set_gate(gate, name)
    sample = choose_distractor(
        model, name, Path(adapter), str(distractor), like=like, recipe=recipe, seed=seed
    )
    return ModelWithSample(model, name, sample)


_OURS = tuple(name for name in signature(open_adapter).parameters if name != "adapter")


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of ``open_adapter``, and those of the harness's own model."""
    ours = {key: value for key, value in options.items() if key in _OURS}
    return ours, {key: value for key, value in options.items() if key not in _OURS}


class SafeLM(HFLM):  # type: ignore[misc]  # lm_eval is not typed
    """The harness's own transformers model, on an adapter and with a sample for every text.

    With the modality absent or its gate at 0 it makes the very calls that ``--model hf`` makes of
    the base, so that every number is the base's.

    Args:
        adapter: its folder.
        **options: those of :func:`open_adapter`, and the other arguments of ``--model hf`` that
            suit a loaded model, such as ``batch_size``, ``max_length`` or ``add_bos_token``.
    """

    def __init__(self, adapter: str, **options: Any) -> None:
        ours, others = _split(options)
        model = open_adapter(adapter, **ours)
        tokenizer = copy.deepcopy(model.safe.tokenizer)  # it is given a pad token if it has none
        super().__init__(model, tokenizer=tokenizer, **others)

    @property
    def max_length(self) -> int:
        """The base's, less what the modality inserts into a text."""
        return int(super().max_length - self.model.span)

    def get_model_info(self) -> dict[str, Any]:
        """What was evaluated, to be kept with the results; without asking any hub."""
        found: dict[str, Any] = self.model.described()
        return found

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return _logits(self, super()._model_call, inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: Any, **options: Any) -> Any:
        return _continued(self, super()._model_generate, context, max_length, stop, options)


class SafeMultimodalLM(HFMultimodalLM):  # type: ignore[misc]  # lm_eval is not typed
    """The harness's own model for pictures, on an adapter and with a sample for every text.

    With the modality absent or its gate at 0 it makes the very calls that ``--model
    hf-multimodal`` makes of the base, of tasks with pictures and of those of text alone. As that
    model, it writes answers to tasks with pictures and scores none by their likelihood.

    Args:
        adapter: its folder; its base sees.
        **options: those of :func:`open_adapter`, and the other arguments of ``--model
            hf-multimodal`` that suit a loaded model, such as ``max_images`` or ``interleave``.

    Raises:
        SafeError: the base cannot be given pictures.
    """

    def __init__(self, adapter: str, **options: Any) -> None:
        ours, others = _split(options)
        model = open_adapter(adapter, **ours)
        if not takes_images(model.safe.base_processor):
            raise SafeError(
                f"`{type(model.safe.base).__name__}` has no image processor",
                hint="evaluate it on text: --model safe",
            )
        super().__init__(model, **others)

    def _create_tokenizer(self, pretrained: ModelWithSample, *_: Any, **__: Any) -> None:
        """Take the base's own processor; a copy, since its tokenizer may be given a pad token."""
        self.processor = copy.deepcopy(pretrained.safe.base_processor)
        self.tokenizer = self.processor.tokenizer

    @property
    def max_length(self) -> int:
        """The base's, less what the modality inserts into a text."""
        return int(super().max_length - self.model.span)

    def get_model_info(self) -> dict[str, Any]:
        """What was evaluated, to be kept with the results; without asking any hub."""
        found: dict[str, Any] = self.model.described()
        return found

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return _logits(self, super()._model_call, inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: Any, **options: Any) -> Any:
        return _continued(self, super()._model_generate, context, max_length, stop, options)

    def _model_multimodal_generate(
        self, inputs: Mapping[str, Any], max_length: int, stop: Any, **options: Any
    ) -> Any:
        marked, context = self.model.insert_markers(inputs), inputs["input_ids"]
        longest = max_length + self.model.span
        out = super()._model_multimodal_generate(marked, longest, stop, **options)
        return _without_markers(self, out, marked["input_ids"], context)


def _logits(
    judged: SafeLM | SafeMultimodalLM,
    call: Callable[..., Tensor],
    ids: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """Logits of texts with the modality's markers, at the texts' own positions."""
    if not judged.model.span:
        return call(ids, mask, labels)
    batch = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    marked = judged.model.insert_markers(batch)
    logits = call(marked["input_ids"], None if labels is None else marked["attention_mask"], labels)
    if judged.backend == "seq2seq":  # whose logits are of the labels
        return logits
    own: Tensor = judged.model.remove_markers(marked["input_ids"], logits)
    return own


def _continued(
    judged: SafeLM | SafeMultimodalLM,
    call: Callable[..., Any],
    context: Tensor,
    max_length: int,
    stop: Any,
    options: dict[str, Any],
) -> Any:
    """Texts continued with the modality's markers in them, which are no part of the result."""
    mask = options.pop("attention_mask")
    marked = judged.model.insert_markers({"input_ids": context, "attention_mask": mask})
    longest = max_length + judged.model.span
    ids = marked["input_ids"]
    out = call(ids, longest, stop, attention_mask=marked["attention_mask"], **options)
    return _without_markers(judged, out, ids, context)


def _without_markers(
    judged: SafeLM | SafeMultimodalLM, out: Tensor, marked: Tensor, context: Tensor
) -> Tensor:
    """What was generated behind marked texts, behind the texts themselves."""
    if not judged.model.span or judged.backend == "seq2seq":
        return out
    return torch.cat([context, out[:, marked.shape[1] :]], dim=1)


def _choose_modality(model: SafeModel, modality: str | None) -> str:
    names = list(model.modalities)
    if modality is None and len(names) == 1:
        return names[0]
    if modality not in names:
        wrong = "the adapter has several" if modality is None else f"there is no `{modality}`"
        raise SafeError(f"{wrong}: {', '.join(names)}", hint="name one with modality=NAME")
    return modality
