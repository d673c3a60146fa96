"""SafeModel: an untouched base, and the modalities that listen in on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safe_framework.core.adapter import trainable_parameters, trainable_summary
from safe_framework.core.attention_probe import AttentionProbe
from safe_framework.core.base_change import (
    BaseChange,
    acting,
    drop_change,
    refuse_changed,
    suspended,
)
from safe_framework.core.base_model import device_of, facts_of, filling_id, freeze
from safe_framework.core.base_snapshot import Seal
from safe_framework.core.call import call_apart, refuse_shared, union
from safe_framework.core.compilation import refuse_compiled, uncompile, uncompiled
from safe_framework.core.gradient_checkpointing import (
    Options,
    disable,
    enable,
    recomputing,
    uncached,
)
from safe_framework.core.injection import ActiveSense, CallInjection
from safe_framework.core.layer_discovery import (
    Side,
    check_arrival,
    example_inputs,
    find_layers,
    probe,
)
from safe_framework.core.layer_hooks import active, install, install_embeddings
from safe_framework.core.markers.call import prepare_call
from safe_framework.core.markers.embeddings import (
    Markers,
    embeddings_of,
    inline_tokens,
    make_markers,
)
from safe_framework.core.modality import (
    Modality,
    check_layers,
    check_name,
    checked_gate,
    split_by_modality,
)
from safe_framework.core.processor import SafeProcessor, padding_id, prepare_multimodal_inputs
from safe_framework.data.prompts import template_of
from safe_framework.errors import SafeError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.types import BaseFacts, Frames, Sample

if TYPE_CHECKING:
    from safe_framework.config.schema import Recipe

Gate = float | Tensor | Mapping[str, float | Tensor]

_OFF: ContextVar[frozenset[tuple[int, str]]] = ContextVar("safe_framework_off", default=frozenset())
"""Ids of models (copies of one share its owner key) and names of their modalities."""


class SafeModel(nn.Module):
    """A frozen transformers model that can be given new senses.

    With every modality absent or every gate at 0, ``forward`` and ``generate`` return bit for
    bit what ``base`` returns for the same call.

    Args:
        base: any transformers model with decoder layers; frozen and put in evaluation mode,
            otherwise left as it is.
        tokenizer: its tokenizer or processor, for ``processor``; optional.
        layers_path: dotted path of the layers to fuse into, where the rule is wrong.
        side: of an encoder-decoder base, which layers a modality enters.
        example: keyword arguments on which the base runs, where it does not run on plain text.
        split_rows: run the rows that carry no modality apart, where the base mixes rows.

    Attributes:
        base: the model that was given.
        stack: its layers, as one tiny call has shown them.
        split_rows: as given; may be changed between calls.
        modalities: the senses by name.
        base_change: what stage B changed in the base; None where L1 and L2 hold.
        recipe: what the model was built from, if it was built from a recipe.
        seal: what the base was when it was wrapped.
        attention_probe: what text attended to, once ``configure_attention_probe`` enabled it.

    Raises:
        UnsupportedBaseError: the base cannot be served; the message says what was seen.
    """

    def __init__(
        self,
        base: nn.Module,
        tokenizer: Any = None,
        *,
        layers_path: str | None = None,
        side: Side = "decoder",
        example: Mapping[str, Any] | None = None,
        split_rows: bool = False,
    ) -> None:
        super().__init__()
        paths = find_layers(base, layers_path, side)
        refuse_compiled(base, paths)
        self.base = freeze(base)
        self._example = example
        self.stack = probe(base, paths, self._example_inputs())
        self.split_rows = split_rows
        self.modalities = nn.ModuleDict()
        self.base_change: BaseChange | None = None
        self.recipe: Recipe | None = None
        self.tokenizer = tokenizer
        self._owner = uuid4().hex
        self._processor: SafeProcessor | None = None
        self._handles: dict[str, list[RemovableHandle]] = {}
        self.seal = Seal.of(base, tokenizer)
        self._recompute: Options = None
        self.attention_probe = AttentionProbe()
        self.training = self.modalities.training = False  # as a loaded model: no dropout yet

    # Modalities

    def add_modality(
        self,
        name: str,
        *,
        encoder: Encoder,
        projector: Projector,
        fusion: FusionAdapter,
        gate: float = 1.0,
        markers: bool = False,
        inline: bool = False,
    ) -> None:
        """Attach a sense; untrained and without markers, it leaves the outputs exactly the base's.

        Args:
            name: of the sense.
            encoder: turns samples into frames.
            projector: maps frames into the base's hidden size.
            fusion: lets decoder layers attend to the tokens.
            gate: strength from 0 (off) to 1.
            markers: mark where a sample is in the text, by two words with vectors of their own.
            inline: put the projected tokens between them too.

        Raises:
            SafeError: the name is taken or cannot be a keyword, or a fused layer does not exist.
            UnsupportedBaseError: what is added at a fused layer does not reach the outputs.
        """
        check_name(name, self.modalities)
        refuse_changed(self.base_change)
        taken, tokens = self._markers().values(), inline_tokens(projector) if inline else None
        marks = make_markers(self, taken, tokens) if markers or inline else None
        modality = Modality(name, encoder, projector, fusion, gate, marks)
        modality.encoder.eval()
        check_layers(name, fusion.layers, self.stack.count)
        check_arrival(self.base, self.stack, fusion.layers, self._example_inputs())
        self.modalities[name] = modality.to(self.device).train(self.training)
        self._processor = None
        self._handles[name] = install(self._owner, name, self.stack.of(self.base), fusion.layers)
        if marks is not None:
            self._handles[name] += install_embeddings(self._owner, name, embeddings_of(self.base))

    def remove_modality(self, name: str) -> None:
        """Detach one sense; its hooks leave the base."""
        del self.modalities[self._known(name)]
        self._processor = None
        for handle in self._handles.pop(name):
            handle.remove()

    def detach(self) -> nn.Module:
        """Remove every sense and give the base back, without a hook on it."""
        for name in list(self.modalities):
            self.remove_modality(name)
        self.gradient_checkpointing_disable()
        uncompile(self.base, self.stack.of(self.base))
        drop_change(self)
        return self.base

    @property
    def base_changed(self) -> bool:
        """Whether stage B changed the base, so that L1 and L2 do not hold."""
        return self.base_change is not None

    def facts(self) -> BaseFacts:
        """What a fusion adapter's constructor is told of the base."""
        return facts_of(self.base, self.stack)

    def modality(self, name: str) -> Modality:
        """The modality called ``name``.

        Raises:
            SafeError: there is none.
        """
        found = self.modalities[self._known(name)]
        assert isinstance(found, Modality)
        return found

    # Calls

    def forward(self, *args: Any, gate: Gate | None = None, **inputs: Any) -> Any:
        """Call the base, with whatever modalities ``inputs`` carries.

        Args:
            *args: passed to the base.
            gate: strength for this call instead of the modalities' own: one number, one for
                each row, or either by modality.
            **inputs: the base's own arguments, and ``NAME__KEY`` tensors of modalities.

        Returns:
            What the base returns.

        Raises:
            InjectionError: a fused layer was bypassed, so the modality was not heard.
        """
        with recomputing(self._recompute if self.training else None):
            return self._call(self.base, args, uncached(inputs), gate)

    def generate(self, *args: Any, gate: Gate | None = None, **inputs: Any) -> Any:
        """The base's own ``generate``, with whatever modalities ``inputs`` carries.

        Keys and values of a modality are computed once and shared by beams and steps. Returned
        texts begin with what the base was given: markers of a modality that is off are not in it.
        """
        with torch.no_grad():
            generate: Any = self.base.generate
            return self._call(generate, args, inputs, gate, uncompiled(self.base))

    @contextmanager
    def off(self, *names: str) -> Iterator[None]:
        """Within the block, these modalities (all, if none is named) are absent.

        Holds for this thread or task only; others that share the model are not affected. Where
        stage B changed the base by LoRA, ``off()`` of all is the original base, too.
        """
        chosen = [self._known(name) for name in names] or list(self.modalities)
        token = _OFF.set(_OFF.get() | {(id(self), name) for name in chosen})
        try:
            with nullcontext() if names else suspended(self.base_change):
                yield
        finally:
            _OFF.reset(token)

    def hears(self, name: str) -> bool:
        """Whether no ``off()`` silences the modality in this thread or task."""
        return (id(self), self._known(name)) not in _OFF.get()

    def _call(
        self,
        method: Callable[..., Any],
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        gate: Gate | None,
        when_heard: Mapping[str, Any] | None = None,
    ) -> Any:
        own, given = split_by_modality(args, inputs, self.modalities)
        senses = self._senses(given, gate)
        call = prepare_call(method, args, own, self._markers(), senses, self._padding)
        changed = self.base_change.call() if self.base_change is not None else None

        def silent() -> Any:
            """The base's call, with no modality on."""
            eager = (when_heard or {}) if changed is not None else {}
            with active(None), acting(changed):
                return method(*call.args, **{**call.inputs, **eager})

        def heard() -> Any:
            """The base's call, with the modalities that are on."""
            stack = self.stack
            injection = CallInjection(self._owner, senses, stack.passes, stack.entry, call.prompts)
            watched = self.attention_probe.watching(senses, call.inputs, method is not self.base)
            with active(injection), acting(changed), watched:
                out = method(*call.args, **{**call.inputs, **(when_heard or {})})
            injection.check_fired()
            return out

        if not senses:
            return silent()
        rows, batch = union([sense.rows for sense in senses]), senses[0].batch
        if not self.split_rows or len(rows) == batch:
            return call.restored(heard())
        refuse_shared(own)
        return call.restored(call_apart(silent, heard, rows, batch, filling_id(self.base)))

    def _senses(
        self, given: Mapping[str, Mapping[str, Tensor]], gate: Gate | None
    ) -> list[ActiveSense]:
        for name in gate if isinstance(gate, Mapping) else ():
            self._known(name)
        return [
            sense
            for name in self.modalities
            if name in given and self.hears(name)
            if (sense := self._sense(name, given[name], gate)) is not None
        ]

    def _padding(self) -> int:
        return padding_id(self.tokenizer, filling_id(self.base))

    def _markers(self) -> dict[str, Markers]:
        found = {name: self.modality(name).markers for name in self.modalities}
        return {name: markers for name, markers in found.items() if markers is not None}

    def _example_inputs(self) -> Mapping[str, Any]:
        return self._example or example_inputs(self.base, self.device)

    def _sense(
        self, name: str, inputs: Mapping[str, Tensor], gate: Gate | None
    ) -> ActiveSense | None:
        modality = self.modality(name)
        chosen = gate.get(name) if isinstance(gate, Mapping) else gate
        return modality.sense_at(chosen, inputs, self.device, self.stack.layout)

    @property
    def gates(self) -> dict[str, float]:
        """The strength of each modality, from 0 (off, bit for bit the base) to 1."""
        return {name: self.modality(name).gate for name in self.modalities}

    def set_gate(self, value: float, modality: str | None = None) -> None:
        """Set the strength of one modality, or of all.

        Raises:
            SafeError: the value is not from 0 to 1, or there is no such modality.
        """
        for name in [modality] if modality is not None else list(self.modalities):
            self.modality(name).gate = checked_gate(value)

    # Samples

    def configure_attention_probe(self, *, enabled: bool = True, limit: int = 10) -> None:
        """Record in ``attention_probe`` what text attends to, for the latest ``limit`` samples."""
        self.attention_probe.configure(enabled, limit)

    @property
    def processor(self) -> SafeProcessor:
        """Turns texts and samples into batches for this model."""
        if self._processor is None:  # copying a tokenizer takes a while
            encoders = {name: self.modality(name).encoder for name in self.modalities}
            prompt = template_of(self.recipe, self.tokenizer)
            spans = {name: markers.span for name, markers in self._markers().items()}
            self._processor = SafeProcessor(self.tokenizer, encoders, prompt=prompt, spans=spans)
        return self._processor

    prepare_multimodal_inputs = prepare_multimodal_inputs

    def encode(self, name: str, samples: Sequence[Sample]) -> Frames:
        """The encoder's frames of raw samples, without gradient."""
        modality = self.modality(name)
        inputs = modality.encoder.prepare(samples)
        with torch.no_grad():
            return modality.encode({key: value.to(self.device) for key, value in inputs.items()})

    # Parameters

    @property
    def device(self) -> torch.device:
        """Where the inputs of a call go."""
        return device_of(self.base)

    def train(self, mode: bool = True) -> SafeModel:
        """Switch the trainable parts; the base stays in evaluation mode."""
        self.training = mode
        for child in self.children():
            child.train(mode and child is not self.base)
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass of training."""
        return self._recompute is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Options = None) -> None:
        """In training, recompute the layers in the backward pass, with these options of torch."""
        self._recompute = enable(self.stack.of(self.base), gradient_checkpointing_kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Options = None, **others: Any
    ) -> None:
        """The same under the name that newer Trainers call."""
        self._recompute = enable(self.stack.of(self.base), activation_checkpointing_kwargs, others)

    def gradient_checkpointing_disable(self) -> None:
        """Keep in training what the layers did, as before."""
        disable(self.stack.of(self.base))
        self._recompute = None

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; those of a changed base are among them."""
        return trainable_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trainable, in PEFT's form."""
        print(trainable_summary(self))

    def save_pretrained(self, folder: str | Path, is_main_process: bool = True) -> Path:
        """Write the adapter, without the base, to ``folder`` in one step.

        Processes that share the base's layers all call this, and one of them writes.
        """
        from safe_framework.core.adapter import save_adapter

        return save_adapter(self, Path(folder), writes=is_main_process)

    def _known(self, name: str) -> str:
        if name not in self.modalities:
            known = ", ".join(self.modalities) or "none"
            raise SafeError(f"there is no modality `{name}`", hint=f"attached modalities: {known}")
        return name
