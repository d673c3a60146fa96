"""Bases that see, in vLLM: a picture alone, a sound alone, both and neither."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.core.relevance import RelevanceHead, Strength, relevance_states
from safe_framework.pretrained import quietly
from safe_framework.serving.engine import Request, Sampling
from tests.optional.vllm.conftest import RECIPE, TOKENS, Bits, bits, engine, likeliest, same, sound
from tests.serving.hearing import Told, answered
from tests.support import seeing

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

KINDS = ["llava", "llava-next", "qwen2-vl", "qwen2.5-vl", "smolvlm", "idefics3"]
WORDS = "what is this picture of " * 8 + "what"
RED, BLUE = seeing.picture("red"), seeing.picture("blue", 20, 14)
ROUNDING = 1e-3
"""In nats: a picture passes a tower and a projector before it, of other sums than transformers'."""


@attrs.frozen(eq=False)
class Asked:
    """What a request asks about.

    Attributes:
        picture: that it has; None for none.
        heard: number of its sound; None for none.
        gate: of the request; None for the adapter's own.
    """

    picture: Any = None
    heard: int | None = None
    gate: Strength | None = None

    @property
    def acts(self) -> bool:
        """Whether anything is heard: a head opens to what is red."""
        closed = self.gate == 0 or (self.gate == "auto" and self.picture is not RED)
        return self.heard is not None and not closed


