"""Recipes of shipped plugins from their text to an answer: built, trained a step, saved, off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import safe_framework
from safe_framework.config.diagnostics import RecipeError
from safe_framework.core.model import SafeModel
from safe_framework.data.audio import Waveform
from safe_framework.pretrained import quietly
from tests.laws.calls import all_same
from tests.support.toys import llama, tokenizer

RECIPE = """\
[base]
model = "{folder}/base"
[modalities.signal]
encoder = {encoder}
projector = {projector}
fusion = {{ use = "lora", layers = [0, 1], rank = 2 }}
"""
WHISPERS = """{{ use = "multimodal", join = "{join}", encoders = [
  {{ use = "whisper", model = "{{folder}}/whisper16000" }},
  {{ use = "whisper", model = "{{folder}}/whisper24000", layer = 0 }},
] }}"""
RESAMPLER = '{ use = "resampler", tokens = 3, dim = 8, heads = 2 }'
ADAPTIVE = '{ use = "adaptive", max_tokens = 4, dim = 8, heads = 2 }'
RANDOM = np.random.default_rng(0)
SOUND = Waveform(RANDOM.normal(0, 0.1, 8000), 16000)
CASES = [
    pytest.param(encoder, projector, sample, id=f"{name}-{projector.split(chr(34))[1]}")
    for name, encoder, sample in [
        (
            "sensor",
            '{ use = "sensor", channels = 2, rate = 50, patch = 4, dim = 6 }',
            RANDOM.normal(size=(30, 2)),
        ),
        (
            "video",
            '{ use = "video", model = "{folder}/vit", per_picture = 2 }',
            RANDOM.integers(0, 256, (3, 9, 9, 3), dtype=np.uint8),
        ),
        ("concatenate", WHISPERS.format(join="concatenate").replace("{{", "{"), SOUND),
        ("separate", WHISPERS.format(join="separate").replace("{{", "{"), SOUND),
    ]
    for projector in (RESAMPLER, ADAPTIVE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two Whispers of different rates, and a vision model."""
    import transformers

    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    whisper = transformers.WhisperConfig(
        vocab_size=20, num_mel_bins=8, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=50, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    vit = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    with quietly():
        llama().save_pretrained(root / "base")
        transformers.ViTModel(vit).save_pretrained(root / "vit")
        for rate, hop in ((16000, 160), (24000, 240)):
            transformers.WhisperModel(whisper).save_pretrained(root / f"whisper{rate}")
            transformers.WhisperFeatureExtractor(
                feature_size=8, sampling_rate=rate, hop_length=hop, n_fft=400, chunk_length=1
            ).save_pretrained(root / f"whisper{rate}")
    tokenizer().save_pretrained(root / "base")
    return root


@pytest.fixture
def write(folder: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """What writes a recipe of an encoder and a projector."""

    def recipe(encoder: str, projector: str) -> Path:
        path = tmp_path / "recipe.toml"
        named = encoder.replace("{folder}", str(folder))
        path.write_text(RECIPE.format(folder=folder, encoder=named, projector=projector), "utf-8")
        return path

    return recipe


def step(model: SafeModel, batch: Any) -> list[str]:
    """One step of training; the names of the parameters that got no gradient."""
    model.train()
    parameters = model.trainable_parameters()
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    silent = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return silent


@pytest.mark.parametrize(("encoder", "projector", "sample"), CASES)
def test_from_recipe_to_answer(
    write: Callable[[str, str], Path], tmp_path: Path, encoder: str, projector: str, sample: Any
) -> None:
    """A fresh modality is silent, a trained one active and loadable, and off is the base's bits."""
    model = safe_framework.build(write(encoder, projector))
    rate = {"sampling_rate": sample.sampling_rate} if isinstance(sample, Waveform) else {}
    batch = model.processor(["w3 w4", "w5 w6 w7"], signal=[sample, None], **rate)
    plain = {key: value for key, value in batch.items() if "__" not in key}
    with torch.no_grad():
        base = model.base(**plain).logits
        assert all_same([model(**batch).logits], [base])
    for _ in range(2):  # paths that start at zero open one behind the other
        step(model, batch)
    assert step(model, batch) == ["signal.segments.weight"]  # of second samples: there is none
    with torch.no_grad():
        active = model(**batch).logits
    assert not torch.equal(active[0], base[0])
    assert all_same([active[1]], [base[1]])
    assert model.generate(**batch, max_new_tokens=3).shape[1] > plain["input_ids"].shape[1]
    expected = model.base.generate(**plain, max_new_tokens=3)
    with model.off(), torch.no_grad():
        assert all_same([model(**batch).logits], [base])
        assert torch.equal(model.generate(**batch, max_new_tokens=3), expected)
    loaded = safe_framework.load(model.save_pretrained(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert all_same([loaded(**batch).logits], [active])


def test_an_inner_encoder_that_refuses_is_shown_where_it_is(
    write: Callable[[str, str], Path],
) -> None:
    """What an inner constructor refuses is shown at its own option in the recipe."""
    inner = '{ use = "sensor", channels = 2, rate = 50, patch = 0 }'
    path = write(f'{{ use = "multimodal", encoders = [{inner}] }}', RESAMPLER)
    with pytest.raises(RecipeError, match="`patch` of `sensor` must be at least 1") as caught:
        safe_framework.build(path)
    (problem,) = caught.value.problems
    assert problem.excerpt[problem.column - 1 :].startswith("0 }")
