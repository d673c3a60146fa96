"""The laws on thirty types that differ; ``make check-zoo`` asks them of every one."""

from __future__ import annotations

import pytest

from tests.zoo.examine import examine

pytestmark = pytest.mark.slow

SAMPLE = [
    ("causal", "llama"),
    ("causal", "gpt2"),
    ("causal", "bloom"),
    ("causal", "gemma2"),
    ("causal", "falcon_h1"),  # attention and a state space side by side
    ("causal", "mamba"),  # no attention at all
    ("causal", "recurrent_gemma"),
    ("causal", "mixtral"),  # rows meet in its experts
    ("causal", "deepseek_v3"),
    ("causal", "deepseek_v4"),  # (batch, length, streams, hidden)
    ("causal", "gemma3n_text"),  # (streams, batch, length, hidden)
    ("causal", "xlnet"),  # (length, batch, hidden)
    ("causal", "reformer"),  # hidden states by keyword
    ("causal", "hrm_text"),  # runs its layers several times
    ("causal", "zamba2"),  # layers that share weights
    ("causal", "bert-generation"),
    ("causal", "bart"),  # the decoder of an encoder-decoder, alone
    ("image_text", "llava"),
    ("image_text", "qwen2_vl"),
    ("image_text", "gemma3"),
    ("image_text", "mllama"),
    ("image_text", "florence2"),
    ("image_text", "blip-2"),
    ("image_text", "kosmos-2"),
    ("image_text", "vision-encoder-decoder"),
    ("seq2seq", "t5"),
    ("seq2seq", "fsmt"),  # transposed hidden states
    ("seq2seq", "switch_transformers"),
    ("seq2seq", "led"),
    ("seq2seq", "qwen2_audio"),
]
MIXES_ROWS = {"mixtral", "deepseek_v3", "deepseek_v4", "switch_transformers"}
GIVEN = dict.fromkeys(("llava", "qwen2_vl", "gemma3", "mllama", "florence2", "blip-2"), "processor")
"""How a picture was given that reaches the answer, where it was not as tensors."""
WITHOUT_DECODING = {"reformer": ()}


@pytest.mark.filterwarnings("ignore")  # of transformers, about configs that it made itself
@pytest.mark.parametrize(("task", "model_type"), SAMPLE, ids=[key for _, key in SAMPLE])
def test_the_laws_hold(task: str, model_type: str) -> None:
    """Every law holds with a trained modality, and each decoding of the base works with it."""
    found = examine(task, model_type, calls="quick")
    assert found.status == "holds", found.reason
    rows = "not applicable" if model_type in MIXES_ROWS else "holds"
    assert {law: found.laws[law] for law in ("L1", "L2", "L3", "L4", "L5")} == {
        "L1": "holds",
        "L2": "holds",
        "L3": "holds",
        "L4": rows,
        "L5": "holds",
    }
    assert found.picture == GIVEN.get(model_type, "tensors" if task == "image_text" else "")
    assert found.generates == WITHOUT_DECODING.get(model_type, ("greedy", "beams"))


def test_the_sample_is_thirty() -> None:
    """Thirty types, none twice."""
    assert len(set(SAMPLE)) == len(SAMPLE) == 30
