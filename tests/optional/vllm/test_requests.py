"""What one engine does with requests: refused by name, changed together, or left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from safe_framework.core.injection import ActiveModality
from safe_framework.errors import InjectionError
from tests.optional.vllm.conftest import TOKENS, Case, Making, bits, engine, outputs, sound

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def staying(adapter: Making) -> Iterator[Any]:
    """An engine for all tests here: no other may be made beside it."""
    with engine(adapter()) as llm:
        yield llm


def test_a_seed_and_a_prompt_in_pieces(staying: Any) -> None:
    """Law: a seed ends no engine that reads a prompt in pieces, and draws what it would at once."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, temperature=2.0, seed=7, ignore_eos=True)
    prompts = [Case(95).prompt()] * 2  # in three pieces; then its blocks are known
    found = [staying.generate([one], params, use_tqdm=False)[0] for one in prompts]
    assert [one.num_cached_tokens for one in found] == [0, 64]
    first, second = (list(one.outputs[0].token_ids) for one in found)
    assert first == second


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"gate": "open"}, 'between 0 and 1, or "auto"'),
        ({"gate": 2}, "a gate must be between 0 and 1"),
        ({"gain": 1}, "`mm_processor_kwargs` has `gain`"),
        ({"rate": None}, "without its sampling rate"),
        ({"broken": True}, "holds NaN or Inf"),
    ],
)
def test_what_cannot_be_heard_is_refused(staying: Any, more: dict[str, Any], told: str) -> None:
    """Law: a gate or a sound that cannot be used is refused by name, and the engine goes on."""
    from vllm.exceptions import VLLMValidationError

    wave = sound(0)
    values, own = wave.values.copy(), dict(more)
    rate = own.pop("rate", wave.sampling_rate)
    if own.pop("broken", False):
        values[7] = float("nan")
    prompt = {
        "prompt_token_ids": [3, 4, 5],
        "multi_modal_data": {"audio": values if rate is None else (values, rate)},
        "mm_processor_kwargs": own,
    }
    with pytest.raises(VLLMValidationError, match=told):
        staying.generate([prompt], use_tqdm=False)
    assert len(bits(outputs(staying, [Case(5, 0)])[0])) == 8


def test_nothing_is_done_where_nobody_hears(staying: Any, monkeypatch: Any) -> None:
    """Law: in a pass without a row that hears, vLLM does what it does for a base of text alone."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from safe_framework.serving.vllm.listening import ListeningLayers

    given, own = list[Any](), GPUModelRunner._model_forward

    def forward(self: Any, **kwargs: Any) -> Any:
        """As vLLM's own."""
        given.append((kwargs["input_ids"], kwargs["inputs_embeds"]))
        return own(self, **kwargs)

    monkeypatch.setattr(GPUModelRunner, "_model_forward", forward)
    monkeypatch.setattr(ListeningLayers, "enter", None)
    outputs(staying, [Case(5), Case(9, 1, 0.0)])
    assert len(given) >= TOKENS
    assert all(ids is not None and embedded is None for ids, embedded in given)


def test_rows_that_hear_are_changed_together(staying: Any, monkeypatch: Any) -> None:
    """Law: at each fused layer of a pass, all rows whose samples are alike cost one call."""
    seen, own = list[Any](), ActiveModality.apply_everywhere

    def apply(self: Any, hidden: Any, layer: int) -> Any:
        """As its own."""
        seen.append((layer, tuple(hidden.shape[:2])))
        return own(self, hidden, layer)

    monkeypatch.setattr(ActiveModality, "apply_everywhere", apply)
    outputs(staying, [Case(5, 0), Case(5), Case(7, 1, 0.5)])
    assert seen == [(0, (2, 1)), (2, (2, 1))] * TOKENS


def test_a_layer_that_does_not_listen_is_an_error(staying: Any, monkeypatch: Any) -> None:
    """Law: a pass in which a fused layer was not reached ends in an error, and not in an answer."""
    runner = staying.llm_engine.model_executor.driver_worker.worker.model_runner
    layer = runner.model.model.layers[2]
    monkeypatch.setattr(layer, "__class__", type(layer).__mro__[1])
    with pytest.raises(InjectionError, match=r"not heard at layers \[2\]"):
        outputs(staying, [Case(5, 0)])
