"""The tasks of lm-evaluation-harness see the base where the modality is off, and it where it is on.

Run by ``make check-harness``, which installs the harness.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from safe_framework.errors import SafeError

pytestmark = [
    pytest.mark.harness,
    pytest.mark.filterwarnings("default"),  # the harness's own are not ours to mend
]

Samples = dict[str, list[Any]]


def judged(
    model: str,
    arguments: Mapping[str, Any],
    tasks: Path,
    batch_size: int = 2,
    names: Sequence[str] = ("choice", "writing"),
) -> Samples:
    """What the harness got for each request of each task, floats as they are."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from safe_framework.harness.__main__ import register

    register()
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=dict(arguments),
        tasks=list(names),
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    return {name: [row["resps"] for row in rows] for name, rows in found["samples"].items()}


@pytest.fixture(scope="module")
def base(world: Path, tasks: Path) -> Samples:
    """What the harness's own model gets from the base."""
    return judged("hf", {"pretrained": str(world / "base"), "dtype": "float32"}, tasks)


OFF = [{}, {"distractor": "none", "gate": 1}, {"distractor": "silence", "gate": 0}]


@pytest.mark.parametrize("arguments", OFF, ids=str)
@pytest.mark.parametrize("kind", ["adapter", "marked_adapter"])
def test_off_is_the_base_in_every_request(
    kind: str,
    arguments: dict[str, Any],
    base: Samples,
    tasks: Path,
    world: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Law L2: absent, or at gate 0, each likelihood and each text is the base's bit for bit."""
    like = {"like": str(world / "test0.wav")}
    adapter = {"adapter": str(request.getfixturevalue(kind))}
    assert judged("safe", {**adapter, **like, **arguments}, tasks) == base
    assert {len(rows) for rows in base.values()} == {5}


@pytest.mark.parametrize("distractor", ["silence", "noise", "shuffled", "test1.wav"])
@pytest.mark.parametrize("kind", ["adapter", "marked_adapter"])
def test_an_open_gate_changes_likelihoods(
    kind: str,
    distractor: str,
    base: Samples,
    tasks: Path,
    world: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Law: with a sample at gate 1, likelihoods are others than the base's."""
    name = str(world / distractor) if distractor.endswith(".wav") else distractor
    adapter = {"adapter": str(request.getfixturevalue(kind)), "like": str(world / "test0.wav")}
    found = judged("safe", {**adapter, "distractor": name, "gate": 1}, tasks)
    assert found["choice"] != base["choice"]
    assert found.keys() == base.keys()


@pytest.mark.parametrize("kind", ["adapter", "marked_adapter"])
def test_likelihoods_are_those_of_the_processor(
    kind: str, tasks: Path, world: Path, request: pytest.FixtureRequest
) -> None:
    """Law: a text with a sample is scored as the model scores the processor's batch of both."""
    import safe_framework
    from safe_framework.data.audio import read_audio

    adapter, clip = request.getfixturevalue(kind), world / "test1.wav"
    found = judged("safe", {"adapter": str(adapter), "distractor": str(clip)}, tasks, 1)
    model = safe_framework.load(adapter)
    batch = model.processor("the dog ran", audio=[read_audio(clip, 16000)])
    logits = model(**batch).logits[0]
    words = model.processor.markers.words(batch["input_ids"])[0]
    scores = logits[words].log_softmax(-1)[1]  # behind "the dog"
    ran = batch["input_ids"][0, words][2]
    assert found["choice"][2][0][0][0] == pytest.approx(scores[ran].item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["adapter", "marked_adapter"])
def test_texts_are_those_of_generate(
    kind: str, tasks: Path, world: Path, request: pytest.FixtureRequest
) -> None:
    """Law: a text is continued with a sample as ``generate`` does, up to where it stops."""
    import safe_framework
    from safe_framework.data.audio import read_audio

    adapter, clip = request.getfixturevalue(kind), world / "test1.wav"
    found = judged("safe", {"adapter": str(adapter), "distractor": str(clip)}, tasks)
    model = safe_framework.load(adapter)
    batch = model.processor("the dog", audio=[read_audio(clip, 16000)])
    out = model.generate(**batch, max_new_tokens=5, do_sample=False)
    new = out[0, batch["input_ids"].shape[1] :]
    text = model.processor.decode(new, skip_special_tokens=True)
    assert found["writing"][2][0][0] == text.partition("mat")[0]


def test_the_command_knows_the_model(adapter: Path, tasks: Path, tmp_path: Path) -> None:
    """Law: the harness's own command line takes ``--model safe`` and writes its results."""
    command = [
        sys.executable, "-m", "safe_framework.harness", "--model", "safe",
        "--model_args", f"adapter={adapter},gate=1", "--tasks", "choice",
        "--include_path", str(tasks), "--output_path", str(tmp_path), "--device", "cpu",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results*.json")
    results = json.loads(file.read_text("utf-8"))
    assert results["results"]["choice"]["sample_len"] == 5
    assert results["config"]["gates"] == {"audio": 1.0}


MISTAKES = {
    "distractor": ("hum", "`distractor=hum` is neither .*\nhint: use one of `none`, `silence`"),
    "modality": ("smell", "there is no `smell`: audio\nhint: name one with modality=NAME"),
    "gate": (2, "a gate must be between 0 and 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str, adapter: Path) -> None:
    """Law: an argument that means nothing is an error with what to do."""
    from safe_framework.harness.model import SafeLM

    value, message = MISTAKES[name]
    with pytest.raises(SafeError, match=message):
        SafeLM(str(adapter), **{name: value})


def test_nothing_to_make_silence_from(adapter: Path) -> None:
    """Law: without the run of an adapter, the error says how to name a sample."""
    from safe_framework.harness.model import SafeLM

    with pytest.raises(SafeError, match=r"`silence`.*holds no finished run.*\nhint: .*like=FILE"):
        SafeLM(str(adapter), distractor="silence")


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    from safe_framework.runs.run import run_recipe

    folder = tmp_path_factory.mktemp("run") / "run"
    return run_recipe(str(world / "every_method.toml"), output=folder, quiet=True)


@pytest.mark.parametrize("kind", ["silence", "shuffled", "foreign"])
def test_a_run_gives_the_samples(kind: str, world: Path, run: Path) -> None:
    """Law: silence is as long as a test sample of the run; others are its samples."""
    import numpy as np

    import safe_framework
    from safe_framework.data.audio import Waveform, read_audio
    from safe_framework.harness.model import choose_distractor

    model = safe_framework.load(run / "adapter")
    found = choose_distractor(model, "audio", run / "adapter", kind, seed=1)
    names = {"foreign": "foreign_test"}.get(kind, "test")
    pool = [read_audio(path, 16000).values for path in world.glob(f"{names}?.wav")]
    assert isinstance(found, Waveform)
    assert pool
    values = [np.zeros_like(one) for one in pool] if kind == "silence" else pool
    assert any(np.array_equal(found.values, one) for one in values)


# Pictures


PICTURED = ("seen", "choice")  # the harness writes no texts with pictures and without in one run
SEEING = ["seeing_adapter", "marked_seeing_adapter"]


@pytest.fixture(scope="module")
def seeing_base(seeing: Path, picture_tasks: Path) -> Samples:
    """What the harness's own model for pictures gets from the base, of texts too."""
    arguments = {"pretrained": str(seeing), "dtype": "float32"}
    return judged("hf-multimodal", arguments, picture_tasks, names=PICTURED)


@pytest.mark.parametrize("arguments", OFF, ids=str)
@pytest.mark.parametrize("kind", SEEING)
def test_off_is_the_base_on_pictures(
    kind: str,
    arguments: dict[str, Any],
    seeing_base: Samples,
    picture_tasks: Path,
    world: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Law L2: absent, or at gate 0, each answer about a picture is the base's, each sample."""
    given = {"adapter": str(request.getfixturevalue(kind)), "like": str(world / "test0.wav")}
    found = judged("safe-multimodal", {**given, **arguments}, picture_tasks, names=PICTURED)
    assert found == seeing_base
    assert {len(rows) for rows in found.values()} == {5}


def test_pictures_are_seen(seeing_base: Samples) -> None:
    """Law: the same question about other pictures has other answers, so that they can differ."""
    answers = [seeing_base["seen"][row][0][0] for row in (0, 2, 4)]  # of one text
    assert len(set(answers)) > 1


@pytest.mark.parametrize("kind", SEEING)
def test_an_open_gate_is_heard_beside_pictures(
    kind: str,
    seeing_base: Samples,
    picture_tasks: Path,
    world: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Law: with a sample at gate 1, answers about pictures are others than the base's."""
    clip = str(world / "test1.wav")
    given = {"adapter": str(request.getfixturevalue(kind)), "distractor": clip, "gate": 1}
    found = judged("safe-multimodal", given, picture_tasks, names=PICTURED)
    assert found["seen"] != seeing_base["seen"]
    assert found["choice"] != seeing_base["choice"]


@pytest.mark.parametrize("kind", SEEING)
def test_answers_about_pictures_are_those_of_generate(
    kind: str, picture_tasks: Path, world: Path, request: pytest.FixtureRequest
) -> None:
    """Law: a picture is answered beside a sample as ``generate`` answers the processor's batch."""
    from PIL import Image

    import safe_framework
    from safe_framework.data.audio import read_audio

    adapter, clip = request.getfixturevalue(kind), world / "test1.wav"
    given = {"adapter": str(adapter), "distractor": str(clip)}
    found = judged("safe-multimodal", given, picture_tasks, 1, names=["seen"])
    model = safe_framework.load(adapter)
    shown = Image.open(picture_tasks / "red.png").convert("RGB")
    sound = read_audio(clip, 16000)
    batch = model.processor(text=["<image>what is this"], images=[[shown]], audio=[sound])
    out = model.generate(**batch, max_new_tokens=5, do_sample=False)
    new = out[0, batch["input_ids"].shape[1] :]
    text = model.processor.decode(new, skip_special_tokens=True)
    assert found["seen"][0][0][0] == text.partition("mat")[0]


def test_a_base_that_reads_is_no_base_for_pictures(adapter: Path) -> None:
    """Law: an adapter whose base has no image processor is refused, with the model to use."""
    from safe_framework.harness.model import SafeMultimodalLM

    message = "`LlamaForCausalLM` has no image processor\nhint: .*--model safe"
    with pytest.raises(SafeError, match=message):
        SafeMultimodalLM(str(adapter))