CASES = [
    Asked(), Asked(RED), Asked(BLUE), Asked(RED, 0), Asked(BLUE, 1), Asked(None, 0),
    Asked(BLUE, 0, 0.0), Asked(RED, 1, "auto"), Asked(BLUE, 1, "auto"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path
) -> Path:
    """Of an adapter that hears, on a tiny base of a type that sees."""
    found = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, quietly():
        patch.setattr(seeing, "_WIDTH", 64)  # vLLM has kernels for heads of 32 numbers and more
        patch.setattr(seeing, "_HEAD", 32)
        seeing.save(found / "base", *seeing.seeing_bases()[request.param]())
    write_for_vllm(found / "base", found / "plain")
    text = RECIPE.format(folder=found, whisper=checkpoints, fusion="lora", attend="answer")
    (found / "recipe.toml").write_text(text.replace("[0, 2]", "[0, 1]"), "utf-8")
    torch.manual_seed(0)
    model = safe_framework.build(found / "recipe.toml")
    for parameter in model.trainable_parameters().values():
        parameter.data.normal_(std=0.5)
    model.set_relevance("audio", head(model))
    model.save_pretrained(found / "adapter")
    return found / "adapter"


def write_for_vllm(base: Path, folder: Path) -> None:
    """A checkpoint whose weights have the names that plain vLLM knows: LLaVA's has older ones."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    own = load_file(base / "model.safetensors")
    tower = re.compile(r"^vision_tower\.(?!vision_model\.)")
    named = {tower.sub("vision_tower.vision_model.", name): one for name, one in own.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})


def head(model: SafeModel) -> RelevanceHead:
    """One that opens to what is red."""
    asked = [batch_of(model, Asked(picture)) for picture in (RED, BLUE)]
    red, blue = (relevance_states(model, batch, 0).last[0] for batch in asked)
    weight = red - blue
    bias = -float((red + blue) @ weight) / 2
    return RelevanceHead(0 * red, 0 * red + 1, 0 * red[None], weight[None], bias, layer=0)


def batch_of(model: SafeModel, case: Asked) -> Any:
    """A request as transformers takes it."""
    seen = {} if case.picture is None else {"images": [[case.picture]]}
    if case.heard is not None:
        wave = sound(case.heard)
        seen |= {"audio": [wave.values], "sampling_rate": wave.sampling_rate}
    return model.processor(text=[WORDS], **seen)


@contextmanager
def seeing_engine(place: Path) -> Iterator[Any]:
    """VLLM on a base that sees, which is shown no videos."""
    limits = {"image": 2, "video": 0}
    with engine(place, limit_mm_per_prompt=limits, max_num_batched_tokens=64) as llm:
        yield llm


def outputs(llm: Any, model: SafeModel, cases: list[Asked], *, whole: bool = False) -> list[Any]:
    """What vLLM tells of requests that come at once.

    Args:
        llm: vLLM.
        model: that knows where pictures are in a text.
        cases: the requests; without sounds where vLLM has no adapter.
        whole: give prompts with the tokens of pictures, as transformers' processor makes them.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0, ignore_eos=True)
    prompts = list[dict[str, Any]]()
    for case in cases:
        count = int(case.picture is not None)
        text = model.processor.place_images(WORDS, count)
        ids = model.tokenizer(text)["input_ids"]
        if whole:
            ids = batch_of(model, Asked(case.picture))["input_ids"][0].tolist()
        data = {"image": [case.picture]} if count else {}
        if case.heard is not None:
            wave = sound(case.heard)
            data["audio"] = (wave.values, wave.sampling_rate)
        prompt: dict[str, Any] = {"prompt_token_ids": ids, "multi_modal_data": data}
        if case.heard is not None and case.gate is not None:
            prompt["mm_processor_kwargs"] = {"gate": case.gate}
        prompts.append(prompt if data else {"prompt_token_ids": ids})
    found: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    return found


def by_transformers(model: SafeModel, case: Asked) -> Bits:
    """A request, answered by the adapter in transformers."""
    out = model.generate(
        **batch_of(model, case), gate=case.gate, max_new_tokens=TOKENS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return likeliest(out.logits)


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_pictures_and_sounds(folder: Path) -> None:
    """Law: on a base that sees, what hears nothing has plain vLLM's bits, and all else is heard.

    Pictures alone, sounds alone, both and neither come in one batch, whose prompts are read in
    pieces, and then behind one another, in every order, with the prefix cache on. Heads that look
    at a picture decide.
    """
    model = safe_framework.load(folder)
    deaf = [Asked(case.picture) for case in CASES]
    with seeing_engine(folder.parent / "plain") as plain:
        expected = list(map(bits, outputs(plain, model, deaf)))
    with seeing_engine(folder) as listening:
        found = outputs(listening, model, CASES)
        alone = no_leak(listening, model)
        whole = [outputs(listening, model, [case], whole=True)[0] for case in CASES[1:5]]
    for case, one in zip(CASES, found, strict=True):
        ids = batch_of(model, Asked(case.picture))["input_ids"][0].tolist()
        assert list(one.prompt_token_ids) == ids
    for case, one, other in zip(CASES, map(bits, found), expected, strict=True):
        assert (one != other) is case.acts
        assert same(one, by_transformers(model, case), ROUNDING)
    assert list(map(bits, whole)) == alone


def no_leak(llm: Any, model: SafeModel) -> list[Bits]:
    """Answers to two pictures with and without a sound, each the same in every order."""
    ask: Callable[[int], Bits] = lambda n: bits(outputs(llm, model, [CASES[n]])[0])  # noqa: E731  # one line
    first = {n: ask(n) for n in range(1, 5)}
    assert len({tuple(one) for one in first.values()}) == len(first)
    for order in itertools.permutations(first):
        assert [ask(n) for n in order] == [first[n] for n in order]
    return list(first.values())


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
def test_the_engine_of_safe_serve_is_shown_pictures(folder: Path) -> None:
    """Law: in a chat, pictures, sounds, both and neither are answered as by ``transformers``."""
    asked = [conversation(case) for case in CASES]
    expected = answered(safe_framework.load(folder), *asked)
    from safe_framework.serving.vllm.adapter import load_adapter
    from safe_framework.serving.vllm.engine import VllmEngine

    options = {"kv_cache_memory_bytes": 2**26, "limit_mm_per_prompt": {"image": 2, "video": 0}}
    vllm = VllmEngine(load_adapter(str(folder)), folder, options=options).start()
    told = [Told() for _ in asked]
    try:
        for one, request in zip(told, asked, strict=True):
            vllm.submit(vllm.prepare(request), one.take)
    finally:
        vllm.stop(wait=120)
    for one, other in zip(told, expected, strict=True):
        assert (one.error, one.text, one.finish) == (None, other.text, other.finish)
        assert dict(one.gates) == dict(other.gates)
        assert same(one.bits, other.bits, ROUNDING)
    assert len({one.text[0] for one in told}) > 4


def conversation(case: Asked) -> Request:
    """A request as an engine of ``safe serve`` takes it."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": WORDS}]
    if case.heard is not None:
        parts.insert(0, {"type": "audio", "audio": sound(case.heard)})
    if case.picture is not None:
        parts.insert(0, {"type": "image", "image": case.picture})
    sampling = Sampling(max_tokens=TOKENS, logprobs=True, temperature=0.0)
    return Request([{"role": "user", "content": parts}], case.gate, sampling)
