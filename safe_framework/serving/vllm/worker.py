"""vLLM's worker, which says before each pass which rows of the batch hear which sample."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from safe_framework.core.injection import ActiveModality
from safe_framework.errors import InjectionError
from safe_framework.serving.vllm.listening import HearingRows, hearing
from safe_framework.serving.vllm.models import ListeningModel
from safe_framework.serving.vllm.samples import GATE


@attrs.frozen(eq=False)
class _Heard:
    """What a request hears.

    Attributes:
        name: of its samples, by their digest.
        sample: None where the gate or a mask leaves nothing of them.
        first: the position from which it hears.
    """

    name: str
    sample: ActiveModality | None
    first: int


class ListeningRunner(CPUModelRunner):  # type: ignore[misc]  # vLLM is not typed
    """Runs a base whose layers listen."""

    listens: ListeningModel

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """The base, and then the adapter."""
        super().load_model(load_dummy_weights)
        model: Any = self.model
        self.listens = model.listen()
        self._heard: dict[str, _Heard] = {}

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """One pass, in which the rows hear that have something to."""
        layers = self.listens.modality.fusion.layers
        with hearing(self.listens.key, self._rows(), layers):
            return super()._model_forward(*args, **kwargs)

    def _rows(self) -> list[HearingRows]:
        """The stretches of the batch at which a sample acts."""
        batch, starts = self.input_batch, self.query_start_loc.np
        found = list[HearingRows]()
        for number, request in enumerate(batch.req_ids):
            if not self.requests[request].mm_features:
                continue
            heard = self._heard_by(request)
            done, end = int(batch.num_computed_tokens_cpu[number]), int(starts[number + 1])
            start = int(starts[number]) + max(heard.first - done, 0)
            if heard.sample is not None and start < end:
                found.append(HearingRows(heard.sample, start, end))
        if len(self._heard) > len(self.requests):
            self._heard = {r: one for r, one in self._heard.items() if r in self.requests}
        return found

    def _heard_by(self, request: str) -> _Heard:
        """What a request hears, which is computed once for it."""
        state = self.requests[request]
        (feature,) = state.mm_features
        known = self._heard.get(request)
        if known is None or known.name != feature.identifier:
            known = self._hear(feature, state.num_prompt_tokens)
            self._heard[request] = known
        return known

    def _hear(self, feature: Any, prompt: int) -> _Heard:
        """Encode a request's samples.

        Args:
            feature: what came with the request.
            prompt: how many tokens its prompt has.

        Raises:
            InjectionError: the samples themselves did not come.
        """
        if feature.data is None:
            raise InjectionError("a request's samples did not reach the worker")
        modality = self.listens.modality
        fields = {name: value.unsqueeze(0) for name, value in feature.data.get_data().items()}
        gate = float(fields.pop(GATE))
        with torch.no_grad():
            sample = modality.activate(gate, fields, self.device)
        return _Heard(feature.identifier, sample, 0 if modality.attend == "all" else prompt - 1)


class ListeningWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not typed
    """vLLM's worker on processors, whose runner is the one above."""

    def init_device(self) -> None:
        """As vLLM's own."""
        super().init_device()
        self.model_runner.__class__ = ListeningRunner
