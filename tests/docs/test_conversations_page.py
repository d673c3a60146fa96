"""docs/conversations.md runs as it is printed, on a tiny base that sees and hears."""

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

from safe_framework.core.model import SafeModel
from safe_framework.serving import pipeline
from tests.support.seeing import llava, picture
from tests.support.toys import ToyEncoder, ToyProjector, lora

PAGE = (Path(__file__).parents[2] / "docs" / "conversations.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Hears(ToyEncoder):
    """A frame of the first amplitudes of a recording."""

    sampling_rate = 16_000

    def prepare(self, samples: Sequence[Any]) -> Mapping[str, Tensor]:
        return super().prepare([torch.as_tensor(one.values[None, : self.dim]) for one in samples])


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: its blocks run one after the other, and what is sent is heard and seen."""
    assert len(BLOCKS) == 4
    base, processor = llava()
    model = SafeModel(base, processor)
    projector = ToyProjector(hidden_size=model.stack.hidden_size)
    model.add_modality("audio", encoder=Hears(), projector=projector, fusion=lora(model))
    monkeypatch.setattr(pipeline, "load", lambda folder, **options: model)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("first", "second", "third"), 1):
        soundfile.write(f"{name}.wav", np.full(1600, 0.2 * number, np.float32), 16_000)
    picture("red").save("seen.png")
    heard = list[int]()
    generate: Any = base.generate

    def counting(*args: Any, **options: Any) -> Any:
        """Generate, and note how many pictures are seen."""
        heard.append(len(options["pixel_values"]))
        return generate(*args, **options)

    monkeypatch.setattr(base, "generate", counting)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)  # our own page
    assert capsys.readouterr().out
    assert set(heard) == {1}
    assert names["batch"]["audio__present"].tolist() == [[True] * 3]
    assert [len(answers) for answers in names["both"]] == [2]
