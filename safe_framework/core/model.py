"""SafeModel: an untouched base, and the modalities that are attached to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from safe_framework.config.schema import Attend, TranscriptSpec
from safe_framework.core.adapter import (
    AdapterState,
    LoadedKeys,
    adapter_config,
    load_state,
    modality_tensors,
    write_adapter,
)
from safe_framework.core.attend import answer_starts, answering, check_attend
from safe_framework.core.attention_probe import AttentionProbe
from safe_framework.core.base_change import (
    BaseChange,
    check_reached,
    named_change_parameters,
    read_change,
    refuse_changed,
    use_original_base,
)
from safe_framework.core.base_identity import base_identity, recorded_base
from safe_framework.core.base_model import base_facts, freeze, input_device
from safe_framework.core.base_snapshot import BaseSnapshot
from safe_framework.core.call import Gate, ModelCall, gate_of
from safe_framework.core.compilation import (
    check_not_compiled,
    prepare_to_stay_eager,
    uncompile,
)
from safe_framework.core.deciding import PendingModality, latest_decided, note_decided
from safe_framework.core.gradient_checkpointing import (
    Options,
    disable_checkpointing,
    enable_checkpointing,
    use_checkpointing,
    without_cache,
)
from safe_framework.core.injection import ActiveModality
from safe_framework.core.last_position import runs_alone
from safe_framework.core.layer_discovery import (
    LayerStack,
    Side,
    check_layers_reach_output,
    example_inputs,
    find_layers,
    probe_layers,
)
from safe_framework.core.layer_hooks import HookSet
from safe_framework.core.loss_share import COUNT, LossShare, check_not_alone, reads_count
from safe_framework.core.markers.embeddings import (
    Markers,
    embeddings_of,
    inline_tokens,
    make_markers,
)
from safe_framework.core.modality import (
    Modality,
    RowGates,
    check_layers,
    check_name,
    checked_gate,
    checked_gates,
    leaves_open,
    row_gates,
    split_by_modality,
)
from safe_framework.core.named_inputs import named_inputs
from safe_framework.core.picture_example import picture_examples
from safe_framework.core.processor import SafeProcessor
from safe_framework.core.recipe_of import base_name, check_named, recipe_text
from safe_framework.core.relevance import (
    AUTO,
    RelevanceHead,
    Strength,
    check_decidable,
    check_head,
)
from safe_framework.core.segments import SegmentVectors, without_untaught
from safe_framework.core.switched_off import is_switched_off, switched_off, warn_if_off_elsewhere
from safe_framework.data.chat_template import QUESTION
from safe_framework.data.listening import Listener
from safe_framework.data.prompts import recipe_chat
from safe_framework.data.transcripts import Transcripts
from safe_framework.data.windows import prepare_samples
from safe_framework.errors import SafeError, UnsupportedBaseError
from safe_framework.interfaces.encoder import Encoder
from safe_framework.interfaces.fusion import FusionAdapter
from safe_framework.interfaces.projector import Projector
from safe_framework.interfaces.samples import Sample
from safe_framework.interfaces.types import FROM, PRESENT, BaseFacts, Frames
from safe_framework.pretrained.base_model import context_length, is_weightless
from safe_framework.pretrained.base_processor import text_tokenizer
from safe_framework.pretrained.quantised import quantisation_of, untested
from safe_framework.utils.tensors import changes_type

if TYPE_CHECKING:
    from safe_framework.config.schema import Recipe
    from safe_framework.core.prompt_states import PromptEnd


class SafeModel(nn.Module):
    """A frozen transformers model that can be given new modalities.

    With every modality absent or every gate at 0, ``forward`` and ``generate`` return bit for
    bit what ``base`` returns for the same call.

    Args:
        base: any transformers model with decoder layers; frozen and put in evaluation mode,
            otherwise left as it is.
        tokenizer: its processor or tokenizer, for ``processor``; optional.
        layers_path: dotted path of the layers to fuse into, where the rule is wrong.
        side: of an encoder-decoder base, which layers a modality enters.
        example: keyword arguments on which the base runs, where it runs neither on plain text
            nor on a picture as its processor or config describes one.
        split_rows: run the rows that carry no modality in a call of their own, where the base
            mixes rows.

    Attributes:
        base: the model that was given.
        base_processor: the base's own processor where it has one, else its tokenizer.
        stack: its layers, as one tiny call has shown them.
        split_rows: as given; may be changed between calls.
        modalities: the attached ones by name.
        base_change: what stage B changed in the base; None where L1 and L2 hold.
        owner: key by which hooks on the base know this model's calls.
        layers_path: as given.
        side: as given.
        built_from: the recipe that the model was built from, or trained by; None for neither.
        without_recipe: whether adapters are saved without saying how the model is made.
        base_snapshot: what the base was when it was wrapped.
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
        check_not_compiled(base, paths)
        prepare_to_stay_eager()
        if (quantised := quantisation_of(getattr(base, "config", None))) is not None:
            warnings.warn(untested(quantised), stacklevel=2)
        self.base = freeze(base)
        self._example = example
        self.stack = self._probed(paths, tokenizer)
        self.split_rows = split_rows
        self.layers_path, self.side = layers_path, side
        self.modalities = nn.ModuleDict()
        self.base_change: BaseChange | None = None
        self.built_from: Recipe | None = None
        self.without_recipe = False
        self.base_processor = tokenizer
        self.owner = uuid4().hex
        self._processor: SafeProcessor | None = None
        self._hooks = HookSet(self.owner)
        self.base_snapshot = BaseSnapshot.of(base, tokenizer)
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
        gate: Strength = 1.0,
        attend: Attend = "all",
        markers: bool = False,
        inline: bool = False,
        transcript: bool | TranscriptSpec | Transcripts = False,
        features: bool = True,
    ) -> None:
        """Attach a modality: untrained and without markers, outputs stay exactly the base's.

        Args:
            name: of the modality.
            encoder: turns samples into frames.
            projector: maps frames into the base's hidden size.
            fusion: lets decoder layers attend to the tokens.
            gate: strength from 0 (off) to 1; or ``"auto"``, once it has a relevance head.
            attend: where in the text it acts: ``"answer"``, from the last position of the prompt
                on; ``"after"``, from its markers on; or ``"all"``.
            markers: mark where a sample is in the text, by two words with vectors of their own.
            inline: put the projected tokens between them too.
            transcript: where a sample is heard, put what was said in it into the prompt.
            features: let the base attend to what the encoder hears; without, the transcript is all.

        Raises:
            SafeError: the name is taken or cannot be a keyword, a fused layer does not exist,
                ``attend`` asks for a position that the text does not have, the encoder cannot
                transcribe, or it cuts windows and ``inline`` is given.
            UnsupportedBaseError: what is added at a fused layer does not reach the outputs.
        """
        check_name(name, self.modalities)
        refuse_changed(self.base_change)
        marked = markers or inline
        if inline and encoder.windows is not None:
            raise SafeError(
                f"`inline` of modality `{name}` puts as many tokens into each text, and a sample "
                "that is cut into windows has more of them the longer it is",
                hint="leave out `inline` or `windows`",
            )
        check_attend(attend, self.base, self.stack, self._example_inputs(), marked=marked)
        written = _transcripts(name, encoder, transcript, features=features)
        taken, tokens = self._markers().values(), inline_tokens(projector) if inline else None
        size, spoken, marks = self.stack.hidden_size, written is not None, None
        if marked or spoken:
            marks = make_markers(
                self.base, self.device, size, taken, tokens, marked=marked, transcript=spoken
            )
        segments = SegmentVectors(self.stack.hidden_size)
        parts = encoder, projector, fusion, segments
        modality = Modality(name, *parts, gate, marks, attend, written, features=features)
        modality.encoder.eval()
        check_layers(name, fusion.layers, self.stack.count)
        check_layers_reach_output(self.base, self.stack, fusion.layers, self._example_inputs())
        if not is_weightless(self.base):  # what is made of its weights has none either
            modality.to(self.device)
        self.modalities[name] = modality.train(self.training)
        self._processor = None
        embeddings = embeddings_of(self.base) if marked else ()
        self._hooks.add(name, self.stack.of(self.base), fusion.layers, embeddings)

    def remove_modality(self, name: str) -> None:
        """Detach one modality; its hooks leave the base."""
        del self.modalities[self._known(name)]
        self._processor = None
        self._hooks.remove(name)

    def detach(self) -> nn.Module:
        """Remove every modality and give the base back, without a hook on it."""
        for name in list(self.modalities):
            self.remove_modality(name)
        self.gradient_checkpointing_disable()
        uncompile(self.base, self.stack.of(self.base))
        self._remove_base_change()
        return self.base

    def facts(self) -> BaseFacts:
        """What a fusion adapter's constructor may know of the base."""
        return base_facts(self.base, self.stack, meta=is_weightless(self.base))

    def modality(self, name: str) -> Modality:
        """The modality called ``name``.

        Raises:
            SafeError: there is none.
        """
        found = self.modalities[self._known(name)]
        assert isinstance(found, Modality)
        return found

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer, without a processor around it."""
        return text_tokenizer(self.base_processor)

    @property
    def attends(self) -> dict[str, Attend]:
        """Where in the text each modality acts."""
        return {name: self.modality(name).attend for name in self.modalities}

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The encoder of each modality."""
        return {name: self.modality(name).encoder for name in self.modalities}

    # Calls

    @named_inputs
    def forward(
        self,
        *args: Any,
        gate: Gate | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Call the base, with whatever modalities ``inputs`` carries.

        Args:
            *args: passed to the base.
            gate: strength for this call instead of the modalities' own: one number, one for
                each row, or either by modality.
            labels: passed to the base; named here, as Trainers look for them. In training, beside
                ``num_items_in_batch``, the loss is their sum over so many tokens, on a base whose
                own loss does not read it too.
            **inputs: the base's own arguments, and ``NAME__KEY`` tensors of modalities.

        Returns:
            What the base returns.

        Raises:
            InjectionError: a fused layer was bypassed, so the modality had no effect.
            KeywordError: labels came alone.
        """
        share = LossShare()
        if labels is not None:
            check_not_alone(args, inputs)
            if self.training and COUNT in inputs and not self._base_reads_count:
                share = LossShare.taken(inputs, labels, self.base)
            inputs["labels"] = labels
        with use_checkpointing(self._recompute if self.training else None):
            own, call = self._prepare(args, without_cache(inputs), gate)
            return share.of(call.forward(args, own))

    @cached_property
    def _base_reads_count(self) -> bool:
        return reads_count(self.base, self._example_inputs())

    def generate(self, *args: Any, gate: Gate | None = None, **inputs: Any) -> Any:
        """The base's own ``generate``, with whatever modalities ``inputs`` carries.

        Keys and values of a modality are computed once and shared by beams and steps. Returned
        texts begin with what the base was given: markers of a modality that is off are not in it.
        A ``streamer`` is given the text's own words alone, and no markers.
        """
        with torch.no_grad():
            own, call = self._prepare(args, inputs, gate)
            return call.generate(args, own)

    @contextmanager
    def off(self, *names: str) -> Iterator[None]:
        """Within the block, these modalities (all, if none is named) are absent.

        Holds for this thread or task only; others that share the model are not affected, and a
        thread that is started inside the block is told so if it generates. Where
        stage B changed the base by LoRA, ``off()`` of all is the original base, too.
        """
        chosen = [self._known(name) for name in names] or list(self.modalities)
        original = nullcontext() if names else use_original_base(self.base_change)
        with switched_off(self, chosen), original:
            yield

    def is_enabled(self, name: str) -> bool:
        """Whether no ``off()`` block of this thread or task switches the modality off."""
        return not is_switched_off(self, self._known(name))

    def _prepare(
        self, args: Sequence[Any], inputs: Mapping[str, Any], gate: Gate | None
    ) -> tuple[Mapping[str, Any], ModelCall]:
        """The base's own keyword arguments, and the call that they are for."""
        own, given = split_by_modality(args, inputs, self.modalities)
        for name in gate if isinstance(gate, Mapping) else ():
            self._known(name)
        gates = self._gates_of(given, gate)
        pending = {} if self.training else self._pending(given, gates)
        decided = {name: one for name, one in gates.items() if name not in pending}
        note_decided(self)
        return own, self._call(self._activate(given, decided), list(pending.values()))

    def _gates_of(
        self, given: Mapping[str, Mapping[str, Tensor]], gate: Gate | None
    ) -> dict[str, RowGates]:
        """The gate in this call of each modality that has a sample and is not switched off."""
        found: dict[str, RowGates] = {}
        for name in self.modalities:
            asked = gate_of(gate, name)
            own = None if asked is None else checked_gates(asked)  # also where nothing is heard
            if name in given and self.is_enabled(name):
                warn_if_off_elsewhere(self, name)
                found[name] = self.modality(name).gate if own is None else own
        return found

    def _call(
        self, modalities: Sequence[ActiveModality], pending: Sequence[PendingModality] = ()
    ) -> ModelCall:
        """A call with some modalities on, and some of which their heads decide."""
        return ModelCall(
            self.base,
            self.owner,
            self.stack,
            modalities,
            pending,
            {name: self.modality(name).fusion.layers for name in self.modalities},
            self._markers(),
            self.base_change,
            self.attention_probe,
            self.tokenizer,
            self.split_rows,
            lambda: self._runs_alone,
            partial(note_decided, self),
        )

    @cached_property
    def _runs_alone(self) -> bool:
        return runs_alone(self.base, self.stack, self._example_inputs())

    def _pending(
        self, given: Mapping[str, Mapping[str, Tensor]], gates: Mapping[str, RowGates]
    ) -> dict[str, PendingModality]:
        """The modalities of which a head decides on some row."""
        found: dict[str, PendingModality] = {}
        for name, gate in gates.items():
            if not leaves_open(gate):
                continue
            modality = self.modality(name)
            check_decidable(modality)
            inputs = {key: value.to(self.device) for key, value in given[name].items()}
            each = row_gates(gate, len(inputs[PRESENT]))
            found[name] = PendingModality(modality, inputs, each)
        if found:
            fused = (layer for name in gates for layer in self.modality(name).fusion.layers)
            first = min(*fused, *(one.head.layer for one in found.values()))
            self._hooks.watch(self.stack.of(self.base), first)
        return found

    def _activate(
        self, given: Mapping[str, Mapping[str, Tensor]], gates: Mapping[str, RowGates]
    ) -> list[ActiveModality]:
        """The modalities whose gate is open on a row that has a sample."""
        device, layout = self.device, self.stack.layout
        active = [
            self.modality(name).activate(gate, given[name], device, layout)
            for name, gate in gates.items()
        ]
        return [modality for modality in active if modality is not None]

    def _markers(self) -> dict[str, Markers]:
        found = {name: self.modality(name).markers for name in self.modalities}
        return {name: markers for name, markers in found.items() if markers is not None}

    def _probed(self, paths: Sequence[str], processor: Any) -> LayerStack:
        """The base's layers, seen in a call on plain text or, where it runs on none, on a picture.

        The call on which it ran stays the example.
        """
        try:
            return probe_layers(self.base, paths, self._example_inputs())
        except UnsupportedBaseError:
            if self._example:
                raise
            for example in picture_examples(self.base, processor, self.device):
                with suppress(UnsupportedBaseError):  # the first error says more
                    stack = probe_layers(self.base, paths, example)
                    self._example = example
                    return stack
            raise

    def _example_inputs(self) -> Mapping[str, Any]:
        return self._example or example_inputs(self.base, self.device)

    @property
    def gates(self) -> dict[str, Strength]:
        """The strength of each modality, from 0 (off, bit for bit the base) to 1, or ``"auto"``."""
        return {name: self.modality(name).gate for name in self.modalities}

    def set_gate(self, value: Strength, modality: str | None = None) -> None:
        """Set the strength of one modality, or of all.

        Args:
            value: from 0 to 1; or ``"auto"``, by which its relevance head opens or closes it, call
                by call and row by row.
            modality: whose; of all if None.

        Raises:
            SafeError: the value is neither, there is no such modality, or one without a relevance
                head was to have ``"auto"``.
        """
        names = [self._known(modality)] if modality is not None else list(self.modalities)
        if (checked := checked_gate(value)) == AUTO:
            for name in names:
                check_decidable(self.modality(name))
        for name in names:
            self.modality(name).gate = checked

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What heads decided in the latest call of this thread or task.

        By modality, the strength on each row, (batch,): 0 where the gate stayed closed or there
        was no sample. Empty where the call left nothing to a head.
        """
        return dict(latest_decided(self).gates)

    def prompt_columns(self, batch: Mapping[str, Any]) -> int:
        """Behind how many columns the latest call's ``generate`` put what it added.

        Args:
            batch: that it was given. Where a head kept a gate closed, markers are gone from it.
        """
        columns = latest_decided(self).columns
        return int(batch["input_ids"].shape[1]) if columns is None else columns

    def set_relevance(self, name: str, head: RelevanceHead | None) -> None:
        """Give a modality the head that decides where its gate is ``"auto"``, or none.

        Args:
            name: of the modality.
            head: fitted on this base; None takes it away, and leaves a gate of ``"auto"`` at 1.

        Raises:
            SafeError: there is no such modality, or the head reads another base's states.
        """
        modality = self.modality(name)
        if head is None:
            modality.relevance = None
            modality.gate = 1.0 if modality.gate == AUTO else modality.gate
            return
        check_head(modality, head, self.stack.count, self.stack.hidden_size)
        modality.relevance = head.to(self.device)

    def prompt_states(
        self, batch: Mapping[str, Any], layers: Collection[int], columns: int = 1
    ) -> dict[int, PromptEnd]:
        """The base's own hidden states at the last positions of each row's prompt, by layer.

        The base runs up to the last of the layers.

        Args:
            batch: what the processor made, with samples or without, which are not looked at.
            layers: of the base, whose outputs are read, from 0.
            columns: how many positions are read; those that a cache holds are not.
        """
        own, _ = split_by_modality((), batch, self.modalities)
        self._hooks.watch(self.stack.of(self.base), min(layers))
        with torch.no_grad():
            return self._call(()).prompt_states(own, layers, columns)

    # Samples

    def configure_attention_probe(self, *, enabled: bool = True, limit: int = 10) -> None:
        """Record in ``attention_probe`` what text attends to, for the latest ``limit`` samples."""
        self.attention_probe.configure(enabled, limit)

    @property
    def processor(self) -> SafeProcessor:
        """Turns texts and samples into batches for this model."""
        if self._processor is None:  # copying a tokenizer takes a while
            data = self.built_from.data if self.built_from is not None else None
            base = self.base_processor
            written = {name: self.modality(name).transcripts for name in self.modalities}
            self._processor = SafeProcessor(
                base,
                self.encoders,
                prompt=QUESTION if data is None else data.prompt,
                spans={name: markers.span for name, markers in self._markers().items()},
                chat=recipe_chat(data, base),
                words={name: markers.words for name, markers in self._markers().items()},
                transcripts={name: one for name, one in written.items() if one is not None},
                context=context_length(self.base.config),
            )
        return self._processor

    def prepare_multimodal_inputs(
        self,
        text: str | Sequence[str],
        images: Any = None,
        audio: Sample | Sequence[Sample | None] | None = None,
        answers: str | Sequence[str | None] | None = None,
        training_mode: bool = False,
        *,
        sampling_rate: int | None = None,
        **samples: Any,
    ) -> Any:
        """A batch of texts with samples of any modality, and in training the labels to learn.

        In training mode, each answer and the end-of-text token follow their text, rows are padded
        on the right, and ``labels`` holds the answers' ids where they stand and -100 everywhere
        else, at markers and padding too. Otherwise answers are not looked at, there are no labels,
        and rows are padded on the left, ready for ``generate``.

        Args:
            text: one text or several.
            images: for the base's own processor, or for a modality of that name; None in a list
                is a text without one.
            audio: a sample for each text, or None, for the modality ``audio``.
            answers: what should follow each text; None in a list is a text without a target.
            training_mode: give labels.
            sampling_rate: of plain arrays given as samples, in hertz.
            **samples: the same as ``audio``, by the name of any other modality.

        Returns:
            Tensors for ``model(**batch)``, on the CPU.

        Raises:
            SafeError: answers are missing or empty, or a modality is not attached.
            SampleError: a sample cannot be used, or there are not as many as texts.
        """
        processor = self.processor
        given = processor.by_modality({"audio": audio, "images": images, **samples})
        if not training_mode:
            return processor(text=text, sampling_rate=sampling_rate, **given)
        config: Any = self.base.config
        separate = bool(config.is_encoder_decoder)
        batch = processor.training_batch(
            text, answers, given, encoder_decoder=separate, sampling_rate=sampling_rate
        )
        if not separate:
            starts = answer_starts(batch["labels"], batch["attention_mask"].sum(1) - 1)
            acting = [name for name in answering(self.attends) if f"{name}__{PRESENT}" in batch]
            batch.update({f"{name}__{FROM}": starts for name in acting})
        return batch

    def listen(
        self, name: str, seconds: float | None = None, *, sampling_rate: int | None = None
    ) -> Listener:
        """What hears a running recording, and asks about the last of it at any moment.

        Its ``add`` takes chunks of sound, and its ``heard()`` is a sample, to be given wherever one
        is: ``model.processor(question=..., audio=listener.heard())``.

        Args:
            name: of the modality.
            seconds: of the recording that is heard at most; None for as much as the modality takes.
            sampling_rate: of the chunks, in hertz; None for the encoder's own.

        Raises:
            SafeError: there is no such modality, or it takes no sound, or less than ``seconds``.
        """
        return self.modality(name).listen(seconds, sampling_rate)

    def encode(self, name: str, samples: Sequence[Sample]) -> Frames:
        """The encoder's frames of raw samples, without gradient."""
        modality = self.modality(name)
        inputs = prepare_samples(modality.encoder, samples)
        with torch.no_grad():
            return modality.encode({key: value.to(self.device) for key, value in inputs.items()})

    # Parameters

    @property
    def device(self) -> torch.device:
        """Where the inputs of a call go."""
        return input_device(self.base)

    @property
    def config(self) -> Any:
        """A copy of the base's config, for Trainers, which may write to it."""
        return deepcopy(self.base.config)

    @property
    def generation_config(self) -> Any:
        """A copy of the base's settings of ``generate``, for Trainers, which may write to it."""
        return deepcopy(getattr(self.base, "generation_config", None))

    @property
    def accepts_loss_kwargs(self) -> bool:
        """That losses of parts of a step add up to the step's, for Trainers: always."""
        return True

    def train(self, mode: bool = True) -> SafeModel:
        """Switch the trainable parts; the base stays in evaluation mode.

        Raises:
            SafeError: a part was made in inference mode, so that no gradient passes it.
        """
        if mode and (made := [n for n, p in self.named_parameters() if p.is_inference()]):
            raise SafeError(
                f"{len(made)} parameters, such as `{made[0]}`, were made in `inference_mode`, and "
                "cannot be trained or trained through",
                hint="load the base and make the plugins outside of `torch.inference_mode()`",
            )
        self.training = mode
        for child in self.children():
            child.train(mode and child is not self.base)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SafeModel:
        """Move or cast the model, as ``to``, ``cuda`` and ``bfloat16`` do.

        A base that is cast here is not one that was changed behind the model's back.

        Raises:
            SafeError: the base is quantised, and would be cast.
        """
        types = {p.dtype for p in self.base.parameters() if p.is_floating_point()}
        cast = any(changes_type(fn, dtype) for dtype in types)
        if cast and (quantised := quantisation_of(getattr(self.base, "config", None))) is not None:
            raise SafeError(
                f"a quantised base ({quantised}) cannot be cast to another dtype",
                hint="load it in another one; `model.modalities.to(dtype)` casts the senses alone",
            )
        before = BaseSnapshot.of(self.base) if cast else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        if before is not None:
            self.base_snapshot.note_cast(before, BaseSnapshot.of(self.base))
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass of training."""
        return self._recompute is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Options = None) -> None:
        """In training, recompute the layers in the backward pass, with these options of torch."""
        self._recompute = enable_checkpointing(
            self.stack.of(self.base), gradient_checkpointing_kwargs
        )

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Options = None, **others: Any
    ) -> None:
        """The same under the name that newer Trainers call."""
        self._recompute = enable_checkpointing(
            self.stack.of(self.base), activation_checkpointing_kwargs, others
        )

    def gradient_checkpointing_disable(self) -> None:
        """Keep in training what the layers did, as before."""
        disable_checkpointing(self.stack.of(self.base))
        self._recompute = None

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; those of a changed base are among them."""
        changed = named_change_parameters(self.base_change, self.base)
        return {
            name: parameter
            for name, parameter in (*self.modalities.named_parameters(), *changed.items())
            if parameter.requires_grad or name in changed
        }

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trainable, in PEFT's form."""
        trainable = sum(p.numel() for p in self.trainable_parameters().values())
        total = sum(p.numel() for p in self.parameters())
        share = 100 * trainable / total
        print(
            f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"
        )

    def save_pretrained(
        self,
        folder: str | Path,
        is_main_process: bool = True,
        *,
        without_recipe: bool | None = None,
    ) -> Path:
        """Write the adapter, without the base, to ``folder`` in one step.

        Processes that share the base's layers all call this, and one of them writes.

        Args:
            folder: where to; an adapter that is there is replaced.
            is_main_process: whether this process writes.
            without_recipe: leave out how the model is made: ``load`` then needs ``model=``. For
                parts that are no installed plugins. None does as the last training was told.

        Raises:
            AdapterError: a part is no installed plugin, and ``without_recipe`` is False; or the
                folder cannot be written.
        """
        # Every process helps to read a base that is shared out.
        state = self.adapter_state(without_recipe=without_recipe)
        if is_main_process:
            write_adapter(state, Path(folder))
        return Path(folder)

    def adapter_state(self, *, without_recipe: bool | None = None) -> AdapterState:
        """All that ``save_pretrained`` writes.

        Vectors of second samples are left out where they are zero, as before any are trained.
        """
        without = self.without_recipe if without_recipe is None else without_recipe
        tensors = without_untaught(self.modality_tensors())
        trained = without_untaught(self.trainable_parameters())
        change = self.base_change
        names = list(self.modalities)
        if not without:
            check_named(self, "pass `without_recipe=True` and load with `load(folder, model=...)`")
        return AdapterState(
            tensors=tensors,
            config=adapter_config(
                self._recorded_base(),
                [self.modality(name) for name in names],
                sum(p.numel() for p in trained.values()),
                None if change is None else change.adapter_facts(self.base),
                self.base_snapshot.accepted,
            ),
            recipe=None if without else self.recipe(),
            write_base_change=None if change is None else partial(change.write, self.base),
        )

    def adopt(self, recipe: Recipe) -> None:
        """Take a recipe, which describes the modalities as they are, for one that made the model.

        From here on questions are asked in its prompt.
        """
        self.built_from = recipe
        for name in self.modalities:
            self.modality(name).built_from = recipe
        self._processor = None

    def recipe(self) -> str:
        """The recipe of this model as TOML: how it is made, and trained if it was.

        What was an object of Python and has no name stands there as ``memory:...``.
        """
        return recipe_text(self)

    def modality_tensors(self) -> dict[str, Tensor]:
        """The modalities' tensors that an adapter holds, by name.

        That is all but frozen encoders and what can be rebuilt from the base.
        """
        return {
            f"{name}.{key}": tensor
            for name in self.modalities
            for key, tensor in modality_tensors(self.modality(name)).items()
        }

    def adapter_tensors(self) -> dict[str, Tensor]:
        """``modality_tensors``, and what stage B changes in the base where it does."""
        changed = named_change_parameters(self.base_change, self.base)
        return self.modality_tensors() | {key: value.detach() for key, value in changed.items()}

    def state_dict(  # type: ignore[override]  # torch's own is two overloads
        self,
        *,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """``adapter_tensors``: what a checkpoint of any Trainer holds. The base is no part of it.

        Args:
            destination: where to put them; a new dictionary if None.
            prefix: before every name.
            keep_vars: has no effect: they are never part of a graph.
        """
        found = {} if destination is None else destination
        found.update({f"{prefix}{name}": one for name, one in self.adapter_tensors().items()})
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> LoadedKeys:
        """Take what ``state_dict`` gave, in place.

        Args:
            state_dict: tensors by name.
            strict: refuse names that are missing or unknown.
            assign: has no effect: values are copied.

        Raises:
            AdapterError: a tensor is of another shape, or names differ and ``strict`` is True.
        """
        return load_state(self.adapter_tensors(), state_dict, strict=strict)

    def base_identity(self) -> dict[str, str]:
        """What tells the base, as it was before any change, from another one."""
        with self.original_base():
            name = base_name(self)
            return base_identity(self.base, self.base_processor, self.base_snapshot, name)

    def _recorded_base(self) -> dict[str, str]:
        """What an adapter records of the base, as it was before any change."""
        identity = self.base_identity()
        with self.original_base():
            return recorded_base(self.base, self.base_processor, identity)

    # A changed base (stage B)

    @property
    def base_changed(self) -> bool:
        """Whether stage B changed the base, so that L1 and L2 do not hold."""
        return self.base_change is not None

    def original_base(self) -> AbstractContextManager[None]:
        """A block within which the model and its base compute with the base as it was.

        Of a change in place the block is no other thread's to call the model in.
        """
        return nullcontext() if self.base_change is None else self.base_change.original(self.base)

    def set_base_change(self, change: BaseChange) -> BaseChange:
        """Let calls run the base that ``change`` makes; from here on L1 and L2 are given up.

        Raises:
            SafeError: a tiny call of the base passes a changed module by.
        """
        try:
            check_reached(change, lambda: self.base(**self._example_inputs()))
        except BaseException:
            change.remove(self.base)
            raise
        self.base_change = change.train(self.training)
        in_place = frozenset() if change.reversible else frozenset(change.tensors(self.base))
        self.base_snapshot.changed = in_place
        return change

    def restore_base_change(self, config: Mapping[str, Any] | None, folder: Path) -> None:
        """Change the base as an adapter in ``folder`` says, if it says so.

        Raises:
            AdapterError: the folder's tensors are not those that its config tells of.
        """
        if config is not None:
            owner, path = self.owner, self.stack.path
            change = read_change(self.base, config, folder, owner=owner, layers_path=path)
            self.set_base_change(change)

    def _remove_base_change(self) -> None:
        if self.base_change is not None:
            self.base_change.remove(self.base)
            self.base_change = None
            self.base_snapshot.changed = frozenset()

    def _known(self, name: str) -> str:
        if name not in self.modalities:
            known = ", ".join(self.modalities) or "none"
            raise SafeError(f"there is no modality `{name}`", hint=f"attached modalities: {known}")
        return name


def _transcripts(
    name: str, encoder: Encoder, given: bool | TranscriptSpec | Transcripts, *, features: bool
) -> Transcripts | None:
    """What writes down the samples of a modality, as ``add_modality`` was told.

    Raises:
        SafeError: the encoder cannot transcribe, or nothing would be given to the base.
    """
    if isinstance(given, Transcripts):
        return given
    if given is False and not features:
        raise SafeError(
            f"`{name}` would give the base nothing: it has neither features nor a transcript",
            hint="leave `features` as it is, or set `transcript`",
        )
    if given is False:
        return None
    return Transcripts(name, encoder, TranscriptSpec() if given is True else given)
