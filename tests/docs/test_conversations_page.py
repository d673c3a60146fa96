"""docs/conversations.md and the README's conversation run as printed, on a tiny base that sees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import safe_framework
from safe_framework.core.model import SafeModel
from safe_framework.serving import pipeline
from tests.support.seeing import llava, picture
from tests.support.toys import ToyEncoder, ToyProjector, lora

ROOT = Path(__file__).parents[2]
BLOCKS, SHOWN = (
    re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for page in (ROOT / "docs" / "conversations.md", ROOT / "README.md")
)


class Hears(ToyEncoder):
    """A frame of the first amplitudes of a recording."""

    sampling_rate = 16_000

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(one.values[None, : self.dim]) for one in samples])


@pytest.fixture
def pictures_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the base sees that is loaded here, where the files are."""
    base, processor = llava()
    model = SafeModel(base, processor)
    projector = ToyProjector(hidden_size=model.stack.hidden_size)
    model.add_modality("audio", encoder=Hears(), projector=projector, fusion=lora(model))
    monkeypatch.setattr(pipeline, "load", lambda folder, **options: model)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("first", "second", "third"), 1):
        soundfile.write(f"{name}.wav", np.full(1600, 0.2 * number, np.float32), 16_000)
    picture("red").save("seen.png")
    seen = list[int]()
    generate: Any = base.generate

    def counting(*args: Any, **options: Any) -> Any:
        """Generate, and note how many pictures are seen."""
        seen.append(len(options["pixel_values"]))
        return generate(*args, **options)

    monkeypatch.setattr(base, "generate", counting)
    return seen


def test_the_page_runs(pictures_seen: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Law: its blocks run one after the other, and what is sent is heard and seen."""
    assert len(BLOCKS) == 4
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)  # our own page
    assert capsys.readouterr().out
    assert set(pictures_seen) == {1}
    assert names["batch"]["audio__present"].tolist() == [[True] * 3]
    assert [len(answers) for answers in names["both"]] == [2]


def test_the_readme_shows_a_conversation(pictures_seen: list[int]) -> None:
    """Law: the README's two clips and picture are heard and seen in both turns."""
    (block,) = (block for block in SHOWN if "second.wav" in block)
    names: dict[str, Any] = {"safe_framework": safe_framework}
    exec(block, names)  # our own page
    assert pictures_seen == [1, 1]
    assert isinstance(names["answer"], str)
    batch = names["pipe"].model.processor.apply_chat_template(
        names["chat"], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert batch["audio__present"].tolist() == [[True, True]]
