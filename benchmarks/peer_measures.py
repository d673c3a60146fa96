"""What is measured of a trained arm, by the evaluation of the library."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs
import torch
from accelerate.utils import send_to_device
from peer_models import PrefixModel
from peer_training import Trained
from safetensors.torch import save_file
from speed_turns import spent

from safe_framework.config.schema import Recipe
from safe_framework.core.base_model import freeze
from safe_framework.data.recipe_data import RecipeData
from safe_framework.evaluation.answers import (
    answer,
    answer_room,
    eval_mode,
    model_inputs,
    with_shuffled_samples,
)
from safe_framework.evaluation.encoder_cache import cached_encoders
from safe_framework.evaluation.metrics import Estimate, bootstrap, exact_match
from safe_framework.evaluation.retention import gate_zero, retention
from safe_framework.pretrained.base_model import load_base
from safe_framework.training.batches import modality_columns
from safe_framework.utils.progress import WorkProgress
from safe_framework.utils.tensors import bitwise_equal

FIRST_STEPS = 3  # left out of the seconds a step
OFF_EXAMPLES = 8
WORDS, NEW_WORDS, REPEATS = 128, 8, 3


@torch.no_grad()
def measures(
    trained: Trained,
    recipe: Recipe,
    data: RecipeData,
    texts: int | None,
    progress: WorkProgress,
) -> dict[str, Any]:
    """``estimates`` with intervals, and ``facts`` that are true or false.

    Args:
        trained: the arm.
        recipe: of which it was trained.
        data: of the recipe.
        texts: how many of the held-out retention texts to use; all if None.
        progress: the bars.
    """
    model = trained.model
    if model.base is None:  # it was trained itself: what it is compared with is loaded again
        model.base = freeze(load_base(recipe.base)[0]).to(model.device)
    name = next(iter(model.modalities))
    encoder = model.modality(name).encoder
    test = data.examples("test", {name: encoder})
    held = spread([row.text for row in data.texts("retention_test")], texts)
    foreign = data.samples("foreign_test", name, encoder)
    drawing: dict[str, Any] = {
        "resamples": recipe.evaluation.bootstrap,
        "seed": recipe.training.seed,
    }
    asking: dict[str, Any] = {
        "max_new_tokens": answer_room(model, test, recipe.evaluation.max_new_tokens)
    }
    with eval_mode(model), cached_encoders(model):
        estimates = gains(model, name, test, asking | {"progress": progress}, drawing)
        kept = retention(model, name, held, test, foreign, progress=progress, **drawing)
        with _off(model):
            shut = gate_zero(model, name, test[:OFF_EXAMPLES], **asking)
        facts = {
            "absent": kept.absent.identical,
            "off": shut.identical,
            "rows": rows_alone(model, name, held[:2], test[0].samples[name]),
        }
        estimates |= latencies(model, name, test[0].samples[name], held)
    estimates |= {kind: found.agreement for kind, found in kept.counterfactual.items()}
    estimates |= {
        "absent": exactly(kept.absent.agreement),
        "irrelevant": kept.overall.agreement,
        "irrelevant KL": kept.overall.kl,
    }
    return {"estimates": estimates | costs(trained), "facts": facts}


def spread(texts: Sequence[str], count: int | None) -> list[str]:
    """So many of the texts, evenly from first to last; all if None.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    if count is None or count >= len(texts):
        return list(texts)
    return [texts[index * len(texts) // count] for index in range(count)]


def gains(
    model: Any,
    name: str,
    test: Sequence[Any],
    asking: Mapping[str, Any],
    drawing: Mapping[str, Any],
) -> dict[str, Estimate]:
    """Exact match on held-out samples, and over what another's sample gives."""
    expected = [example.answer for example in test]
    options = {**asking, "gate": {name: 1.0}}
    accuracies = exact_match(answer(model, test, **options), expected)
    astray = with_shuffled_samples(test, name, seed=drawing["seed"])
    misled = exact_match(answer(model, astray, **options, label="shuffled"), expected)
    return {
        "gain": bootstrap(accuracies, **drawing),
        "over shuffled": bootstrap(accuracies - misled, **drawing),
    }


def rows_alone(model: Any, name: str, texts: Sequence[str], sample: Any) -> bool:
    """Whether a row without the modality, beside one with it, is the base's row bit for bit."""
    given = model_inputs(model, texts, [{name: sample}, {}])
    plain = model_inputs(model, texts)
    ours, base = model(**given).logits[1], model.base(**plain).logits[1]
    return bitwise_equal(ours, base)


def costs(trained: Trained) -> dict[str, Estimate]:
    """What training took, and what is to be stored and sent."""
    model = trained.model
    own = model.trained() if isinstance(model, PrefixModel) else model.trainable_parameters()
    seconds = trained.seconds[FIRST_STEPS:] or trained.seconds
    return {
        "parameters": exactly(sum(p.numel() for p in own.values())),
        "bytes": exactly(_bytes(model)),
        "step seconds": exactly(statistics.median(seconds)),
        "peak GiB": exactly(trained.peak_gib),
    }


def latencies(model: Any, name: str, sample: Any, texts: Sequence[str]) -> dict[str, Estimate]:
    """How much longer than the base's the first word takes, and each further one.

    The encoder is left out, as it is the same for all. Base and model take turns.
    """
    frames = model.encode(name, [sample])
    joined = model.tokenizer("\n".join(texts))["input_ids"]
    words = (joined * (WORDS // len(joined) + 1))[:WORDS]
    room = _room(model.base, model.modality(name).projector.tokens)
    ids = torch.tensor([words[: min(WORDS, room)]])
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = send_to_device(plain, model.device)
    given = plain | send_to_device(
        modality_columns(name, [frames], frames.values.shape[-1]), model.device
    )
    base, ours = _timed(model.base.generate, plain), _timed(model.generate, given)
    rounds = [(base(), ours()) for _ in range(REPEATS + 1)][1:]  # the first warms up
    alone, active = (
        [statistics.median(times) for times in zip(*(one[who] for one in rounds), strict=True)]
        for who in (0, 1)
    )
    return {
        "prefill": exactly(active[0] / alone[0]),
        "decode": exactly(active[1] / alone[1]),
        "base prefill seconds": exactly(alone[0]),
        "base decode seconds": exactly(alone[1]),
    }


def exactly(value: float) -> Estimate:
    """A number that was counted or timed once."""
    return Estimate(float(value), float(value), float(value), 1)


def as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``measures`` gives, for a file."""
    estimates = {name: attrs.asdict(one) for name, one in found["estimates"].items()}
    return {"estimates": estimates, "facts": found["facts"]}


def _off(model: Any) -> AbstractContextManager[Any]:
    held: AbstractContextManager[Any] = model.off()
    return held


def _room(base: Any, tokens: int) -> int:
    longest = getattr(base.config, "max_position_embeddings", WORDS + tokens + NEW_WORDS)
    return int(longest) - tokens - NEW_WORDS - 1


def _timed(generate: Callable[..., Any], given: Mapping[str, Any]) -> Callable[[], Any]:
    def seconds(new: int) -> float:
        start = spent()
        generate(**given, min_new_tokens=new, max_new_tokens=new, do_sample=False)
        return spent() - start

    def both() -> tuple[float, float]:
        first = seconds(1)
        return first, (seconds(1 + NEW_WORDS) - first) / NEW_WORDS

    return both


def _bytes(model: Any) -> int:
    """Bytes of the tensors that somebody with the base and the encoder would still need."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, PrefixModel):
            file = Path(folder) / "model.safetensors"
            save_file({name: t.contiguous() for name, t in model.shipped().items()}, file)
            return file.stat().st_size
        saved = model.save_pretrained(Path(folder) / "adapter")
        return sum(file.stat().st_size for file in Path(saved).glob("*.safetensors"))
